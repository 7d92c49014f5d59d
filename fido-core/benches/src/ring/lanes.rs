//! One link with several lanes, driven by as many threads on each side as there are cores for.

use fido_core::lane::Lane;
use fido_core::message::Head;
use fido_core::payload::Payload;
use serde::{Deserialize, Serialize};

use super::channel;
use super::end::{End, LANES, Side};
use super::spin::spin;
use crate::{Failure, machine};

/// Messages between two flushes of a lane.
const BATCH: u32 = 16;

/// So many messages over so many lanes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Lanes {
    /// How many of the link's lanes; a power of two.
    pub lanes: usize,
    /// Threads on each side.
    pub threads: usize,
    /// Messages, over all lanes.
    pub count: u32,
}

impl Lanes {
    /// With as many threads as there are lanes and, of so many, cores for.
    pub fn new(lanes: usize, cores: usize, count: u32) -> Self {
        let pairs = (cores / 2).max(1);
        // A power of two, so that each thread has as many lanes.
        Self { lanes, threads: lanes.min(1 << pairs.ilog2()), count }
    }

    /// Sends everything, and waits for word that it has arrived.
    pub fn lead(self, end: &mut End) -> Result<(), Failure> {
        self.shared_out(end, |share, each| {
            for _ in 0..each / BATCH {
                for one in share.iter_mut() {
                    for number in 0..BATCH {
                        channel::send(one, head(number), Payload::new())?;
                    }
                    one.flush();
                }
            }
            share.iter_mut().try_for_each(|one| channel::receive(one).map(drop))
        })
    }

    /// Receives everything, from whichever lane has something, and says so.
    pub fn follow(self, end: &mut End) -> Result<(), Failure> {
        self.shared_out(end, |share, each| {
            let mut left = (each / BATCH * BATCH) as usize * share.len();
            while left > 0 {
                left -= spin("messages", || drain(share).transpose())??;
            }
            for one in share.iter_mut() {
                channel::send(one, head(0), Payload::new())?;
                one.flush();
            }
            Ok(())
        })
    }

    /// Has each thread do its share: lanes, and how many messages for each of them.
    fn shared_out(
        self,
        end: &mut End,
        part: impl Fn(&mut [Lane], u32) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let each = self.count / self.lanes as u32;
        let side = end.side;
        let lanes = &mut end.lanes[..self.lanes.min(LANES)];
        if self.threads == 1 {
            return part(lanes, each);
        }
        let cores = &end.allowed;
        std::thread::scope(|scope| {
            let part = &part;
            let threads: Vec<_> = lanes
                .chunks_mut((self.lanes / self.threads).max(1))
                .enumerate()
                .map(|(index, share)| {
                    let core = cores.get(2 * index + usize::from(side == Side::Follow)).copied();
                    scope.spawn(move || machine::pin(core).and_then(|()| part(share, each)))
                })
                .collect();
            let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
            ends.collect()
        })
    }
}

fn head(number: u32) -> Head {
    Head { kind: 1, flags: 0, args: [number, 0, 0, 0] }
}

/// Takes what is there; how many messages, if any.
fn drain(lanes: &mut [Lane]) -> Result<Option<usize>, Failure> {
    let mut count = 0;
    for one in lanes {
        for _ in 0..BATCH {
            match one.recv() {
                Some(Ok(_)) => count += 1,
                Some(Err(refusal)) => return Err(refusal.error.into()),
                None => break,
            }
        }
    }
    Ok((count > 0).then_some(count))
}
