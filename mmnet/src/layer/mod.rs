//! Layers: frame ports around a frame port, which spoil or watch what passes. For tests, for demonstrations, and to look at
//! a link in use. A layer is a [`crate::frame::FramePort`] like what it wraps, so layers can be put around layers.
//!
//! | layer | what it does |
//! |---|---|
//! | [`fault::Faulty`] | loses, delays, doubles, reorders and damages frames, reproducibly |

pub mod fault;
