//! What a domain has to do when the manager's nodes have changed: the difference between what is there and what it has
//! seen. No I/O, so that every order of changes can be tried in a test.
//!
//! xenstore says only that something has changed; what a domain reads then may be the sum of several changes, and the
//! directories that it reads one after the other may be of different moments. The steps come in an order that is right
//! all the same: of each incarnation map, connect, death, fence; a link never before its peer is mapped.

use std::collections::BTreeMap;

use super::layout::{LayoutError, Link, MAX_LINK_LANES, Peer, Reader, check_domain, wrong};
use crate::addr::DomainId;

/// The manager's nodes, as read at about one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Who is to be granted the arena.
    pub readers: BTreeMap<DomainId, Reader>,
    /// The arenas to be mapped, and the dead whose fence is open.
    pub peers: BTreeMap<DomainId, Peer>,
    /// The links to be connected.
    pub links: BTreeMap<(u32, DomainId), Link>,
    /// Whether the domain is to finish.
    pub stop: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take the arena back from that dead reader.
    Revoke(DomainId),
    /// Grant the arena to that reader.
    Grant {
        /// Which incarnation.
        reader: DomainId,
        /// Its number on this Xen host.
        domain: u16,
    },
    /// Close the event channels of a link with a dead peer.
    Unlink {
        /// The link's number.
        link: u32,
        /// The dead peer.
        peer: DomainId,
    },
    /// That peer is dead.
    Died(DomainId),
    /// The fence of that peer is complete.
    Fenced(DomainId),
    /// Map that peer's arena.
    Map {
        /// Which incarnation.
        peer: DomainId,
        /// Its number on this Xen host.
        domain: u16,
        /// The grant reference of its root page.
        root: u32,
        /// The arena's length in bytes.
        bytes: u64,
    },
    /// Make unbound ports for that peer and publish them.
    Open {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: DomainId,
        /// Its number on this Xen host.
        domain: u16,
    },
    /// Bind that peer's ports.
    Bind {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: DomainId,
        /// Its number on this Xen host.
        domain: u16,
        /// Its ports, by lane.
        ports: Vec<u32>,
    },
    /// The domain is to finish.
    Stop,
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Follower {
    seen: Snapshot,
}

impl Follower {
    /// The steps from what was seen before to `now`. What was said of an incarnation once stays as it was: later
    /// changes of its numbers are errors, and ignored otherwise.
    pub fn follow(&mut self, now: Snapshot) -> (Vec<Step>, Vec<LayoutError>) {
        let (mut steps, mut errors) = (Vec::new(), Vec::new());
        self.leave(&now, &mut steps);
        self.arrive(now, &mut steps, &mut errors);
        (steps, errors)
    }

    /// Readers, links and peers that have gone.
    fn leave(&mut self, now: &Snapshot, steps: &mut Vec<Step>) {
        self.seen.readers.retain(|reader, _| {
            let stays = now.readers.contains_key(reader);
            if !stays {
                steps.push(Step::Revoke(*reader));
            }
            stays
        });
        let is_alive = |peer: &DomainId| matches!(now.peers.get(peer), Some(Peer::Alive { .. }));
        self.seen.links.retain(|(link, peer), _| {
            let stays = now.links.contains_key(&(*link, *peer)) && is_alive(peer);
            if !stays {
                steps.push(Step::Unlink { link: *link, peer: *peer });
            }
            stays
        });
        let mut fenced = Vec::new();
        self.seen.peers.retain(|peer, state| {
            if is_alive(peer) {
                return true;
            }
            if *state != (Peer::Dead {}) {
                steps.push(Step::Died(*peer));
                *state = Peer::Dead {};
            }
            let stays = now.peers.contains_key(peer);
            if !stays {
                fenced.push(Step::Fenced(*peer));
            }
            stays
        });
        steps.append(&mut fenced);
    }

