//! Bodies of the fuzz targets over what the manager reads and decides. They take any bytes and panic if a promise is
//! broken. `fuzz/` feeds them from a fuzzer; the tests below feed them where there is none.

use std::collections::{BTreeMap, BTreeSet};

use fido_core::addr::{DomainId, Generation};

use crate::manager::state::{Action, Event, State};
use crate::manager::topology::{Edge, Topology};
use crate::manifest::Manifest;

/// Domains in the appliance of [`conversation`].
const DOMAINS: usize = 4;
/// So many bytes of a conversation are used; generations do not wrap within it.
const MAX_BYTES: usize = 4000;

/// A manifest's text: a manifest, or an error that can be shown.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Manifest::parse(&text, "fuzz.toml") {
        Ok(manifest) => assert_eq!(manifest.start_order().len(), manifest.domains.len(), "every domain is started"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Any order of starts, words and deaths: the promises of [`crate::manager::state`] hold, and when all that are asked
/// have passed, no fence stays open.
pub fn conversation(data: &[u8]) {
    let mut witness = Witness::new();
    for step in data[..data.len().min(MAX_BYTES)].chunks(3) {
        let [what, who, about] = [0, 1, 2].map(|at| usize::from(step.get(at).copied().unwrap_or(0)));
        let (index, other) = (who % DOMAINS, about % DOMAINS);
        // Now and then somebody speaks who is dead already.
        let id = witness.name(index, who / DOMAINS % 8 == 7);
        let event = match what % 8 {
            0 => Event::Want(index),
            1 => Event::Arena(id),
            2 | 3 => Event::Bells(id, about as u32 % 5),
            4 => Event::Ready(id),
            5 if about & 0x80 != 0 => Event::Mapped { by: id, of: witness.name(other, about & 0x40 != 0) },
            5 => Event::Gone(id),
            6 => passed(id, witness.name(other, about & 0x80 != 0), witness.some_fence(what / 8)),
            _ if what == 255 && about == 255 => Event::Stop,
            _ => passed(id, witness.some_fence(about).unwrap_or(id), witness.some_fence(what / 8)),
        };
        witness.feed(event);
    }
    witness.let_all_pass();
}

fn passed(by: DomainId, dead: DomainId, except: Option<DomainId>) -> Event {
    Event::Passed { by, dead, except: except.filter(|id| *id != dead).into_iter().collect() }
}

/// How far a domain has been told about an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Peer,
    Link,
    Died,
    Fenced,
}

/// Watches the state and knows what it may do.
struct Witness {
    state: State,
    living: BTreeMap<usize, DomainId>,
    last: BTreeMap<usize, DomainId>,
    told: BTreeMap<(DomainId, DomainId), Told>,
    linked: BTreeSet<(DomainId, u32, DomainId)>,
    fences: BTreeSet<DomainId>,
}

impl Witness {
    /// A NAS, roughly: a chain of links, and two windows that skip one.
    fn new() -> Self {
        let edge = |link, a, b| Edge { link, ends: [a, b], lanes: 1 };
        let topology = Topology {
            domains: DOMAINS,
            edges: vec![edge(1, 0, 1), edge(2, 1, 2), edge(3, 2, 3)],
            windows: BTreeSet::from([(0, 2), (2, 0)]),
        };
        Self {
            state: State::new(topology),
            living: BTreeMap::new(),
            last: BTreeMap::new(),
            told: BTreeMap::new(),
            linked: BTreeSet::new(),
            fences: BTreeSet::new(),
        }
    }

    /// The present incarnation of a domain, or its predecessor.
    fn name(&self, index: usize, predecessor: bool) -> DomainId {
        let id = self.last.get(&index).copied().unwrap_or_else(|| incarnation(index));
        let before = id.generation.number().checked_sub(1).and_then(Generation::new);
        if predecessor { DomainId { generation: before.unwrap_or(Generation::NONE), ..id } } else { id }
    }

    fn some_fence(&self, at: usize) -> Option<DomainId> {
        self.fences.iter().nth(at % self.fences.len().max(1)).copied()
    }

    fn feed(&mut self, event: Event) {
        if let Event::Gone(id) = event {
            self.living.retain(|_, living| *living != id);
        }
        for action in self.state.on(event) {
            self.judge(action);
        }
    }

