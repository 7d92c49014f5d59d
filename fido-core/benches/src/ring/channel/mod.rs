//! Everything that can carry a message of 60 bytes to the other side and back, under one trait, so that each question
//! is asked of all of them in the same words.

mod fido;
mod foreign;
#[cfg(feature = "iceoryx2")]
pub mod iceoryx;
mod kernel;
pub mod threads;

use fido_core::ring::Words;
use serde::{Deserialize, Serialize};

use super::end::End;
use super::monitor::{Monitor, Mwaitx, Tpause, Umwait};
use super::spin::{Busy, Pause};
use crate::Failure;
pub use fido::{receive, send};
pub use foreign::Positions;

/// Carries messages to the other side and from it, in order.
pub trait Channel {
    /// Sends a message; waits while there is no room. The other side sees it at the latest after [`Channel::flush`].
    fn send(&mut self, message: &Words) -> Result<(), Failure>;

    /// Ends a batch of messages.
    fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Waits for the next message.
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure>;
}

/// What is to be done with a channel, whichever it is.
pub trait Duty {
    /// Does it.
    fn perform<C: Channel>(self, channel: &mut C) -> Result<(), Failure>;
}

/// How a spinning side waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// It looks again at once.
    Busy,
    /// With the hint for spin loops.
    Pause,
    /// By an instruction that watches the cache line.
    Monitor(Monitor),
}

impl Wait {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "no pause",
            Self::Pause => "pause",
            Self::Monitor(monitor) => monitor.name(),
        }
    }
}

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// Each side writes a word when it has seen the other's: two cache lines change hands and nothing else is done.
    /// For one message at a time.
    Floor(Wait),
    /// Fido's bare ring.
    Ring(Wait),
    /// A lane, with empty payload.
    Lane,
    /// A lane; what the leading side sends lends 4 KiB.
    Loan,
    /// A ring with a flag in each slot, which the consumer clears.
    Flagged(Wait),
    /// A ring with shared indices.
    Indexed,
    /// `rtrb` between two threads of the leading side, a message at a time.
    Rtrb,
    /// The same, a batch at a time.
    RtrbChunks,
    /// Fido's ring between two threads of the leading side.
    RingThreads,
    /// `iceoryx2`, publish-subscribe, polled.
    Iceoryx,
    /// A Unix socket for packets.
    Socket,
    /// Two pipes.
    Pipe,
    /// Loopback TCP.
    Tcp,
    /// Two eventfds: no message, only waking.
    Event,
    /// Two futexes: no message, only waking.
    Futex,
}

impl Via {
    /// For tables.
    pub fn name(self) -> String {
        let with =
            |name: &str, wait| if wait == Wait::Busy { name.into() } else { format!("{name}, {}", Wait::name(wait)) };
        match self {
            Self::Floor(wait) => with("two cache lines: the floor", wait),
            Self::Ring(wait) => with("Fido ring", wait),
            Self::Lane => "Fido lane".into(),
            Self::Loan => "Fido lane with a 4 KiB loan".into(),
            Self::Flagged(wait) => with("ring with flags (Fip-see's way)", wait),
            Self::Indexed => "ring with shared indices".into(),
            Self::Rtrb => "rtrb, two threads".into(),
            Self::RtrbChunks => "rtrb by chunks, two threads".into(),
            Self::RingThreads => "Fido ring, two threads".into(),
            Self::Iceoryx => "iceoryx2, polled".into(),
            Self::Socket => "Unix socket, packets".into(),
            Self::Pipe => "pipes".into(),
            Self::Tcp => "TCP over loopback".into(),
            Self::Event => "eventfd".into(),
            Self::Futex => "futex".into(),
        }
    }

    /// Why it cannot be had here, or nothing if it can.
    pub fn absent(self) -> Option<&'static str> {
        match self {
            Self::Floor(Wait::Monitor(monitor))
            | Self::Ring(Wait::Monitor(monitor))
            | Self::Flagged(Wait::Monitor(monitor)) => monitor.absent(),
            Self::Iceoryx if cfg!(not(feature = "iceoryx2")) => {
                Some("not built in: add `--features iceoryx2` to cargo's command line (needs libclang)")
            }
            _ => None,
        }
    }

    /// Whether both ends are threads of the leading side.
    pub fn is_local(self) -> bool {
        matches!(self, Self::Rtrb | Self::RtrbChunks | Self::RingThreads)
    }

    /// Whether it takes the kernel, which is slow and wakes sleepers: fewer messages will do.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Socket | Self::Pipe | Self::Tcp | Self::Event | Self::Futex)
    }
}

/// Does a duty over a channel between the two processes.
pub fn with<D: Duty>(via: Via, end: &mut End, duty: D) -> Result<(), Failure> {
    if let Some(why) = via.absent() {
        return Err(format!("{}: {why}", via.name()).into());
    }
    /// The channel with the way of waiting as its type.
    macro_rules! waiting {
        ($wait:expr, $channel:path) => {{
            use $channel as Of;
            match $wait {
                Wait::Busy => duty.perform(&mut Of::<Busy>::new(end)),
                Wait::Pause => duty.perform(&mut Of::<Pause>::new(end)),
                Wait::Monitor(Monitor::Umwait) => duty.perform(&mut Of::<Umwait>::new(end)),
                Wait::Monitor(Monitor::Tpause) => duty.perform(&mut Of::<Tpause>::new(end)),
                Wait::Monitor(Monitor::Mwaitx) => duty.perform(&mut Of::<Mwaitx>::new(end)),
            }
        }};
    }
    match via {
        Via::Floor(wait) => waiting!(wait, fido::Floor),
        Via::Ring(wait) => waiting!(wait, fido::Ring),
        Via::Lane => duty.perform(&mut fido::Lane::new(end)?),
        Via::Loan => duty.perform(&mut fido::Lending::new(end)?),
        Via::Flagged(wait) => waiting!(wait, foreign::Flagged),
        Via::Indexed => duty.perform(&mut foreign::Indexed::new(end)),
        Via::Socket => duty.perform(&mut kernel::Socket::new(end)),
        Via::Pipe => duty.perform(&mut kernel::Bytes::pipe(end)),
        Via::Tcp => duty.perform(&mut kernel::Bytes::tcp(end)),
        Via::Event => duty.perform(&mut kernel::Event::new(end)),
        Via::Futex => duty.perform(&mut kernel::Futex::new(end)),
        #[cfg(feature = "iceoryx2")]
        Via::Iceoryx => duty.perform(iceoryx::Ports::of(end)?),
        #[cfg(not(feature = "iceoryx2"))]
        Via::Iceoryx => Ok(()),
        Via::Rtrb | Via::RtrbChunks | Via::RingThreads => Err(format!("{} has no other process", via.name()).into()),
    }
}