    fn arrive(&mut self, now: Snapshot, steps: &mut Vec<Step>, errors: &mut Vec<LayoutError>) {
        for (reader, said) in now.readers {
            match self.seen.readers.get(&reader) {
                None => match check_domain("readers", said.domain) {
                    Ok(domain) => {
                        steps.push(Step::Grant { reader, domain });
                        self.seen.readers.insert(reader, said);
                    }
                    Err(error) => errors.push(error),
                },
                Some(known) if *known != said => errors.push(changed("readers", reader)),
                Some(_) => {}
            }
        }
        for (peer, said) in now.peers {
            match (self.seen.peers.get(&peer), said) {
                (None, Peer::Alive { domain, root, bytes }) => match check_domain("peers", domain) {
                    Ok(domain) => {
                        steps.push(Step::Map { peer, domain, root, bytes });
                        self.seen.peers.insert(peer, said);
                    }
                    Err(error) => errors.push(error),
                },
                (None, Peer::Dead {}) => {
                    // It came and went unseen. The manager waits for a word all the same.
                    steps.push(Step::Died(peer));
                    self.seen.peers.insert(peer, said);
                }
                (Some(known), _) if *known != said => errors.push(changed("peers", peer)),
                (Some(_), _) => {}
            }
        }
        for ((link, peer), said) in now.links {
            // Before its peer's node is seen: the change of that one is still to come.
            if !matches!(self.seen.peers.get(&peer), Some(Peer::Alive { .. })) {
                continue;
            }
            match self.seen.links.get(&(link, peer)) {
                None => match self.link(link, peer, &said) {
                    Ok(step) => {
                        steps.push(step);
                        self.seen.links.insert((link, peer), said);
                    }
                    Err(error) => errors.push(error),
                },
                Some(known) if *known != said => errors.push(changed("links", peer)),
                Some(_) => {}
            }
        }
        if now.stop && !self.seen.stop {
            steps.push(Step::Stop);
        }
        self.seen.stop |= now.stop;
    }

    fn link(&self, link: u32, peer: DomainId, said: &Link) -> Result<Step, LayoutError> {
        let domain = check_domain("links", said.domain)?;
        match &said.ports {
            None => Ok(Step::Open { link, peer, domain }),
            Some(ports) if ports.len() > MAX_LINK_LANES => {
                let (bytes, limit) = (ports.len(), MAX_LINK_LANES);
                Err(LayoutError::TooLong { node: format!("links/{link}"), bytes, limit })
            }
            Some(ports) => Ok(Step::Bind { link, peer, domain, ports: ports.clone() }),
        }
    }
}