    fn judge(&mut self, action: Action) {
        match action {
            Action::Spawn(id) => self.spawned(id),
            Action::Peer { to, of } => {
                assert!(self.is_living(of), "the arena of the dead {of} was handed out");
                self.tell(to, of, Told::Peer);
            }
            Action::Link { to, link, peer } => {
                assert!(self.is_living(peer), "the bells of the dead {peer} were handed out");
                let edge = self.state.topology().edge(index(to), link);
                assert_eq!(edge.and_then(|edge| edge.other(index(to))), Some(index(peer)), "not in the manifest");
                assert!(self.linked.insert((to, link, peer)), "link {link} of {peer} was handed to {to} twice");
                self.tell(to, peer, Told::Link);
            }
            Action::Died { to, of } => {
                assert!(!self.is_living(of), "{of} lives");
                self.tell(to, of, Told::Died);
            }
            Action::Fenced { to, of } => self.tell(to, of, Told::Fenced),
            Action::Raised(dead) => assert!(self.fences.insert(dead), "a second fence of {dead}"),
            Action::Settled(dead) => {
                assert!(self.fences.remove(&dead), "no fence of {dead} was open");
                assert!(self.state.owing(dead).is_empty(), "somebody owes a word about {dead}");
            }
            Action::Serving(id) | Action::Violation(id, _) => assert!(self.is_living(id)),
        }
    }

    fn spawned(&mut self, id: DomainId) {
        assert!(self.living.insert(index(id), id).is_none(), "{id} was started beside its predecessor");
        let parity = id.generation.number() % 2;
        let in_place = |dead: &DomainId| dead.slot == id.slot && dead.generation.number() % 2 == parity;
        assert!(!self.fences.iter().any(in_place), "{id} was started in the place of the dead");
        assert!(self.last.insert(index(id), id).is_none_or(|last| last.generation < id.generation));
    }

    fn tell(&mut self, to: DomainId, of: DomainId, what: Told) {
        assert!(self.is_living(to), "the dead {to} was told of {of}");
        assert!(self.state.topology().may_read(index(to), index(of)), "{to} may not know {of}");
        let before = self.told.insert((to, of), what);
        let in_order = match what {
            Told::Peer => before.is_none(),
            Told::Link => matches!(before, Some(Told::Peer | Told::Link)),
            Told::Died => matches!(before, Some(Told::Peer | Told::Link)),
            Told::Fenced => before == Some(Told::Died),
        };
        assert!(in_order, "{to} was told {what:?} of {of} after {before:?}");
    }

    fn is_living(&self, id: DomainId) -> bool {
        self.living.get(&index(id)) == Some(&id)
    }

    fn let_all_pass(&mut self) {
        // Every round settles a fence or is the last; starts that waited for one add nothing to wait for.
        for _ in 0..=self.fences.len() {
            let owed: Vec<_> = self.fences.iter().map(|dead| (*dead, self.state.owing(*dead))).collect();
            for (dead, owing) in owed {
                owing.into_iter().for_each(|survivor| self.feed(passed(survivor, dead, None)));
            }
        }
        assert!(self.fences.is_empty(), "all have passed, yet fences are open: {:?}", self.fences);
    }
}

fn index(id: DomainId) -> usize {
    usize::from(id.slot.number()).wrapping_sub(1)
}

/// The incarnation that a domain has before its first start.
fn incarnation(index: usize) -> DomainId {
    let slot = Manifest::slot(index).unwrap_or_else(|| unreachable!("{index} is below {DOMAINS}"));
    DomainId { slot, generation: Generation::NONE }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Keys, values and brackets of manifests, in any order.
    fn plausible_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "appliance = \"a\"\n",
            "[domain.x]\n",
            "[domain.y]\n",
            "[domain.x.params]\n",
            "[[link]]\n",
            "[fence]\n",
            "name = \"l\"\n",
            "between = [\"x\", \"y\"]\n",
            "program = \"/bin/true\"\n",
            "arena = \"1MiB\"\n",
            "arena = -1\n",
            "lanes = 65\n",
            "slots = 100\n",
            "after = [\"x\"]\n",
            "windows = [\"y\"]\n",
            "deadline = \"1s\"\n",
            "= ]\n",
        ]);
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_manifest(data: Vec<u8>, text in plausible_text()) {
            super::manifest(&data);
            super::manifest(text.as_bytes());
        }

        #[test]
        fn any_conversation(data in prop::collection::vec(any::<u8>(), 0..super::MAX_BYTES)) {
            super::conversation(&data);
        }
    }
}
