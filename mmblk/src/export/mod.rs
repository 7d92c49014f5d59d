//! Exports: the standard faces by which others than domains use a block device.
//!
//! * [`nbd`]: network block devices, for anything that speaks NBD.

pub mod nbd;
