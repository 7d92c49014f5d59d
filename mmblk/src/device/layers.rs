//! The layers around a device: see [`crate::layer`].
//!
//! | kind | options |
//! |---|---|
//! | `trace` | `name`: in the log (the device's description) |
//! | `delay` | `read`, `write`, `flush`, `discard`: a time, or two as in `1ms..5ms` (none); `seed` (0) |
//! | `fault` | `do`: `fail`, `lose`, `tear`, `cut`, `stall` or `die`; `on`: kinds, as in `write+flush` (those that `do` can); `errno` (5, of `fail`); `time` (of `stall`); `chance` (100%); `after` (0); `times` (always); `from`, `to`: bytes (all); `seed` (0) |

use std::sync::Arc;

use fido_core::memory::Memory;

use super::catalogue::open;
use super::description::Description;
use super::options::{Options, chance, spread};
use super::{BoxQueue, Device, OpenError};
use crate::layer::Kind;
use crate::layer::delay::{Delay, Delays};
use crate::layer::fault::{Effect, Fault, Faults, Rule};
use crate::layer::trace::{Sight, Trace};
use crate::queue::{BlockError, Geometry};

type Wrap = Box<dyn Fn(BoxQueue) -> Result<BoxQueue, OpenError> + Send + Sync>;

/// A device whose queues are wrapped.
struct Layered {
    device: Arc<dyn Device>,
    wrap: Wrap,
    name: String,
}

impl std::fmt::Debug for Layered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layered({})", self.name)
    }
}

impl Device for Layered {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        (self.wrap)(self.device.queue(memory)?)
    }

    fn notes(&self) -> Vec<(&'static str, String)> {
        self.device.notes()
    }

    fn refresh(&self) -> Result<(), OpenError> {
        self.device.refresh()
    }
}

/// The layer around the one device that the description names.
fn around(
    layer: &Description,
    wrap: impl Fn(BoxQueue) -> Result<BoxQueue, OpenError> + Send + Sync + 'static,
) -> Result<Arc<dyn Device>, OpenError> {
    let [device] = &layer.members[..] else {
        let found = layer.members.len();
        return Err(OpenError::Members { kind: layer.kind.clone(), needed: "one device", found });
    };
    Ok(Arc::new(Layered { device: open(device)?, wrap: Box::new(wrap), name: layer.to_string() }))
}

pub(super) fn trace(layer: &Description) -> Result<Arc<dyn Device>, OpenError> {
    let mut options = Options::of(layer);
    let name = options.text("name").map_or_else(|| layer.to_string(), str::to_owned);
    options.done()?;
    let sight = Sight::new(name);
    around(layer, move |queue| Ok(Box::new(Trace::new(queue, sight.clone()))))
}

pub(super) fn delay(layer: &Description) -> Result<Arc<dyn Device>, OpenError> {
    let mut options = Options::of(layer);
    let delays = Delays {
        seed: options.number("seed")?.unwrap_or(0),
        read: options.read("read", spread)?.unwrap_or_default(),
        write: options.read("write", spread)?.unwrap_or_default(),
        flush: options.read("flush", spread)?.unwrap_or_default(),
        discard: options.read("discard", spread)?.unwrap_or_default(),
    };
    options.done()?;
    around(layer, move |queue| Ok(Box::new(Delay::new(queue, delays)?)))
}

pub(super) fn fault(layer: &Description) -> Result<Arc<dyn Device>, OpenError> {
    let mut options = Options::of(layer);
    let effect = effect(&mut options)?;
    let all = options.read("on", kinds)?;
    let rule = Rule {
        kinds: all.unwrap_or_else(|| Kind::ALL.to_vec()),
        range: options.size("from")?.unwrap_or(0)..options.size("to")?.unwrap_or(u64::MAX),
        after: options.number("after")?.unwrap_or(0),
        times: options.number("times")?,
        millionths: options.read("chance", chance)?.unwrap_or(1_000_000),
        effect,
    };
    if rule.range.is_empty() {
        return Err(options.error("from, to", "there is nothing between them"));
    }
    let seed = options.number("seed")?.unwrap_or(0);
    options.done()?;
    let faults = Faults::new(seed, vec![rule]);
    around(layer, move |queue| Ok(Box::new(Fault::new(queue, faults.clone())?)))
}

fn effect(options: &mut Options<'_>) -> Result<Effect, OpenError> {
    let (errno, time) = (options.number("errno")?, options.read("time", spread)?);
    let name = options.text("do").ok_or_else(|| options.error("do", "it is missing"))?;
    let effect = match (name, errno, time) {
        ("fail", errno, None) => Effect::Fail(BlockError::Io { errno: errno.unwrap_or(libc::EIO) }),
        ("stall", None, Some(time)) => Effect::Stall(time),
        ("stall", ..) => return Err(options.error("do=stall", "it needs `time`, and no `errno`")),
        ("lose", None, None) => Effect::Lose,
        ("tear", None, None) => Effect::Tear,
        ("cut", None, None) => Effect::Cut,
        ("die", None, None) => Effect::Die,
        ("fail" | "lose" | "tear" | "cut" | "die", ..) => {
            return Err(options.error(format!("do={name}"), "`time` is for `stall`, and `errno` for `fail`"));
        }
        _ => return Err(options.error(format!("do={name}"), "it must be fail, lose, tear, cut, stall or die")),
    };
    Ok(effect)
}

/// Kinds of requests: `write+flush`.
fn kinds(text: &str) -> Result<Vec<Kind>, String> {
    let kind = |name: &str| {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim());
        kind.ok_or_else(|| {
            let known = Kind::ALL.map(Kind::name).join(", ");
            format!("{name:?} is no kind of request; there are {known}")
        })
    };
    text.split('+').map(kind).collect()
}
