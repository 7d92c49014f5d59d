//! What a manifest describes, on one screen.

use std::fmt;

use conn_mgr::Manifest;
use conn_mgr::manifest::{Domain, Link, Restart};
use conn_mgr::placement::Plan;

use crate::table::Table;

/// A manifest that has been checked and its plan for this machine, for people: a verdict, the domains, the links, the
/// reasons of the plan.
pub struct Summary<'a>(pub &'a Manifest, pub &'a Plan);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { appliance, domains, links, .. } = self.0;
        let counts = [(domains.len(), "domain"), (links.len(), "link")];
        let [domain_count, link_count] =
            counts.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        write!(f, "ok: appliance `{appliance}`, {domain_count}, {link_count}")?;
        if !domains.is_empty() {
            write!(f, "\n\n{}", domain_table(domains, self.1))?;
        }
        if !links.is_empty() {
            write!(f, "\n\n{}", link_table(links))?;
        }
        if self.1.decides() {
            write!(f, "\n\n{}", self.1)?;
        }
        Ok(())
    }
}

fn domain_table(domains: &[Domain], plan: &Plan) -> Table {
    let mut table = Table::new(["domain", "slot", "arena", "wait", "cpus", "restart", "also reads", "program"]);
    for (index, domain) in domains.iter().enumerate() {
        table.row([
            domain.name.clone(),
            Manifest::slot(index).map_or("-".into(), |slot| slot.to_string()),
            size(domain.arena),
            format!("{:?}", domain.wait).to_lowercase(),
            plan.places.get(index).map_or("-".into(), ToString::to_string),
            restart(domain.restart.when).into(),
            if domain.windows.is_empty() { "-".into() } else { domain.windows.join(", ") },
            domain.program.display().to_string(),
        ]);
    }
    table
}

fn link_table(links: &[Link]) -> Table {
    let mut table = Table::new(["link", "between", "lanes", "slots", "transport"]);
    for link in links {
        table.row([
            link.name.clone(),
            link.between.join(" - "),
            link.lanes.to_string(),
            link.slots.to_string(),
            format!("{:?}", link.transport).to_lowercase(),
        ]);
    }
    table
}

fn restart(when: Restart) -> &'static str {
    match when {
        Restart::Always => "always",
        Restart::OnFailure => "on failure",
        Restart::Never => "never",
    }
}

/// A size in the largest unit that states it exactly.
fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = UNITS.into_iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| format!("{bytes} B"), |(shift, name)| format!("{} {name}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        for (bytes, text) in [(0, "0 B"), (1, "1 B"), (1023, "1023 B"), (4096, "4 KiB"), (1 << 20, "1 MiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size((1 << 30) + 4096), "1048580 KiB");
        assert_eq!(size(3 << 30), "3 GiB");
    }

    #[test]
    fn an_appliance_of_one_has_no_table_of_links() {
        let mut manifest = Manifest::new("alone");
        manifest.domains.push(Domain::new("only", "/bin/true"));
        let text = Summary(&manifest, &Plan::here(&manifest)).to_string();
        assert!(text.starts_with("ok: appliance `alone`, 1 domain, 0 links\n\ndomain"), "{text}");
        assert!(!text.contains("between"), "{text}");
    }
}
