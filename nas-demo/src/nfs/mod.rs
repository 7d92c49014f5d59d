//! The NFSv3 and MOUNT v3 server: calls from byte streams, operations on a volume, replies by address.
//!
//! The data of a WRITE stays in the memory of whoever received it and goes to the volume by address; the data of a
//! READ goes from wherever the volume has it to the stream by address. Only heads are copied and decoded.
//!
//! From the stream inwards: [`record`] finds the messages, [`rpc`] decodes their heads, [`nfs3`] and [`mount`] turn
//! calls into operations and answers into results.

pub mod drc;
pub mod handle;
pub mod mount;
pub mod nfs3;
pub mod record;
pub mod rpc;
pub mod xdr;