fn changed(node: &str, id: DomainId) -> LayoutError {
    wrong(node, "what was said of a living incarnation has changed", id.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Generation, Slot};
    use proptest::prelude::*;

    fn id(slot: u16, generation: u16) -> DomainId {
        DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
    }

    const ALIVE: Peer = Peer::Alive { domain: 5, root: 9, bytes: 4096 };

    #[test]
    fn the_life_of_a_peer() {
        let mut follower = Follower::default();
        let (a, mut now) = (id(2, 1), Snapshot::default());
        let mut steps = |now: &Snapshot| {
            let (steps, errors) = follower.follow(now.clone());
            assert!(errors.is_empty(), "{errors:?}");
            steps
        };
        now.readers.insert(a, Reader { domain: 5 });
        now.links.insert((1, a), Link { domain: 5, ports: None });
        assert_eq!(steps(&now), [Step::Grant { reader: a, domain: 5 }], "the link waits for the window");
        now.peers.insert(a, ALIVE);
        let map = Step::Map { peer: a, domain: 5, root: 9, bytes: 4096 };
        assert_eq!(steps(&now), [map, Step::Open { link: 1, peer: a, domain: 5 }]);
        assert_eq!(steps(&now), []);
        now.peers.insert(a, Peer::Dead {});
        assert_eq!(steps(&now), [Step::Unlink { link: 1, peer: a }, Step::Died(a)]);
        now.links.clear();
        now.readers.clear();
        assert_eq!(steps(&now), [Step::Revoke(a)]);
        now.peers.clear();
        now.stop = true;
        assert_eq!(steps(&now), [Step::Fenced(a), Step::Stop]);
        assert_eq!(steps(&now), []);
    }

    #[test]
    fn deaths_and_successors_seen_at_once() {
        let mut follower = Follower::default();
        let (old, new) = (id(2, 1), id(2, 2));
        let mut now = Snapshot::default();
        now.peers.insert(old, ALIVE);
        follower.follow(now.clone());
        now.peers.clear();
        now.peers.insert(new, Peer::Alive { domain: 6, root: 1, bytes: 4096 });
        now.links.insert((1, new), Link { domain: 6, ports: Some(vec![3]) });
        let (steps, _) = follower.follow(now.clone());
        let map = Step::Map { peer: new, domain: 6, root: 1, bytes: 4096 };
        let bind = Step::Bind { link: 1, peer: new, domain: 6, ports: vec![3] };
        assert_eq!(steps, [Step::Died(old), Step::Fenced(old), map, bind]);
        now.peers.insert(id(3, 1), Peer::Dead {});
        assert_eq!(follower.follow(now).0, [Step::Died(id(3, 1))], "it lived and died unseen");
    }

    #[test]
    fn numbers_that_change_or_cannot_be_are_refused() {
        let mut follower = Follower::default();
        let mut now = Snapshot::default();
        now.peers.insert(id(2, 1), ALIVE);
        now.links.insert((1, id(2, 1)), Link { domain: 5, ports: Some(vec![1; MAX_LINK_LANES + 1]) });
        now.readers.insert(id(3, 1), Reader { domain: 0x7FF0 });
        let (steps, errors) = follower.follow(now.clone());
        assert!(steps.len() == 1 && errors.len() == 2, "{steps:?} {errors:?}");
        now.links.clear();
        now.readers.clear();
        now.peers.insert(id(2, 1), Peer::Alive { domain: 5, root: 10, bytes: 4096 });
        let (steps, errors) = follower.follow(now);
        assert!(steps.is_empty() && errors.len() == 1);
    }

    proptest! {
        /// However the snapshots follow each other, each incarnation is mapped, connected, dead and fenced in this
        /// order, each at most once until it is fenced.
        #[test]
        fn any_sequence_of_snapshots(course in prop::collection::vec((0u8..4, 0u8..4, 0u8..8), 1..40)) {
            let mut follower = Follower::default();
            let (mut now, mut stage) = (Snapshot::default(), BTreeMap::<DomainId, u8>::new());
            for (slot, generation, change) in course {
                let id = id(u16::from(slot) + 1, u16::from(generation) + 1);
                match change {
                    0 | 1 => { now.peers.entry(id).or_insert(ALIVE); }
                    2 => { now.peers.insert(id, Peer::Dead {}); }
                    3 => { now.peers.remove(&id); }
                    4 | 5 => { now.links.insert((1, id), Link { domain: 5, ports: None }); }
                    6 => { now.links.remove(&(1, id)); }
                    _ => { now.readers.insert(id, Reader { domain: 5 }); }
                }
                for step in follower.follow(now.clone()).0 {
                    match step {
                        Step::Map { peer, .. } => prop_assert_eq!(stage.insert(peer, 1), None),
                        Step::Open { peer, .. } => prop_assert!(stage.insert(peer, 2) == Some(1)),
                        Step::Unlink { peer, .. } => prop_assert!(stage.insert(peer, 1) == Some(2)),
                        Step::Died(peer) => prop_assert!(!matches!(stage.insert(peer, 3), Some(2 | 3))),
                        Step::Fenced(peer) => prop_assert_eq!(stage.remove(&peer), Some(3)),
                        _ => {}
                    }
                }
            }
        }
    }
}
