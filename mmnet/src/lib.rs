//! MMNet: byte streams and Ethernet frames between domains, by address.

pub mod stream;
