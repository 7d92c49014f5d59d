//! What `fido` needs to work with Xen, as a library.
//!
//! * [`doctor`]: whether a guest or dom0 has what Fido needs.
//! * [`image`]: bootable images of guests.
//! * [`testbed`]: a real Xen with guests, under software emulation.
//! * [`vm`]: a plain Linux guest under software emulation, for tests of devices.

pub mod doctor;
pub mod image;
pub mod testbed;
pub mod vm;
