//! What must hold when an appliance has come to rest: all that was begun has ended, and everything is back where it
//! belongs.

use super::world::World;

impl World {
    /// Compares the appliance at rest with what it must be.
    pub fn check_rest(&self) -> Result<(), String> {
        let mut wrong = self.ledger.under_way();
        wrong.extend(self.ledger.stale_windows());
        for (index, process) in self.processes.iter().enumerate() {
            let Some(process) = process else {
                wrong.push(format!("domain {index} does not run"));
                continue;
            };
            let id = process.id;
            for port in &process.ports {
                let up = port.lane.as_ref().is_some_and(|lane| lane.is_up());
                let peer = self.processes[port.peer_index].as_ref().map(|peer| peer.id);
                if !up || port.peer != peer {
                    wrong.push(format!("{id} has no session on {}[{}]", port.name, port.number));
                }
            }
            let (loans, quarantined) = process.outstanding();
            let (held, used) = (process.held.len(), process.memory.heap().used());
            if (loans, quarantined, held, used) != (0, 0, 0, 0) {
                wrong.push(format!(
                    "{id} has {loans} loans out, {quarantined} in quarantine, {held} held, {used} bytes in use"
                ));
            }
            if process.quota > 0 {
                wrong.push(format!("{id} still has {} messages to send", process.quota));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("at rest, but {}", wrong.join("; "))) }
    }

    /// Where everybody is, for a message.
    pub fn describe(&self) -> String {
        let describe = |process: &super::process::Process| {
            let (loans, quarantined) = process.outstanding();
            let (held, quota) = (process.held.len(), process.quota);
            format!(
                "{} {:?} {loans} loans {quarantined} quarantined {held} held {quota} to send",
                process.id, process.pace
            )
        };
        self.processes.iter().flatten().map(describe).collect::<Vec<_>>().join("; ")
    }
}
