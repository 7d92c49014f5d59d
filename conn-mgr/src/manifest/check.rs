//! The sense of a manifest: one function per subject, each of which finds the first fault.

use std::collections::BTreeSet;

use fido_core::addr::{DomainId, Generation};
use fido_core::arena::{self, ArenaError, LanePlan};
use fido_core::platform::host::protocol::{FromManager, MAX_MESSAGE_BYTES, Predecessor};
use fido_core::topology::{self, MAX_CPU, list};

use super::error::{Fault, Place};
use super::{
    ARENA_GRAIN, Cpus, Domain, Link, MAX_DOMAINS, MAX_DURATION, MAX_LINK_LANES, MAX_NAME_BYTES, Manifest, Platform,
    guest, program,
};

/// The most processors that a domain can ask for by number.
pub(super) const MAX_AUTO_CPUS: u16 = MAX_CPU as u16 + 1;

fn fault<T>(place: Place, what: impl Into<String>, expected: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { place, what: what.into(), expected: expected.into() })
}

/// See [`Manifest::check`].
pub(super) fn check(manifest: &Manifest) -> Result<(), Fault> {
    name(Place::Appliance, &manifest.appliance)?;
    if manifest.fence.deadline.is_zero() || manifest.fence.deadline > MAX_DURATION {
        return fault(Place::FenceDeadline, "a fence deadline out of bounds", "more than 0 and at most 24 hours");
    }
    if manifest.domains.is_empty() {
        return fault(Place::Appliance, "an appliance without domains", "at least one [domain.NAME]");
    }
    if manifest.domains.len() > MAX_DOMAINS {
        return fault(Place::Domain(MAX_DOMAINS), "too many domains", format!("at most {MAX_DOMAINS}"));
    }
    let mut names = BTreeSet::new();
    for (index, domain) in manifest.domains.iter().enumerate() {
        if !names.insert(&domain.name) {
            return fault(Place::Domain(index), format!("a second domain `{}`", domain.name), "different names");
        }
        name(Place::Domain(index), &domain.name)?;
    }
    for (index, domain) in manifest.domains.iter().enumerate() {
        check_domain(manifest, index, domain)?;
    }
    check_order(manifest)?;
    names.clear();
    for (index, link) in manifest.links.iter().enumerate() {
        if !names.insert(&link.name) {
            return fault(Place::Link(index), format!("a second link `{}`", link.name), "different names");
        }
        check_link(manifest, index, link)?;
    }
    for (index, domain) in manifest.domains.iter().enumerate() {
        check_lanes(manifest, index, domain)?;
        check_welcome(manifest, index)?;
    }
    Ok(())
}

/// Names end up in environment variables, memory file names and log lines.
fn name(place: Place, name: &str) -> Result<(), Fault> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(fine) {
        let shown: String = name.chars().take(MAX_NAME_BYTES + 1).collect();
        let expected = format!("1 to {MAX_NAME_BYTES} letters, digits, `-` or `_`");
        return fault(place, format!("the name `{}`", shown.escape_debug()), expected);
    }
    Ok(())
}

fn known(manifest: &Manifest, place: Place, domain: &str) -> Result<(), Fault> {
    if manifest.position(domain).is_none() {
        let names: Vec<_> = manifest.domains.iter().take(20).map(|d| format!("`{}`", d.name)).collect();
        return fault(place, format!("unknown domain `{}`", domain.escape_debug()), names.join(", "));
    }
    Ok(())
}

fn check_domain(manifest: &Manifest, index: usize, domain: &Domain) -> Result<(), Fault> {
    let key = |key, item| Place::DomainKey(index, key, item);
    let here = manifest.platform == Platform::Host;
    if here && !program::is_executable(&domain.program) {
        let what = format!("program `{}` cannot be executed", domain.program.display());
        return fault(key("program", None), what, "an executable file");
    }
    if let Some(at) = domain.args.iter().position(|arg| arg.contains('\0')) {
        return fault(key("args", Some(at)), "an argument with a zero byte", "text without it");
    }
    if !domain.arena.is_multiple_of(ARENA_GRAIN) {
        let what = format!("an arena of {} bytes", domain.arena);
        return fault(key("arena", None), what, format!("a multiple of {ARENA_GRAIN}"));
    }
    if here {
        check_cpus(index, &domain.cpus)?;
    }
    guest::check(manifest, index, domain)?;
    for (list, names) in [("windows", &domain.windows), ("after", &domain.after)] {
        for (at, other) in names.iter().enumerate() {
            known(manifest, key(list, Some(at)), other)?;
            if *other == domain.name {
                return fault(key(list, Some(at)), format!("`{other}` itself in `{list}`"), "another domain");
            }
            if names[..at].contains(other) {
                return fault(key(list, Some(at)), format!("`{other}` twice in `{list}`"), "each domain once");
            }
        }
    }
    let restart = &domain.restart;
    if restart.window.is_zero() || restart.window > MAX_DURATION {
        return fault(key("restart-window", None), "a window out of bounds", "more than 0 and at most 24 hours");
    }
    if restart.delay > MAX_DURATION {
        return fault(key("restart-delay", None), "a delay out of bounds", "at most 24 hours");
    }
    Ok(())
}

