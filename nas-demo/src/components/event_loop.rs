//! The loop of every component: poll, and wait when there was nothing to do.

use std::error::Error;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::domain::{Domain, Notice};
use fido_core::wait::Source;

/// How long a component may take to finish what is under way when it is told to end.
const FINISH: Duration = Duration::from_secs(5);
/// How often a component that is finishing is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// What a component does in its loop.
pub trait Component {
    /// Moves everything along; whether there was anything to do. Never blocks.
    fn poll(&mut self) -> bool;

    /// Hands on what is queued. Called before waiting.
    fn flush(&mut self);

    /// What to wait for.
    fn sources(&mut self) -> Vec<&mut dyn Source>;

    /// The longest wait that is right, if not for ever.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// A domain whose arena this one may read is dead.
    fn died(&mut self, _dead: DomainId) {}

    /// Takes on nothing new, and begins to finish what is under way.
    fn finish(&mut self) {}

    /// Whether everything is finished.
    fn is_finished(&self) -> bool {
        true
    }
}

/// Runs a component until the manager tells it to end and it has finished, or its time for that is up.
///
/// # Errors
/// The kernel's, if there is nothing to wait with.
pub fn run(domain: &Domain, mut component: impl Component) -> Result<(), Box<dyn Error>> {
    let mut notices = domain.notices()?;
    let mut waiter = domain.waiter()?;
    let mut deadline = None;
    loop {
        let mut busy = component.poll();
        while let Some(notice) = notices.poll() {
            busy = true;
            match notice {
                Notice::Died(dead) => component.died(dead),
                Notice::Shutdown => {
                    component.finish();
                    deadline.get_or_insert_with(|| Instant::now() + FINISH);
                }
            }
        }
        if busy {
            waiter.busy();
            continue;
        }
        component.flush();
        if let Some(deadline) = deadline
            && (component.is_finished() || Instant::now() >= deadline)
        {
            return Ok(());
        }
        let timeout = if deadline.is_some() { Some(GLANCE) } else { component.timeout() };
        let mut sources = component.sources();
        sources.push(&mut notices);
        waiter.idle(&mut sources, timeout)?;
    }
}
