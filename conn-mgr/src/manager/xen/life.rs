//! How guests are made and how they end. `xl` is asked, one command per guest at a time; that a guest is gone is seen in
//! xenstore: its nodes go with it.

use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::xen::layout::LayoutError;
use fido_core::platform::xen::store::{Code, Store, StoreError};

use super::super::carrier::{Gone, Heritage, Left, What};
use super::super::topology::Index;
use super::guest::{Exit, Guest, Home, Step};
use super::vault;
use super::xl::{self, Condition, INPUT, LIMIT, LIMIT_ALONE};
use super::{XenCarrier, is_under_way};
use crate::xen::config;

/// The pause after an attempt to destroy a guest that has failed.
const RETRY: Duration = Duration::from_secs(1);
/// How the identity of every guest begins that a manager has made.
pub(super) const UUID_PREFIX: &str = "f1d0f1d0-";

impl XenCarrier {
    /// Has a guest created.
    pub(super) fn create(&mut self, index: Index, id: DomainId, heritage: Option<Heritage>) -> Result<(), String> {
        if let Some(problem) = &self.lost {
            return Err(problem.clone());
        }
        let text = config::of_domain(&self.manifest, index).ok_or("there is no such domain")?;
        self.starts = self.starts.wrapping_add(1);
        let uuid = uuid(id, self.starts);
        let text = format!("{text}uuid = \"{uuid}\"\n");
        // Without a daemon of xl for each guest: to see what becomes of it is the manager's own task.
        let command = self.xl.begin(&["create", "-e", "-q", INPUT], &text)?;
        if let Some(place) = self.guests.get_mut(index) {
            *place = Some(Guest::new(id, uuid, command, heritage));
        }
        Ok(())
    }

    /// Acts on a command that has ended; whether one has.
    pub(super) fn follow_command(&mut self, index: Index, now: Instant) -> bool {
        let Some(guest) = self.at(index) else { return false };
        let Some((step, running)) = guest.command.as_mut() else { return false };
        let (step, Some(result)) = (*step, running.result(now)) else { return false };
        guest.command = None;
        match step {
            Step::Create => self.created(index, result),
            Step::Destroy => self.destroyed(index, result),
        }
        true
    }

    fn created(&mut self, index: Index, result: Result<String, String>) {
        let Some(guest) = self.at(index) else { return };
        let (id, uuid) = (guest.id, guest.uuid.clone());
        match (find(&self.store, &uuid), result) {
            (Err(error), result) => {
                self.lose_store(&error);
                let how = result.err().unwrap_or_else(|| error.to_string());
                self.bury(index, Gone { how, ..gave_up() });
            }
            (Ok(None), Err(how)) => self.bury(index, Gone { how, ..gave_up() }),
            (Ok(None), Ok(_)) => {
                let how = "xl says that it has created it, but it is not in xenstore".into();
                self.bury(index, Gone { how, ..gave_up() });
            }
            (Ok(Some(place)), result) => {
                let domain = place.domain;
                if let Some(guest) = self.at(index) {
                    guest.place = Some(place);
                    guest.failed = result.err();
                    guest.is_doomed |= guest.failed.is_some();
                }
                self.report(id, What::Guest(domain));
                self.begin(index, id);
            }
        }
    }

    /// A guest is there: it is welcomed, unless it is to be destroyed already.
    fn begin(&mut self, index: Index, id: DomainId) {
        let watched = self.watch(index);
        if self.at(index).is_some_and(|guest| guest.is_doomed) {
            return self.doom(id);
        }
        match watched.map_err(LayoutError::from).and_then(|()| self.welcome(index)) {
            Ok(()) => self.pair(index),
            Err(LayoutError::Store(error)) if error.code().is_none() => self.lose_store(&error),
            Err(error) => self.report(id, What::Fault(format!("it cannot be told what it is to be: {error}"))),
        }
    }

