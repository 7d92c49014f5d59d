//! Fido's data path: what the domains of an appliance share, and how messages and memory pass between them.
//!
//! An *appliance* is cut into *domains*, which may read each other's memory and never write it. This crate is what a
//! domain is made of. It moves addresses, not bytes: a payload stays where its owner wrote it, whoever reads it.
//!
//! # The concepts, from the bottom
//! | | |
//! |---|---|
//! | [`addr`] | global addresses and segments: numbers that mean the same byte in every domain |
//! | [`arena`], [`heap`] | the memory that a domain owns: its layout, and the allocator in it |
//! | [`window`] | the read-only view of a peer's arena, and the translation of what a peer says into a pointer, or a typed error |
//! | [`foreign`](mod@foreign) | memory that somebody outside gives to be read and written, a virtual machine's |
//! | [`memory`] | both together: allocate here, read anywhere |
//! | [`payload`] | a list of segments with whatever keeps their bytes unchanged; slicing and joining never copy |
//! | [`ring`], [`message`] | single-writer rings of 64-byte slots, credit and suppressed doorbells; what a slot says |
//! | [`lane`](mod@lane) | what components use: send a message and lend a payload, receive one and let go of it |
//! | [`wait`], [`waiter`] | one thread, many sources, one sleep |
//! | [`domain`](mod@domain) | this process in its appliance: its lanes, its settings, the deaths of others |
//! | [`heritage`] | what a domain leaves to its successor |
//! | [`platform`], [`conformance`](mod@conformance) | how memory is shared and bells are rung where the domains run, and what every platform has to pass |
//!
//! To write a component, read [`domain::Domain`], [`lane::Lane`], [`memory::Memory`] and [`payload::Payload`];
//! `conn-mgr/examples/request.rs` is a whole appliance in one file. To know why it is right, read
//! `docs/architecture.md`; to write another implementation, `docs/protocol.md`.
//!
//! # A request with a loan, and a reply
//! Here both domains are in one process, which plays their manager; each has an arena of its own and sees the other's
//! through a read-only window.
//!
//! ```
//! use fido_core::{assignment::Transport, message::Head, payload::Payload, testing};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut client, mut server) = testing::lane_pair(8, Transport::Pointer);
//!
//! // The client writes its request into its own arena and lends it. From here on nobody can write these bytes.
//! let mut buf = client.memory().alloc(5)?;
//! buf.as_mut_slice().copy_from_slice(b"hello");
//! client.send(Head { kind: 1, flags: 0, args: [42, 0, 0, 0] }, buf.into_payload())?;
//! client.flush(); // after a batch: rings the server, if it sleeps
//!
//! // The server gets the address, not the bytes. Every segment has been checked: it lies in a window that is there.
//! let Some(Ok((request, payload))) = server.recv() else { panic!("a message is there") };
//! let mut text = [0; 5];
//! server.memory().read_header(&payload, 0, &mut text)?;
//! assert_eq!((request.args[0], &text), (42, b"hello"));
//!
//! // Whoever holds a part of the payload holds the loan; it could be sent on over another lane as it is.
//! assert_eq!(client.loans(), 1);
//! drop(payload);
//!
//! // The return rides on the reply, and the client's buffer is free again.
//! server.send(Head { kind: 2, flags: 0, args: request.args }, Payload::new())?;
//! server.flush();
//! let Some(Ok((reply, _))) = client.recv() else { panic!("the reply is there") };
//! assert_eq!((reply.kind, reply.args[0]), (2, 42));
//! assert_eq!((client.loans(), client.memory().heap().used()), (0, 0));
//! assert_eq!(server.memory().stats().payload_bytes_copied.get(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees, and what not
//! A peer that crashes or goes wild breaks its own lanes: others get typed errors, never a fault, and nobody writes
//! their memory. What was lent to the dead stays untouched until nobody can read it any more. It does not protect
//! secrets: linked domains read each other's arenas. All `unsafe` that can live here does; the rest of the project
//! composes safe interfaces.

#![cfg_attr(loom, allow(dead_code, reason = "only the models use the protocols under loom"))]

pub mod addr;
pub mod alarm;
pub mod arena;
pub mod assignment;
pub mod bell;
mod clock;
pub mod crew;
pub mod dice;
#[cfg(not(loom))]
pub mod foreign;
pub mod heap;
pub mod heritage;
pub mod later;
pub mod memory;
mod migrate;
pub mod packets;
pub mod parity;
pub mod payload;
pub mod platform;
mod poll_set;
pub mod presence;
pub mod ring;
pub mod socket;
pub mod spin;
pub mod stats;
mod sync;
pub mod topology;
pub mod wait;
pub mod waiter;
pub mod window;

#[cfg(not(loom))]
pub mod conformance;
#[cfg(not(loom))]
pub mod domain;
#[cfg(not(loom))]
pub mod fuzzing;
#[cfg(not(loom))]
pub mod lane;
#[cfg(not(loom))]
pub mod message;
#[cfg(not(loom))]
pub mod pool;
#[cfg(not(loom))]
pub mod private;
#[cfg(not(loom))]
pub mod testing;

// Loom's atomics do not fit into shared memory, so there are no lanes under loom: only what the models check.
#[cfg(loom)]
mod lane {
    mod loan;
    mod mailbox;
    pub use loan::PassFence;
}
#[cfg(loom)]
mod domain {
    mod fences;
}
