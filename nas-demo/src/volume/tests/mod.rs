//! Tests of the volume as a whole.

mod basic;
mod crash;
pub(super) mod disk;
mod errors;
mod file;
mod kill;
mod model;
mod rig;
mod space;
