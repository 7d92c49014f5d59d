//! TAP devices and the switch with the kernel's own protocols and the programs that people use.
//!
//! They need root and Debian's packages: `.ci/net` installs them and runs these tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod capture;
mod connections;
mod peer;
mod rig;
mod switch;
mod wire;
