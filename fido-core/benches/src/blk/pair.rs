//! Who serves the lanes of a pair of processes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use fido_core::waiter::Waiter;
use mmblk::device::{BoxQueue, Device, open_text};
use mmblk::link::back::BackEnd;
use mmblk::queue::Geometry;
use serde::{Deserialize, Serialize};

use super::copying::CopyingBack;
use crate::Failure;
use crate::machine::process_time;
use crate::notified::Events;
use crate::other_side::Control;
use crate::pair::FOLLOWER;
pub use crate::pair::{Pair, memory};

/// The most jobs: so many lanes.
pub const JOBS: usize = 2;
/// How often a serving thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// What the two sides say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Open that device and serve it on all lanes.
    Serve { device: String, copying: bool },
    /// It is open, and like this.
    Serving(Shape),
    /// How much processor time was used so far?
    Cpu,
    /// So much.
    Used(Duration),
    /// That was all.
    Done,
}

/// A [`Geometry`], to be sent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Shape {
    bytes: u64,
    block: u32,
    depth: u32,
}

impl From<Geometry> for Shape {
    fn from(Geometry { bytes, block, depth }: Geometry) -> Self {
        Self { bytes, block, depth }
    }
}

impl From<Shape> for Geometry {
    fn from(Shape { bytes, block, depth }: Shape) -> Self {
        Self { bytes, block, depth }
    }
}

/// The serving side.
pub fn serve(control: &mut Control) -> Result<(), Failure> {
    let mut pair = Pair::meet(control, FOLLOWER, JOBS)?;
    let (Say::Serve { device, copying }, _) = control.hear()? else { return Err("no device to serve".into()) };
    let device = open_text(&device)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lanes, events) = pair.take();
        let mut threads = Vec::new();
        for (lane, events) in lanes.into_iter().zip(events) {
            let queue = device.queue(&pair.memory)?;
            let over = &over;
            threads.push(scope.spawn(move || {
                if copying { serve_copying(lane, events, queue, over) } else { serve_lane(lane, queue, over) }
            }));
        }
        let talked = talk(control, &*device);
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a serving thread panicked")??;
        }
        talked
    })
}

/// Answers the leading side until it is done.
fn talk(control: &mut Control, device: &dyn Device) -> Result<(), Failure> {
    control.say(&Say::Serving(device.geometry().into()), &[])?;
    loop {
        match control.hear()?.0 {
            Say::Cpu => control.say(&Say::Used(process_time()), &[])?,
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}

fn serve_lane(lane: Lane, queue: BoxQueue, over: &AtomicBool) -> Result<(), Failure> {
    let mut back = BackEnd::new(lane, queue)?;
    let mut waiter = Waiter::new(WaitStrategy::Adaptive)?;
    while !over.load(Ordering::Relaxed) {
        if back.poll() {
            waiter.busy();
            continue;
        }
        back.flush();
        waiter.idle(&mut back.sources(), Some(LOOK))?;
    }
    Ok(())
}

fn serve_copying(lane: Lane, events: Events, queue: BoxQueue, over: &AtomicBool) -> Result<(), Failure> {
    let mut back = CopyingBack::new(lane, events, queue);
    let mut waiter = Waiter::new(WaitStrategy::Sleep)?;
    while !over.load(Ordering::Relaxed) {
        if !back.poll()? {
            waiter.idle(&mut back.sources(), Some(LOOK))?;
        }
    }
    Ok(())
}
