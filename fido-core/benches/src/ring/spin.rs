//! Waiting for the other side without sleeping: bounded, and with or without the instructions that make a spinning
//! core considerate.

use std::time::{Duration, Instant};

use crate::Failure;

/// How long one side waits for the other before it takes it for dead.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a core does between two looks at a word.
pub trait Relax {
    /// Whether [`Relax::watch`] does anything.
    const WATCHES: bool = false;

    /// Begins to watch the cache line; a look follows.
    fn watch(_line: *const u8) {}

    /// Whiles away the time until the next look.
    fn relax() {}
}

/// Looks again at once.
pub struct Busy;

impl Relax for Busy {}

/// The processor's hint for spin loops (`pause` on x86).
pub struct Pause;

impl Relax for Pause {
    fn relax() {
        std::hint::spin_loop();
    }
}

/// Looks until there is something in `line`.
///
/// # Errors
/// If there is nothing for [`PATIENCE`].
#[inline]
pub fn until<R: Relax, T>(what: &str, line: *const u8, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    /// So many looks between two looks at the clock.
    const ROUNDS: u32 = 1 << 16;
    let mut since = None;
    loop {
        for _ in 0..ROUNDS {
            if let Some(found) = look() {
                return Ok(found);
            }
            if R::WATCHES {
                R::watch(line);
                if let Some(found) = look() {
                    return Ok(found);
                }
            }
            R::relax();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(gone(what));
        }
        // On a single core the other side needs ours.
        std::thread::yield_now();
    }
}

#[cold]
fn gone(what: &str) -> Failure {
    format!("the other side is gone or stuck: no {what} for {PATIENCE:?}").into()
}

/// Looks until there is something, at once again and again.
///
/// # Errors
/// As [`until`].
#[inline]
pub fn spin<T>(what: &str, look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    until::<Busy, T>(what, std::ptr::null(), look)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_what_it_finds() {
        let mut looks = 0;
        let found = until::<Pause, _>("x", std::ptr::null(), || {
            looks += 1;
            (looks == 200_000).then_some(7)
        });
        assert_eq!(found.expect("it is there"), 7);
    }
}
