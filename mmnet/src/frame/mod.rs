//! Ethernet frames by address.
//!
//! A [`Frame`] is a payload, whose header and data may lie in different segments and in different domains' arenas, and
//! its [`Offload`]: what is still to be done to it before it leaves the appliance. Frames come and go through a
//! [`FramePort`]: a [`FrameLink`] to another domain, or any other device. Whoever uses a port cannot tell which it is.

mod bundle;
pub mod flow;
mod link;
mod offload;
mod port;
mod queues;

pub use flow::flow_hash;
pub use link::FrameLink;
pub use offload::{Checksum, Offload, OffloadError, Segmentation, SegmentationKind, VIRTIO_HEADER_BYTES, VirtioHeader};
pub use port::{
    Frame, FrameCounts, FrameError, FramePort, HEADER_BYTES, MAX_FRAME_BYTES, MAX_MTU, MIN_MTU, QUEUE, TAG_BYTES,
};
pub(crate) use port::{check, lies_in};
pub use queues::{FrameQueues, TURN};
