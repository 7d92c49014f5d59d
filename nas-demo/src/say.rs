//! Lines on standard output that do no harm when nobody reads them any more.

use std::fmt::Display;
use std::io::Write;

/// Prints a line. A reader that has gone away (`nas-demo --serve | head`) is no reason to stop serving.
pub fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
