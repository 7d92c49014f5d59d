//! What `fido` needs to work with Xen, as a library.
//!
//! * [`image`]: bootable images of guests.
//! * [`testbed`]: a real Xen with guests, under software emulation.

pub mod image;
pub mod testbed;
