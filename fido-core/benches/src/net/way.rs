//! The ways that connect two domains.

use std::net::{IpAddr, Ipv4Addr};

use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use serde::{Deserialize, Serialize};

use super::carriers::{Fifo, Lending};
use super::frames::Frames;
use super::kernel::Sockets;
use super::messages::Messages;
use super::netperf::{Side, Test};
use super::stack::Stack;
use super::veth;
use crate::Failure;
use crate::notified::{Events, Notified};
use crate::other_side::Control;
use crate::pair::Pair;

/// A way to connect two domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// The kernel's loopback.
    Loop,
    /// A pair of veth devices between two network namespaces.
    Veth,
    /// The model of netfront and netback.
    NetFront,
    /// The model of XenLoop.
    XenLoop,
    /// smoltcp over frames by address.
    MmNet,
    /// Streams by address; the receiver lets go of what it is lent.
    Stream,
    /// The same, and the receiver reads each byte once.
    StreamRead,
    /// Bare frames by address.
    Frames,
}

/// All that play netperf's tests, in the order of the tables.
pub const WAYS: [Way; 7] =
    [Way::Loop, Way::Veth, Way::NetFront, Way::XenLoop, Way::MmNet, Way::Stream, Way::StreamRead];

impl Way {
    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "Loop",
            Self::Veth => "veth",
            Self::NetFront => "NetFront",
            Self::XenLoop => "XenLoop",
            Self::MmNet => "MMNet",
            Self::Stream => "MMNet stream",
            Self::StreamRead => "MMNet stream, read",
            Self::Frames => "link",
        }
    }

    /// Whether there is such a test by this way: a stream has no datagrams.
    pub fn can_play(self, test: Test) -> bool {
        !(test.is_udp() && matches!(self, Self::Stream | Self::StreamRead))
    }

    /// The leading side of it.
    ///
    /// # Errors
    /// If there is no memory, or the other side is gone.
    pub fn lead(self, pair: &mut Pair, control: &mut Control) -> Result<Box<dyn Side>, Failure> {
        match self {
            Self::Loop => Ok(Box::new(Sockets::lead(IpAddr::V4(Ipv4Addr::LOCALHOST), control)?)),
            Self::Veth => Ok(Box::new(veth::lead(control)?)),
            Self::MmNet => Ok(Box::new(Stack::new(lane(pair)?.0, 1)?)),
            Self::Frames => Ok(Box::new(Frames::new(lane(pair)?.0)?)),
            _ => self.by_messages(pair),
        }
    }

    /// The other side of it.
    ///
    /// # Errors
    /// As [`Self::lead`].
    pub fn follow(self, pair: &mut Pair, control: &mut Control) -> Result<Box<dyn Side>, Failure> {
        match self {
            Self::Loop => Ok(Box::new(Sockets::follow(IpAddr::V4(Ipv4Addr::LOCALHOST), control)?)),
            Self::Veth => Ok(Box::new(veth::follow(control)?)),
            Self::MmNet => Ok(Box::new(Stack::new(lane(pair)?.0, 2)?)),
            Self::Frames => Ok(Box::new(Frames::new(lane(pair)?.0)?)),
            _ => self.by_messages(pair),
        }
    }

    fn by_messages(self, pair: &mut Pair) -> Result<Box<dyn Side>, Failure> {
        let memory = pair.memory.clone();
        let (lane, events) = lane(pair)?;
        Ok(match self {
            // What is modelled is driven by interrupts on both sides.
            Self::NetFront => {
                let wire = Notified::new(lane, events);
                Box::new(Messages::new(wire, Fifo::of_pages(memory)?, WaitStrategy::Sleep)?)
            }
            Self::XenLoop => Box::new(Messages::new(lane, Fifo::of_packets(memory)?, WaitStrategy::Adaptive)?),
            _ => {
                let carrier = Lending::new(memory, self == Self::StreamRead);
                Box::new(Messages::new(lane, carrier, WaitStrategy::Adaptive)?)
            }
        })
    }
}

/// The pair's only lane.
fn lane(pair: &mut Pair) -> Result<(Lane, Events), Failure> {
    let (mut lanes, mut events) = pair.take();
    Ok(lanes.pop().zip(events.pop()).ok_or("no lane")?)
}
