//! MMNet: byte streams and Ethernet frames between domains, by address.

pub mod frame;
pub mod phy;
pub mod stream;