    /// Kills a guest, which is not heard from now on.
    pub(super) fn condemn(&mut self, id: DomainId) {
        if let Some(guest) = self.of(id) {
            guest.is_killed = true;
        }
        self.doom(id);
    }

    /// Has a guest destroyed, now or as soon as `xl` is done with creating it.
    pub(super) fn doom(&mut self, id: DomainId) {
        let xl = self.xl.clone();
        let limit = if self.lost.is_none() { LIMIT } else { LIMIT_ALONE };
        let Some(guest) = self.of(id) else { return };
        guest.is_doomed = true;
        guest.retry_at = None;
        let Some(place) = guest.place.as_ref().filter(|_| guest.command.is_none()) else { return };
        match xl.begin_within(&["destroy", &place.domain.to_string()], "", limit) {
            Ok(running) => guest.command = Some((Step::Destroy, running)),
            Err(problem) => failed(guest, &problem),
        }
    }

    fn destroyed(&mut self, index: Index, result: Result<String, String>) {
        let Some(guest) = self.at(index) else { return };
        match &result {
            // Its nodes say whether it is gone.
            Ok(_) => guest.retry_at = Some(Instant::now() + RETRY),
            Err(problem) => failed(guest, problem),
        }
        guest.is_news = true;
        guest.rest_until = None;
        let number = guest.place.as_ref().map_or(0, |place| place.domain);
        if self.lost.is_none() {
            return;
        }
        // Nobody can say any more whether it is gone, and a second attempt would fail like the first.
        if let Err(problem) = result {
            let name = self.name(index).to_owned();
            tracing::error!(
                domain = name,
                guest = number,
                problem,
                "a guest is left behind: without xenstored it cannot be destroyed; reboot the host"
            );
            self.left_behind.push(name);
        }
        self.gone(index);
    }

    /// Tries again to destroy what is still there.
    pub(super) fn retry(&mut self, index: Index, now: Instant) -> bool {
        let Some(guest) = self.at(index) else { return false };
        if guest.retry_at.is_none_or(|at| at > now) || guest.command.is_some() {
            return false;
        }
        let id = guest.id;
        self.doom(id);
        true
    }

    /// Looks for guests that have shut themselves down or crashed: xenstore only says that there may be some.
    pub(super) fn follow_listing(&mut self, now: Instant) -> bool {
        if let Some((running, _)) = &mut self.listing {
            let Some(result) = running.result(now) else { return false };
            let known = self.listing.take().map(|(_, known)| known).unwrap_or_default();
            match result {
                Ok(text) => self.judge_conditions(&xl::conditions(&text), &known),
                Err(problem) => tracing::warn!(problem, "cannot see how the guests are"),
            }
            return true;
        }
        if !self.is_list_wanted {
            return false;
        }
        self.is_list_wanted = false;
        // Those that are gone altogether are found by their nodes.
        self.guests.iter_mut().flatten().for_each(|guest| guest.is_news = true);
        let known: Vec<_> =
            self.living().filter(|(_, g)| g.place.is_some() && !g.is_doomed).map(|(_, guest)| guest.id).collect();
        if !known.is_empty() {
            match self.xl.begin(&["list"], "") {
                Ok(running) => self.listing = Some((running, known)),
                Err(problem) => tracing::warn!(problem, "cannot see how the guests are"),
            }
        }
        true
    }

    fn judge_conditions(&mut self, conditions: &[(u16, Condition)], known: &[DomainId]) {
        for &id in known {
            let Some(guest) = self.of(id) else { continue };
            let Some(place) = &guest.place else { continue };
            let condition = conditions.iter().find(|(domain, _)| *domain == place.domain).map(|(_, what)| *what);
            let how = match condition {
                Some(Condition::Alive | Condition::Dying) => continue,
                Some(Condition::ShutDown) => "the guest shut itself down",
                Some(Condition::Crashed) => {
                    "the guest's kernel crashed; see its console (`xl console`, xenconsoled's logs)"
                }
                None => "the guest is gone, but not its nodes in xenstore",
            };
            let path = place.path.clone();
            guest.said.exit.get_or_insert_with(|| Exit { clean: false, how: how.into() });
            if condition.is_none() {
                // Nobody else will remove them.
                if let Err(error) = self.store.now().remove(&path) {
                    tracing::warn!(%error, "cannot remove the nodes of a guest that is gone");
                }
            }
            self.doom(id);
        }
    }