/// Whether the manager can put a domain there.
fn check_cpus(index: usize, cpus: &Cpus) -> Result<(), Fault> {
    let place = |item| Place::DomainKey(index, "cpus", item);
    let cpus = match cpus {
        Cpus::All => return Ok(()),
        Cpus::Auto(count) if (1..=MAX_AUTO_CPUS).contains(count) => return Ok(()),
        Cpus::Auto(count) => {
            return fault(place(None), format!("{count} processors"), format!("1 to {MAX_AUTO_CPUS} of them"));
        }
        Cpus::List(cpus) => cpus,
    };
    if cpus.is_empty() {
        return fault(place(None), "no processor at all", "at least one");
    }
    let allowed = match topology::allowed() {
        Ok(allowed) => allowed,
        Err(error) => return fault(place(None), error.to_string(), "to know them"),
    };
    let online = topology::online().unwrap_or_else(|_| allowed.clone());
    for (at, cpu) in cpus.iter().enumerate() {
        let expected = format!("processors among {}", list::format(&allowed));
        if !online.contains(cpu) {
            return fault(place(Some(at)), format!("no processor {cpu} is online here"), expected);
        }
        if !allowed.contains(cpu) {
            return fault(place(Some(at)), format!("processor {cpu} is not allowed to the manager"), expected);
        }
        if cpus[..at].contains(cpu) {
            return fault(place(Some(at)), format!("processor {cpu} twice"), "each processor once");
        }
    }
    Ok(())
}

fn check_order(manifest: &Manifest) -> Result<(), Fault> {
    let order = manifest.start_order();
    match (0..manifest.domains.len()).find(|index| !order.contains(index)) {
        None => Ok(()),
        Some(index) => {
            let stuck = |name: &String| manifest.position(name).is_some_and(|p| !order.contains(&p));
            let at = manifest.domains[index].after.iter().position(stuck);
            let what = format!("domain `{}` waits in a circle", manifest.domains[index].name);
            fault(Place::DomainKey(index, "after", at), what, "an order without circles")
        }
    }
}

fn check_link(manifest: &Manifest, index: usize, link: &Link) -> Result<(), Fault> {
    let key = |key, item| Place::LinkKey(index, key, item);
    name(Place::Link(index), &link.name)?;
    for (at, end) in link.between.iter().enumerate() {
        known(manifest, key("between", Some(at)), end)?;
    }
    if link.between[0] == link.between[1] {
        let what = format!("a link from `{}` to itself", link.between[0]);
        return fault(key("between", Some(1)), what, "two different domains");
    }
    if link.lanes == 0 || link.lanes > MAX_LINK_LANES {
        return fault(key("lanes", None), format!("{} lanes", link.lanes), format!("1 to {MAX_LINK_LANES}"));
    }
    let (least, most) = (arena::MIN_RING_SLOTS, arena::MAX_RING_SLOTS);
    if !link.slots.is_power_of_two() || !(least..=most).contains(&link.slots) {
        let expected = format!("a power of two from {least} to {most}");
        return fault(key("slots", None), format!("a ring of {} slots", link.slots), expected);
    }
    Ok(())
}

/// Whether all lanes of a domain fit into its arena.
fn check_lanes(manifest: &Manifest, index: usize, domain: &Domain) -> Result<(), Fault> {
    let mut plans = Vec::new();
    for (number, link) in (1u32..).zip(&manifest.links).filter(|(_, link)| link.between.contains(&domain.name)) {
        plans.extend((0..link.lanes).map(|lane| LanePlan { link: number, lane, slots: link.slots }));
        if plans.len() > arena::MAX_LANES {
            let what = format!("more lanes in domain `{}` than its arena can list", domain.name);
            let place = Place::LinkKey(number as usize - 1, "lanes", None);
            return fault(place, what, format!("at most {} over all its links", arena::MAX_LANES));
        }
    }
    let Err(error) = arena::check_plan(domain.arena, &plans) else { return Ok(()) };
    let expected = match error {
        ArenaError::TooSmall { needed, .. } => format!("at least {needed} bytes for {} lanes", plans.len()),
        _ => format!("{} to {} bytes", arena::MIN_ARENA_BYTES, fido_core::addr::MAX_ARENA_BYTES),
    };
    let what = format!("an arena of {} bytes for domain `{}`", domain.arena, domain.name);
    fault(Place::DomainKey(index, "arena", None), what, expected)
}

/// Whether a domain's assignment can be told in one message. Generations have up to four digits.
fn check_welcome(manifest: &Manifest, index: usize) -> Result<(), Fault> {
    let largest = Generation::new(4095).unwrap_or(Generation::FIRST);
    let welcome = Manifest::slot(index).and_then(|slot| {
        let id = DomainId { slot, generation: largest };
        let mut assignment = Box::new(manifest.assignment(index, id)?);
        if let Some(Domain { cpus: Cpus::Auto(count), .. }) = manifest.domains.get(index) {
            assignment.cpus = vec![MAX_CPU; usize::from(*count)];
        }
        let domain = manifest.domains.get(index).filter(|domain| domain.inherit);
        let predecessor = domain.map(|domain| Predecessor { id: id.into(), bytes: domain.arena });
        Some(FromManager::Welcome { assignment, predecessor })
    });
    let bytes = welcome.and_then(|welcome| serde_json::to_vec(&welcome).ok()).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_MESSAGE_BYTES {
        let what = "parameters and links that make too long an assignment";
        let expected = format!("at most {MAX_MESSAGE_BYTES} bytes as JSON");
        return fault(Place::DomainKey(index, "params", None), what, expected);
    }
    Ok(())
}
