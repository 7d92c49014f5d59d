//! How much memory calls and their replies keep in use, per connection and in all.
//!
//! A [`Permit`] counts for a call from its beginning until the last byte of its reply is no longer needed, in whatever
//! queue that is: it travels on as part of the reply's hold. So a client that asks for much and reads slowly is
//! stopped by its own connection's meter, and does not exhaust the memory that others need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fido_core::payload::Payload;

/// Counts bytes in use. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes that count as in use while this lives.
#[derive(Debug)]
pub struct Permit {
    bytes: u64,
    meters: [Meter; 2],
}

impl Permit {
    /// Counts `bytes` on a connection's meter and on everybody's.
    pub fn new(bytes: u64, connection: &Meter, all: &Meter) -> Self {
        let meters = [connection.clone(), all.clone()];
        for meter in &meters {
            // Relaxed: only the sums matter, no other memory is published by them.
            meter.0.fetch_add(bytes, Ordering::Relaxed);
        }
        Self { bytes, meters }
    }

    /// Makes the permit live as long as the last byte of `payload` is held. (Bytes are let go in order.)
    pub fn ride(self, mut payload: Payload) -> Payload {
        let Some(last) = payload.parts().last() else {
            return payload;
        };
        let before = payload.len() - u64::from(last.segment.len);
        let mut whole = payload.split_to(before);
        if let Some(last) = payload.parts().first() {
            whole.push(last.segment, Some(Arc::new((last.hold.clone(), self))));
        }
        whole
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for meter in &self.meters {
            meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::addr::{GlobalAddr, Segment};

    #[test]
    fn a_permit_ends_with_the_last_byte_of_its_payload() {
        let (mine, all) = (Meter::default(), Meter::default());
        let other = Permit::new(1, &Meter::default(), &all);
        let mut payload = Payload::new();
        for i in 0..3 {
            payload.push(Segment::new(GlobalAddr::from_bits(i << 20), 10), None);
        }
        let mut payload = Permit::new(30, &mine, &all).ride(payload);
        assert_eq!((payload.len(), mine.used(), all.used()), (30, 30, 31));
        drop(payload.split_to(29));
        assert_eq!(mine.used(), 30);
        drop(payload);
        assert_eq!((mine.used(), all.used()), (0, 1));
        drop(other);
        assert_eq!(all.used(), 0);
    }
}
