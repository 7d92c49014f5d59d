//! A block device behind a lane: requests there, answers back, payload by address both ways.
//!
//! * [`front::LinkQueue`] is a [`crate::queue::BlockQueue`]; whoever uses it cannot tell it from the device itself.
//! * [`device::LinkDevice`] is a link of several lanes: one device, a queue for each thread.
//! * [`back::BackEnd`] serves one lane from any queue; several of them are a front end's lanes, with limits.
//! * [`codec`] is what they say to each other.
//!
//! When the back end's domain dies, the front end keeps every unfinished request (with its payload) and submits it
//! again to the successor, see [`front`]. When the front end's domain dies, the back end finishes what it has begun,
//! drops the results and serves the successor.

pub mod back;
pub mod codec;
pub mod device;
pub mod front;
mod rescue;
mod table;
