//! MMNet: byte streams and Ethernet frames between domains, by address.

pub mod capture;
pub mod component;
pub mod frame;
pub mod layer;
pub mod phy;
pub mod relay;
pub mod stack;
pub mod stream;
pub mod switch;
pub mod tap;
