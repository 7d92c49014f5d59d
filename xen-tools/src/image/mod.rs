//! Bootable images: archives for the kernel's first root file system, and what has to be in them.

pub mod closure;
pub mod cpio;
pub mod elf;
pub mod guest;
