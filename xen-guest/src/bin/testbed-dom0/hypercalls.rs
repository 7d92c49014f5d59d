//! The hypervisor's own count of what two guests call it for while they exchange messages (scenario `ring`).

use std::fs;
use std::time::Duration;

use conn_mgr::manager::{Manager, Status};
use xen_guest::pace;
use xen_guest::report::Kind;
use xen_guest::steady::{MARKS, PHASE, PHASES};
use xen_guest::trace::{self, EVENT_CHANNEL_OP, Entries, XEN_VERSION};

use crate::machine::{Machine, TOOLS, command};
use crate::{Failure, Reporter};

/// How long Xen is listened to, in seconds; less than a phase lasts.
const SECONDS: u32 = 2;
/// How often a phase is tried that was over before the count was: the machine may be slow.
const ATTEMPTS: u32 = 4;
/// How long the next phase may take to begin.
const PHASE_LIMIT: Duration = Duration::from_secs(60);
/// The hypervisor's buffers, in pages for each processor.
const BUFFER: &str = "256";
const TRACE: &str = "/tmp/trace";
/// More calls for a message than this, and the data path is not free of them. What two counts differ by chance is less.
const NONE: f64 = 0.01;
/// Fewer calls for a question that makes one than this, and the count does not count.
const ONE: f64 = 0.5;

/// What the guests did in a phase.
struct Row {
    phase: &'static str,
    /// Questions that ping asked in a second.
    questions: f64,
    /// What the processors of ping, pong and idle came into Xen for, in `SECONDS`.
    entries: [Entries; 3],
}

impl Row {
    /// A guest's hypercalls in a second.
    fn calls(&self, guest: usize) -> f64 {
        each(self.entries[guest].hypercalls())
    }
}

fn each(count: u64) -> f64 {
    count as f64 / f64::from(SECONDS)
}

/// Counts in each phase. The guests must be alone on the processors 1, 2 and 3.
pub fn count(manager: &Manager, machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    if machine.processors() < 4 {
        return Err("what each guest calls Xen for can only be counted on a machine of four processors".to_owned());
    }
    let mut rows = Vec::new();
    for (phase, mark) in PHASES.into_iter().zip(MARKS) {
        let entries = one(manager, phase)?;
        let questions = if phase == PHASES[0] { 0 } else { entries[0].of(EVENT_CHANNEL_OP) * u64::from(mark) };
        rows.push(Row { phase, questions: each(questions), entries });
        reporter.send(Kind::Note, "ring", format!("Xen's calls counted: {phase}").as_bytes())?;
    }
    let mut table = "phase,guest,messages_per_s,hypercalls_per_s,entries_per_s\n".to_owned();
    for row in &rows {
        for (number, guest) in pace::ROLES.iter().enumerate() {
            let (messages, calls, all) = (row.questions * 2.0, row.calls(number), each(row.entries[number].all));
            table.push_str(&format!("{},{guest},{messages:.0},{calls:.1},{all:.1}\n", row.phase));
        }
    }
    reporter.send(Kind::File, "hypercalls.csv", table.as_bytes())?;
    judge(&rows)
}

/// How many calls a message costs, beyond those of guests that only look. A question and its answer are two messages.
fn judge(rows: &[Row]) -> Result<String, Failure> {
    let [quiet, messages, calls] = rows else { return Err("not every phase has been counted".to_owned()) };
    if messages.questions == 0.0 || calls.questions == 0.0 {
        return Err("no message came through while Xen's calls were counted".to_owned());
    }
    let [ping, pong] = [0, 1].map(|guest| (messages.calls(guest) - quiet.calls(guest)) / (2.0 * messages.questions));
    let control = each(calls.entries[0].of(XEN_VERSION)) / calls.questions;
    let found = format!(
        "Xen counts {ping:.5} and {pong:.5} hypercalls per message at {:.0} messages/s, beyond {:.0}/s and {:.0}/s \
         without messages (an idle guest {:.0}/s; {control:.2} per question that makes one)",
        2.0 * messages.questions,
        quiet.calls(0),
        quiet.calls(1),
        messages.calls(2)
    );
    if control < ONE {
        return Err(format!("Xen's count misses calls: {found}"));
    }
    if ping > NONE || pong > NONE { Err(format!("the data path calls Xen: {found}")) } else { Ok(found) }
}

/// Waits for a phase, and counts within it. One that has begun will do at first: it is seen whether it was over too soon.
fn one(manager: &Manager, phase: &str) -> Result<[Entries; 3], Failure> {
    let mut seen = String::new();
    for _ in 0..ATTEMPTS {
        let begins = |status: &Status| {
            let now = note(status, PHASE);
            now != seen && now.ends_with(phase)
        };
        if !manager.wait_until(PHASE_LIMIT, begins) {
            return Err(format!(
                "ping does not come to the phase `{phase}`: {}",
                crate::appliance::problems(&manager.status())
            ));
        }
        let begun = note(&manager.status(), PHASE);
        let entries = listen()?;
        seen = note(&manager.status(), PHASE);
        if seen == begun {
            return Ok(entries);
        }
    }
    Err(format!("the machine is too slow: the phase `{phase}` was always over before {SECONDS} s were counted"))
}

fn note(status: &Status, name: &str) -> String {
    let notes = status.domain(pace::ROLES[0]).map(|ping| &ping.notes);
    notes.and_then(|notes| notes.get(name)).cloned().unwrap_or_default()
}

/// What the processors 1, 2 and 3 come into Xen for within `SECONDS`.
fn listen() -> Result<[Entries; 3], Failure> {
    let program = format!("{TOOLS}/xentrace");
    let seconds = SECONDS.to_string();
    command(&program, &["-D", "-e", trace::EVENTS, "-c", "0xe", "-S", BUFFER, "-T", &seconds, TRACE])?;
    let bytes = fs::read(TRACE).map_err(|error| format!("{TRACE}: {error}"))?;
    let _ = fs::remove_file(TRACE);
    let found = trace::count(&bytes).map_err(|error| error.to_string())?;
    Ok([1, 2, 3].map(|processor| found.get(&processor).cloned().unwrap_or_default()))
}
