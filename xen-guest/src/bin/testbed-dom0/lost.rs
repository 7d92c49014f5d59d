//! The scenario `lost`: xenstored is killed under a running NAS. What is linked must go on, end to end, and the manager
//! say what has happened and what to do, and end when it is told to.
//!
//! xenstored cannot be started again, and without it the toolstack can do nothing: this is the last scenario that a
//! machine plays.

use std::fs;
use std::time::Duration;

use xen_guest::report::Kind;

use crate::fidod::Fidod;
use crate::machine::Machine;
use crate::nas::{self, Disk, FILE_BYTES, IN, READY_LIMIT};
use crate::{Failure, Reporter};

/// How long `fidod` may take to notice.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end: it tries to destroy each guest, which `xl` cannot do any more.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Plays it.
pub fn run(machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let _disk = Disk::attach()?;
    let mut note = |text: &str| reporter.send(Kind::Note, "lost", text.as_bytes());
    let mut manager = Fidod::start("lost", "nas", &nas::manifest(machine))?;
    manager.wait_ready(READY_LIMIT)?;
    let bytes = nas::noise(FILE_BYTES);
    fs::write(IN, &bytes).map_err(|error| format!("{IN}: {error}"))?;
    nas::copy(IN, &nas::url("before"))?;
    machine.kill_store()?;
    manager.wait_said("xenstored is gone", NOTICE_LIMIT)?;
    manager.wait_said("what is linked goes on", NOTICE_LIMIT)?;
    note("xenstored is killed, and fidod says so")?;
    nas::same("before", &bytes)?;
    nas::copy(IN, &nas::url("after"))?;
    nas::same("after", &bytes)?;
    note("three guests go on: copied in and out over all of them, the same")?;
    // What could not be destroyed is said, guest by guest.
    manager.end(END_LIMIT, 1, "leaves behind")?;
    Ok("without xenstored the NAS went on; fidod said what to do, and ended".to_owned())
}
