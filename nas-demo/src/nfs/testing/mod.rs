//! Test doubles: a port without sockets, a volume without a disk, and a client that speaks through them.

mod client;
mod port;
mod volume;

pub use client::{Rig, call_bytes, reply_words, root};
pub use port::FakePort;
pub use volume::ModelVolume;
