//! A guest as dom0 sees it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use xen_guest::boot::EXIT_NODE;

use crate::Failure;
use crate::machine::read_node;

/// A guest that was created.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
}

impl Guest {
    /// A node below its folder `data`, once it exists.
    pub fn wait_for_node(&self, node: &str, limit: Duration) -> Result<String, Failure> {
        let path = format!("/local/domain/{}/{node}", self.id);
        let began = Instant::now();
        loop {
            if let Some(value) = read_node(&path)? {
                return Ok(value);
            }
            if began.elapsed() > limit {
                return Err(format!("guest {} does not write `{node}` within {} s", self.name, limit.as_secs()));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until its program has ended, which must be with exit code 0.
    pub fn wait_for_success(&self, limit: Duration) -> Result<(), Failure> {
        match self.wait_for_node(EXIT_NODE, limit)?.as_str() {
            "exit 0" => Ok(()),
            other => Err(format!("the program in guest {} ended with `{other}`; see its console", self.name)),
        }
    }
}
