//! Counters of a domain: kept in its arena's header, so that the manager reads them through the window it has
//! anyway, at no cost to the domain.
//!
//! Each counter has one writing domain; within it several threads may add. Values only rise and wrap at 2^64.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a domain counts. All-zero bytes are a valid start.
        #[repr(C)]
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        /// The values of [`Stats`] at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct Snapshot {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Stats {
            /// The values now. Counters move on while this reads: they are not of one instant.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl Snapshot {
            /// What was counted since `before`.
            pub fn since(&self, before: &Self) -> Self {
                Self { $($name: self.$name.wrapping_sub(before.$name),)+ }
            }

            /// The sum of two domains' counts.
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }
        }
    };
}

counters! {
    /// Messages published in rings.
    messages_sent,
    /// Messages taken from rings.
    messages_received,
    /// Doorbells rung: the peer was asleep.
    bells_rung,
    /// Doorbells not rung, because the peer was awake.
    bells_suppressed,
    /// Times a thread of this domain went to sleep in a waiter.
    sleeps,
    /// Payload bytes that a component asked to move (the base of "copies per byte").
    payload_bytes,
    /// Payload bytes copied in user space.
    payload_bytes_copied,
    /// Bytes of headers and metadata copied out of shared memory in order to parse them.
    header_bytes_copied,
    /// System calls made by the data path, by this project's own count.
    syscalls,
    /// Loans given to peers.
    loans_given,
    /// Loans that came back.
    loans_returned,
    /// Allegations of peers that were refused: wild addresses, unknown tags, malformed messages.
    refusals,
    /// Times a thread of this domain went to another processor, away from a peer on the same one.
    moves,
}

/// One count.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
