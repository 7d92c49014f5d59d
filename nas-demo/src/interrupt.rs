//! Ctrl-C as something to ask for, so that a job that is interrupted leaves nothing behind.

use std::cell::Cell;
use std::io;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use conn_mgr::signals;

/// The user wants it to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether `SIGINT`, `SIGTERM` or `SIGHUP` has come.
#[derive(Debug)]
pub struct Interrupt {
    signals: Receiver<()>,
    came: Cell<bool>,
}

impl Interrupt {
    /// Takes the signals over. Call it before any thread is started.
    ///
    /// # Errors
    /// The system's.
    pub fn watch() -> io::Result<Self> {
        let (sender, signals) = mpsc::channel();
        signals::watch(sender)?;
        Ok(Self { signals, came: Cell::new(false) })
    }

    /// Whether one has come by now.
    pub fn came(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for one, so long at most; whether one has come by then.
    pub fn wait(&self, limit: Duration) -> bool {
        if !self.came.get() && self.signals.recv_timeout(limit).is_ok() {
            self.came.set(true);
        }
        self.came.get()
    }

    /// To stop at once if one has come.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.came() { Err(Interrupted) } else { Ok(()) }
    }
}
