//! The NFSv3 and MOUNT v3 server: calls from byte streams, operations on a volume, replies by address.
//!
//! The data of a WRITE stays in the memory of whoever received it and goes to the volume by address; the data of a
//! READ goes from wherever the volume has it to the stream by address. Only heads are copied and decoded.
//!
//! From the stream inwards: [`server`] looks after [`connection`]s, [`record`] finds the messages in one, [`service`]
//! carries calls out: [`rpc`] decodes their heads, [`nfs3`] and [`mount`] turn calls into operations and answers into
//! results, [`drc`] recognises what has been carried out already. [`reply`] is what goes back, and [`budget`] counts
//! what all this keeps in use.

pub mod budget;
pub mod connection;
pub mod drc;
pub mod fuzzing;
pub mod handle;
pub mod mount;
pub mod nfs3;
pub mod record;
pub mod reply;
pub mod rpc;
pub mod server;
pub mod service;
pub mod xdr;

pub use server::{Limits, NfsServer};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