    /// A guest's nodes are gone, and so is the guest.
    pub(super) fn gone(&mut self, index: Index) {
        let Some(guest) = self.at(index) else { return };
        if is_under_way(guest, Step::Create) {
            return;
        }
        let home = guest.place.as_ref().map(|place| place.path.clone());
        let exited = guest.said.exit.is_some() || guest.failed.is_some();
        let clean = guest.said.exit.as_ref().is_some_and(|exit| exit.clean);
        let exit = guest.said.exit.take().map(|exit| exit.how);
        let how = guest.failed.take().or(exit).unwrap_or_else(|| "the guest was destroyed".into());
        // The guest runs no more, so this does not change any more; its pages go with the window.
        let left = guest
            .kept
            .take()
            .and_then(|window| Some(Heritage { id: guest.id, left: Left::Bytes(vault::copy(&window)?) }));
        if let Some(home) = home {
            self.unwatch(&home);
        }
        self.bury(index, Gone { clean, exited, said_ready: false, how, heritage: left });
    }

    fn bury(&mut self, index: Index, gone: Gone) {
        let Some(mut guest) = self.guests.get_mut(index).and_then(Option::take) else { return };
        // `xl destroy` removes the nodes before it is done: it must be let finish.
        if let Some((_, running)) = guest.command.take() {
            self.last_commands.push(running);
        }
        self.take_out(guest.id);
        self.report(guest.id, What::Gone(gone));
    }
}

fn failed(guest: &mut Guest, problem: &str) {
    guest.failures += 1;
    guest.retry_at = Some(Instant::now() + RETRY);
    tracing::error!(domain = %guest.id, problem, attempts = guest.failures, "cannot destroy a guest; trying again");
}

/// The end of one that never was.
fn gave_up() -> Gone {
    Gone { clean: false, exited: true, said_ready: false, how: String::new(), heritage: None }
}

/// The guest with that identity.
pub(super) fn find(store: &Store, uuid: &str) -> Result<Option<Home>, StoreError> {
    Ok(guests(store)?.into_iter().find(|(_, guest)| guest.uuid == uuid).map(|(home, _)| home))
}

/// A guest of this machine, whoever has made it.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) uuid: String,
}

/// All guests that xenstore knows.
pub(super) fn guests(store: &Store) -> Result<Vec<(Home, Known)>, StoreError> {
    let mut guests = Vec::new();
    for number in store.now().children("/local/domain")? {
        let Ok(domain) = number.parse::<u16>() else { continue };
        let path = format!("/local/domain/{number}");
        let text = |node: &str| match store.now().read_if_any(&format!("{path}/{node}")) {
            Ok(value) => Ok(String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()),
            // Of a node that is going away; it is no guest any more then.
            Err(error) if matches!(error.code(), Some(Code::NoEntry)) => Ok(String::new()),
            Err(error) => Err(error),
        };
        let (name, vm) = (text("name")?, text("vm")?);
        let uuid = vm.strip_prefix("/vm/").unwrap_or_default().to_owned();
        guests.push((Home { domain, path }, Known { name, uuid }));
    }
    Ok(guests)
}

/// An identity that no other guest of this machine has.
fn uuid(id: DomainId, count: u32) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (slot, generation) = (id.slot.number(), id.generation.number());
    let unique = (since.as_micros() as u64) ^ (u64::from(std::process::id()) << 40);
    format!("{UUID_PREFIX}{slot:04x}-{generation:04x}-{:04x}-{:012x}", count as u16, unique & 0xFFFF_FFFF_FFFF)
}
