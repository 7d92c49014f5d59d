//! What guests are told in xenstore, and what follows from what they say there.

use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::xen::keeper::KEEPER;
use fido_core::platform::xen::layout::{
    self, LAYOUT_VERSION, LayoutError, Link, MANAGER_BASE, ManagerNode, Peer, Reader,
};
use fido_core::platform::xen::store::StoreError;
use fido_core::platform::xen::store::wire::{Access, Permission};
use fido_core::platform::xen::window::Owner;
use serde::Serialize;

use super::super::carrier::{Heritage, Left, What};
use super::super::event_loop::index_of;
use super::super::topology::Index;
use super::guest::{Expected, Flaw, Saying};
use super::{Debt, XenCarrier};

/// The pause between two looks at one guest's nodes.
const REST: Duration = Duration::from_millis(2);

impl XenCarrier {
    /// Makes the manager's nodes for a new guest, and lets it begin.
    pub(super) fn welcome(&mut self, index: Index) -> Result<(), LayoutError> {
        let Some((id, home)) = self.home_at(index) else { return Ok(()) };
        let Some(domain) = self.at(index).and_then(|guest| guest.place.as_ref()).map(|place| place.domain) else {
            return Ok(());
        };
        let Some(assignment) = self.manifest.assignment(index, id) else { return Ok(()) };
        let document = serde_json::to_vec(&assignment).unwrap_or_default();
        let mut told = Vec::new();
        if self.manifest.domains.get(index).is_some_and(|domain| domain.inherit) {
            let keeper = ManagerNode::Keeper;
            told.push((keeper, layout::encode(&keeper.name(), &Reader { domain: KEEPER })?));
        }
        if let Some(left) = self.bequeath(index, domain) {
            let node = ManagerNode::Predecessor;
            told.push((node, layout::encode(&node.name(), &left)?));
        }
        let permissions = [Permission { domain: 0, access: Access::None }, Permission { domain, access: Access::Read }];
        let mut failed = None;
        self.store.transaction(|view| {
            let base = format!("{home}/{MANAGER_BASE}");
            view.make_directory(&base)?;
            // What is made below has the same permissions.
            view.set_permissions(&base, &permissions)?;
            match layout::write_document(view, &ManagerNode::Assignment.path(&home), &document) {
                Ok(()) => {}
                Err(LayoutError::Store(error)) => return Err(error),
                Err(error) => failed = Some(error),
            }
            for (node, value) in &told {
                view.write(&node.path(&home), value)?;
            }
            view.write(&ManagerNode::Version.path(&home), LAYOUT_VERSION.to_string().as_bytes())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Gives a new guest, whose number is `heir`, what it inherits. Without, it begins as if nothing had been left.
    fn bequeath(&mut self, index: Index, heir: u16) -> Option<layout::Predecessor> {
        let guest = self.guests.get_mut(index)?.as_mut()?;
        let Heritage { id: of, left: Left::Bytes(bytes) } = guest.heritage.take()? else { return None };
        match self.vault.bequeath(of, &bytes, heir) {
            Ok((left, hold)) => {
                guest.bequest = Some(hold);
                Some(left)
            }
            Err(error) => {
                let id = guest.id;
                tracing::warn!(%of, %error, "what a guest has left cannot be given to its successor");
                self.report(id, What::Trouble(format!("it begins without what domain {of} has left: {error}")));
                None
            }
        }
    }

    /// Keeps the arena of a guest that is to leave it to a successor.
    fn keep(&mut self, id: DomainId) -> What {
        let index = index_of(id);
        let Some(domain) = index.and_then(|index| self.manifest.domains.get(index)).filter(|domain| domain.inherit)
        else {
            return What::Arena(None);
        };
        let (bytes, number) = (domain.arena, self.domain(id));
        let Some((number, root)) = number.zip(self.of(id).and_then(|guest| guest.said.kept)) else {
            return What::Fault("it has an arena, but has not granted it to dom0, which is to keep it".into());
        };
        match self.vault.keep(Owner { id, domain: number, bytes }, root) {
            Ok(window) => {
                if let Some(guest) = self.of(id) {
                    guest.kept = Some(window.clone());
                }
                What::Arena(Some(window))
            }
            Err(error) => {
                self.report(id, What::Trouble(format!("it can leave nothing to a successor: {error}")));
                What::Arena(None)
            }
        }
    }

    /// A guest is there: tells it its only reader, and whose only reader it is. Without the kernel module an arena can
    /// be granted to one guest only, which has to be known before there is an arena.
    pub(super) fn pair(&mut self, index: Index) {
        let read = (0..self.topology.domains).filter(|&owner| self.topology.may_read(index, owner));
        let owners: Vec<_> = std::iter::once(index).chain(read).collect();
        for owner in owners {
            let mut readers = (0..self.topology.domains).filter(|&reader| self.topology.may_read(reader, owner));
            let (Some(reader), None) = (readers.next(), readers.next()) else { continue };
            if let (Some((owner, _)), Some((reader, _))) = (self.home_at(owner), self.home_at(reader))
                && let Some(number) = self.domain(reader)
            {
                self.write(owner, ManagerNode::Pair, &number);
            }
        }
    }

    fn home_at(&self, index: Index) -> Option<(DomainId, String)> {
        let guest = self.guests.get(index)?.as_ref()?;
        Some((guest.id, guest.place.as_ref()?.path.clone()))
    }

    /// The home of a guest that is to be told something.
    fn home(&self, id: DomainId) -> Option<String> {
        let guest = self.guests.get(index_of(id)?)?.as_ref()?;
        let is_listening = guest.id == id && !guest.is_doomed && self.lost.is_none();
        guest.place.as_ref().filter(|_| is_listening).map(|place| place.path.clone())
    }

    fn domain(&self, id: DomainId) -> Option<u16> {
        let guest = self.guests.get(index_of(id)?)?.as_ref()?;
        guest.place.as_ref().filter(|_| guest.id == id).map(|place| place.domain)
    }

    fn write<T: Serialize>(&mut self, to: DomainId, node: ManagerNode, value: &T) {
        let Some(home) = self.home(to) else { return };
        let written = layout::encode(&node.name(), value)
            .and_then(|value| Ok(self.store.now().write(&node.path(&home), &value)?));
        if let Err(error) = written {
            self.cannot_tell(to, &error);
        }
    }

    /// Removes a node of a guest's.
    pub(super) fn take_back(&mut self, to: DomainId, node: ManagerNode) {
        let Some(home) = self.home(to) else { return };
        if let Err(error) = self.store.now().remove(&node.path(&home)) {
            self.cannot_tell(to, &error.into());
        }
    }

    fn cannot_tell(&mut self, to: DomainId, error: &LayoutError) {
        match error {
            LayoutError::Store(error) if error.code().is_none() => self.lose_store(error),
            // It may just be gone: then its death is noticed, and this has no meaning any more.
            error => self.report(to, What::Fault(format!("it cannot be told anything: {error}"))),
        }
    }

    fn owe(&mut self, who: DomainId, debt: Debt) {
        self.debts.insert((who, debt), Instant::now() + self.manifest.fence.deadline);
    }

    fn knows(&mut self, who: DomainId, of: DomainId) {
        if let Some(guest) = self.of(who) {
            guest.knows.insert(of);
        }
    }

    /// Has the arena of `of` granted to `to`, who is told when that is done.
    pub(super) fn introduce(&mut self, to: DomainId, of: DomainId) {
        let Some(domain) = self.domain(to) else { return };
        self.knows(of, to);
        self.knows(to, of);
        self.owe(of, Debt::Root(to));
        self.write(of, ManagerNode::Reader(to), &Reader { domain });
    }

    /// The end with the lower slot makes the ports, the other one binds them.
    pub(super) fn connect(&mut self, to: DomainId, link: u32, peer: DomainId) {
        let Some(domain) = self.domain(peer) else { return };
        if to.slot < peer.slot {
            self.owe(to, Debt::Ports(link, peer));
            self.write(to, ManagerNode::Link { link, peer }, &Link { domain, ports: None });
        } else {
            self.binders.push((to, link, peer));
            self.bind(peer, link, to);
        }
    }

    /// Passes the ports that `maker` has made for `binder` on, if both is known.
    fn bind(&mut self, maker: DomainId, link: u32, binder: DomainId) {
        let ports = self.of(maker).and_then(|guest| guest.said.ports.get(&(link, binder)).cloned());
        let (Some(ports), Some(domain)) = (ports, self.domain(maker)) else { return };
        let before = self.binders.len();
        self.binders.retain(|waiting| *waiting != (binder, link, maker));
        if self.binders.len() < before {
            self.write(binder, ManagerNode::Link { link, peer: maker }, &Link { domain, ports: Some(ports) });
        }
    }

    pub(super) fn say_died(&mut self, to: DomainId, dead: DomainId) {
        self.knows(to, dead);
        self.write(to, ManagerNode::Peer(dead), &Peer::Dead {});
    }

    /// Asks a guest to finish. One that has not even begun has nothing to finish.
    pub(super) fn stop(&mut self, to: DomainId) {
        match self.home(to) {
            Some(_) => self.write(to, ManagerNode::Stop, &true),
            None => self.condemn(to),
        }
    }

    /// Takes a dead incarnation out of what others were told, but for its death itself.
    pub(super) fn take_out(&mut self, dead: DomainId) {
        self.debts.retain(|(who, debt), _| {
            let about = match debt {
                Debt::Root(reader) => reader,
                Debt::Ports(_, peer) => peer,
            };
            *who != dead && *about != dead
        });
        self.binders.retain(|(to, _, peer)| *to != dead && *peer != dead);
        let Some(index) = index_of(dead) else { return };
        let links: Vec<_> = self.topology.edges_of(index).map(|edge| (edge.link, edge.other(index))).collect();
        let others: Vec<_> = self.living().map(|(other, guest)| (other, guest.id)).collect();
        for (other, id) in others {
            if self.of(id).is_some_and(|guest| guest.knows.contains(&dead)) {
                for (link, _) in links.iter().filter(|(_, end)| *end == Some(other)) {
                    self.take_back(id, ManagerNode::Link { link: *link, peer: dead });
                }
                self.take_back(id, ManagerNode::Reader(dead));
            }
        }
    }

    /// Hears what a guest says, if there is something new; whether it was looked at.
    pub(super) fn listen(&mut self, index: Index, now: Instant) -> bool {
        let Some((id, home)) = self.home_at(index).filter(|_| self.lost.is_none()) else { return false };
        let (bytes, is_kept) =
            self.manifest.domains.get(index).map_or((0, false), |domain| (domain.arena, domain.inherit));
        let Some(guest) = self.guests.get_mut(index).and_then(Option::as_mut) else { return false };
        if !guest.is_news || guest.rest_until.is_some_and(|until| until > now) {
            return false;
        }
        guest.is_news = false;
        guest.rest_until = Some(now + REST);
        let there = match self.store.now().read_if_any(&home) {
            Ok(there) => there.is_some(),
            Err(error) => {
                self.deaf(id, error.into());
                return true;
            }
        };
        if !there {
            self.gone(index);
            return true;
        }
        if guest.is_killed {
            return true;
        }
        let expected = Expected { topology: &self.topology, index, arena_bytes: bytes, is_kept, knows: &guest.knows };
        match guest.said.listen(&self.store, &home, &expected) {
            Ok(sayings) => sayings.into_iter().for_each(|saying| self.take(id, saying)),
            Err(flaw) => self.deaf(id, flaw),
        }
        true
    }

    fn deaf(&mut self, id: DomainId, flaw: Flaw) {
        match flaw {
            Flaw::Store(error) => self.lose_store(&error),
            Flaw::Wrong(problem) => self.report(id, What::Fault(problem)),
        }
    }

    fn take(&mut self, id: DomainId, saying: Saying) {
        let what = match saying {
            Saying::Arena => self.keep(id),
            Saying::Bells(link) => What::Bells(link),
            Saying::Root(reader) => return self.granted(id, reader),
            Saying::Ports(link, peer) => {
                self.debts.remove(&(id, Debt::Ports(link, peer)));
                return self.bind(id, link, peer);
            }
            Saying::Mapped(of) => What::Mapped(of),
            Saying::Passed(dead, except) => What::Passed { dead, except },
            Saying::Ready(notes) => {
                // Whatever was left to it, it has taken over.
                if let Some(guest) = self.of(id) {
                    guest.bequest = None;
                }
                What::Ready(notes)
            }
            Saying::Problem(problem) => {
                let name = index_of(id).map_or("", |index| self.name(index));
                tracing::warn!(domain = name, generation = %id.generation, problem, "a domain has a problem");
                What::Trouble(problem)
            }
            // Nothing else happens in that guest any more.
            Saying::Exit => return self.doom(id),
        };
        self.report(id, what);
    }

    /// An arena has been granted to a reader: now that one can map it.
    fn granted(&mut self, owner: DomainId, reader: DomainId) {
        if self.debts.remove(&(owner, Debt::Root(reader))).is_none() {
            return;
        }
        let root = self.of(owner).and_then(|guest| guest.said.roots.get(&reader).copied());
        let bytes = index_of(owner).and_then(|index| self.manifest.domains.get(index)).map(|domain| domain.arena);
        if let (Some(root), Some(bytes), Some(domain)) = (root, bytes, self.domain(owner)) {
            self.write(reader, ManagerNode::Peer(owner), &Peer::Alive { domain, root, bytes });
            self.report(reader, What::Offered(owner));
        }
    }

    /// Who owes something for too long.
    pub(super) fn collect_debts(&mut self, now: Instant) -> bool {
        let Some(&(who, debt)) = self.debts.iter().find(|(_, due)| **due <= now).map(|(key, _)| key) else {
            return false;
        };
        self.debts.remove(&(who, debt));
        let problem = match debt {
            Debt::Root(reader) => format!("it did not grant its arena to domain {reader} in time"),
            Debt::Ports(link, peer) => format!("it did not make the ports of link {link} for domain {peer} in time"),
        };
        self.report(who, What::Fault(problem));
        true
    }

    /// Watches what a guest says.
    pub(super) fn watch(&mut self, index: Index) -> Result<(), StoreError> {
        let Some((_, home)) = self.home_at(index) else { return Ok(()) };
        // The home itself is not watched: the toolstack writes there all the time. What goes with it is.
        self.store.watch(&format!("{home}/data"), "guest")
    }

    /// Ends the watch.
    pub(super) fn unwatch(&mut self, home: &str) {
        if self.lost.is_none() {
            // It may have gone with the connection.
            let _ = self.store.unwatch(&format!("{home}/data"), "guest");
        }
    }
}
