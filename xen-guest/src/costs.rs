//! What the primitives of the platform take in a guest: a window, a page mapped or copied, an event channel. For the
//! scenario `costs`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fido_core::bell::{Bell, Ringer};
use fido_core::platform::xen::channel::{Channel, Port};
use fido_core::platform::xen::costs::ForeignPage;
use fido_core::platform::xen::window::{self, Owner};
use fido_core::window::Span;
use rustix::event::{PollFd, PollFlags, Timespec};

/// How long a bell is waited for.
pub const BELL_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// So many copies of a page are timed as one.
const BATCH: u64 = 100;

/// What many rounds of the same took, in nanoseconds. Shown and read as its four numbers with blanks between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The middle one.
    pub median: u64,
    /// All but one of a hundred took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// The sum of all, divided by their number.
    pub mean: u64,
}

impl Spread {
    /// Of these rounds; `None` if there were none.
    #[must_use]
    pub fn of(mut rounds: Vec<u64>) -> Option<Self> {
        rounds.sort_unstable();
        let last = rounds.len().checked_sub(1)?;
        let at = |percent: usize| rounds[(rounds.len() * percent / 100).min(last)];
        let mean = rounds.iter().sum::<u64>() / rounds.len() as u64;
        Some(Self { median: at(50), p99: at(99), max: rounds[last], mean })
    }

    /// Of one of the `count` that each round consisted of.
    #[must_use]
    pub fn each(self, count: u64) -> Self {
        let Self { median, p99, max, mean } = self;
        Self { median: median / count, p99: p99 / count, max: max / count, mean: mean / count }
    }

    /// Reads what [`fmt::Display`] has written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [median, p99, max, mean] = numbers[..] else { return None };
        Some(Self { median, p99, max, mean })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.median, self.p99, self.max, self.mean)
    }
}

/// Does something so many times and notes how long each took.
///
/// # Errors
/// The first that fails ends it.
pub fn time(rounds: u32, mut what: impl FnMut() -> Result<(), String>) -> Result<Spread, String> {
    let mut took = Vec::with_capacity(rounds as usize);
    for _ in 0..rounds {
        let began = Instant::now();
        what()?;
        took.push(began.elapsed().as_nanos() as u64);
    }
    Spread::of(took).ok_or_else(|| "no rounds".into())
}

/// An end of a bell in both directions.
#[derive(Debug)]
pub struct Ends<'a> {
    /// What hears.
    pub channel: &'a Arc<Channel>,
    /// What hears, as a lane has it.
    pub bell: &'a Bell,
    /// What rings the other end.
    pub port: &'a Port,
}

impl Ends<'_> {
    /// Waits until the bell is rung: as lanes do it (`bell`), on the event channel's device alone (`channel`), or without
    /// sleeping (`look`).
    ///
    /// # Errors
    /// A bell that stays silent, or a way that there is not.
    pub fn hear(&self, way: &str) -> Result<(), String> {
        let began = Instant::now();
        let poll = |mut fd: PollFd<'_>| {
            let ready = rustix::event::poll(std::slice::from_mut(&mut fd), Some(&BELL_LIMIT));
            ready.map_err(|errno| errno.to_string()).map(|ready| ready > 0)
        };
        let heard = match way {
            "bell" => {
                let heard = poll(PollFd::new(self.bell, PollFlags::IN))?;
                self.bell.reset();
                heard
            }
            "channel" => poll(PollFd::new(&**self.channel, PollFlags::IN))? && self.channel.take_events(),
            "look" => loop {
                if self.channel.take_events() {
                    break true;
                }
                if began.elapsed().as_secs() > BELL_LIMIT.tv_sec as u64 {
                    break false;
                }
            },
            _ => return Err(format!("nobody hears by {way}")),
        };
        if heard { Ok(()) } else { Err("the bell stays silent".into()) }
    }

    /// Rings and waits for the answer, so many times.
    ///
    /// # Errors
    /// A bell that stays silent.
    pub fn play(&self, way: &str, rounds: u32) -> Result<Spread, String> {
        time(rounds, || {
            self.port.ring();
            self.hear(way)
        })
    }

    /// Answers so many times.
    ///
    /// # Errors
    /// A bell that stays silent.
    pub fn serve(&self, way: &str, rounds: u32) -> Result<(), String> {
        for _ in 0..rounds {
            self.hear(way)?;
            self.port.ring();
        }
        Ok(())
    }
}

/// Nanoseconds to map a window, to read a word of each of its pages, and to unmap it. `owner` must have marked the pages
/// (see [`crate::memory`]).
///
/// # Errors
/// A window that cannot be mapped, or that shows anything else.
pub fn window(owner: Owner, reader: u16, root: u32) -> Result<[u64; 3], String> {
    let began = Instant::now();
    let window = window::granted(owner, reader, root).map_err(|error| error.to_string())?;
    let mapped = began.elapsed();
    let window = Arc::new(window);
    let began = Instant::now();
    let mut first = [0; 8];
    let mut words = Vec::new();
    for offset in (0..window.len()).step_by(4096) {
        Span::of(&window, offset, 8).ok_or("a page beyond the window")?.read(0, &mut first);
        words.push(u64::from_ne_bytes(first));
    }
    let touched = began.elapsed();
    // Every page is the owner's, and in its place.
    let step = words.first().copied().unwrap_or_default();
    if (0u64..).zip(&words).any(|(page, word)| *word != (page * 512 + 1).wrapping_mul(step)) {
        return Err("the window shows other pages than the owner's, or in another order".into());
    }
    let began = Instant::now();
    drop(window);
    Ok([mapped, touched, began.elapsed()].map(|time| time.as_nanos() as u64))
}

/// What it takes to map, read and unmap one page; to let Xen copy it; to copy a page of own memory.
///
/// # Errors
/// Xen's or the kernel's.
pub fn page(domain: u16, root: u32, rounds: u32) -> Result<[Spread; 3], String> {
    let text = |error: fido_core::platform::xen::error::XenError| error.to_string();
    let page = ForeignPage::of(domain, root).map_err(text)?;
    let (mut here, mut there) = (Box::new([0; 4096]), Box::new([0; 4096]));
    page.map_touch_unmap().map_err(text)?;
    let mapped = time(rounds, || page.map_touch_unmap().map(drop).map_err(text))?;
    let copied = time(rounds, || page.copy(&mut here).map_err(text))?;
    // Reading the clock takes longer than one copy.
    let batch = time(rounds, || {
        for _ in 0..BATCH {
            there.copy_from_slice(std::hint::black_box(&here[..]));
            std::hint::black_box(&there);
        }
        Ok(())
    })?;
    Ok([mapped, copied, batch.each(BATCH)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_all_rounds_and_comes_back_from_its_text() {
        assert_eq!(Spread::of(Vec::new()), None);
        let one = Spread { median: 7, p99: 7, max: 7, mean: 7 };
        assert_eq!(Spread::of(vec![7]), Some(one));
        let spread = Spread::of((1..=200).rev().collect()).unwrap();
        assert_eq!(spread, Spread { median: 101, p99: 199, max: 200, mean: 100 });
        assert_eq!(Spread::parse(&spread.to_string()), Some(spread));
        assert_eq!(Spread::parse("1 2 3"), None);
        assert_eq!(Spread::parse("error: no"), None);
    }
}
