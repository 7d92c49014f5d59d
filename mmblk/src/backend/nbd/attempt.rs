//! Connecting again, on a thread of its own: names are resolved and servers waited for without holding up the queue.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fido_core::bell::{Bell, Ringer};

use super::connect::connect;
use super::{Connected, NbdError};
use crate::nbd::place::Uri;

/// The pauses between two tries: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Desk {
    result: Mutex<Option<Result<Connected, NbdError>>>,
    over: AtomicBool,
    cancelled: AtomicBool,
    bell: Arc<Bell>,
}

/// An attempt to connect. Its thread ends soon after it is dropped.
#[derive(Debug)]
pub(super) struct Attempt(Arc<Desk>);

impl Attempt {
    /// Starts trying, for as long as `patience`; each try takes at most `timeout`. Then `bell` rings.
    ///
    /// # Errors
    /// The system's, if it has no thread left.
    pub(super) fn start(uri: Uri, timeout: Duration, patience: Duration, bell: Arc<Bell>) -> io::Result<Self> {
        let (over, cancelled) = (AtomicBool::new(false), AtomicBool::new(false));
        let desk = Arc::new(Desk { result: Mutex::default(), over, cancelled, bell });
        let attempt = Self(desk.clone());
        std::thread::Builder::new().name("nbd-connect".into()).spawn(move || {
            let result = insist(&desk, &uri, timeout, patience);
            *desk.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            // SYNC: pairs with the acquire load in `is_over`.
            desk.over.store(true, Ordering::Release);
            desk.bell.ring();
        })?;
        Ok(attempt)
    }

    /// Whether there is a result.
    pub(super) fn is_over(&self) -> bool {
        // SYNC: pairs with the release store at the thread's end.
        self.0.over.load(Ordering::Acquire)
    }

    /// The result, once.
    pub(super) fn take(&self) -> Option<Result<Connected, NbdError>> {
        if !self.is_over() {
            return None;
        }
        self.0.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

fn insist(desk: &Desk, uri: &Uri, timeout: Duration, patience: Duration) -> Result<Connected, NbdError> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match connect(uri, timeout) {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        if desk.cancelled.load(Ordering::Relaxed) || Instant::now() + pause >= deadline {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}
