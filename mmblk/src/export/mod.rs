//! Exports: the standard faces by which others than domains use a block device.
//!
//! * [`nbd`]: network block devices, for anything that speaks NBD.
//! * [`vhost_user`]: virtio disks of virtual machines.

pub mod nbd;
pub mod vhost_user;
