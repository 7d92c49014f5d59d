//! What the end-to-end tests share: a server under test, the clients, data to send, and limits on every wait.

pub mod command;
pub mod data;
pub mod ledger;
pub mod server;

use std::time::{Duration, Instant};

/// Waits until `done` says so.
///
/// # Panics
/// If it has not after `limit`; `what` says what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
