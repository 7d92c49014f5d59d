//! Tests of the volume as a whole.

mod basic;
mod crash;
mod disk;
mod errors;
mod model;
mod rig;
mod space;
