//! Domains over a xenstored within the process, with the test as their manager.

use std::time::{Duration, Instant};

use super::super::layout::{LayoutError, Link, ManagerNode, Peer, Predecessor, Reader, write_document};
use super::super::store::fake::FakeStore;
use super::machine::Machine;
use super::*;
use crate::addr::{Generation, Slot};
use crate::assignment::{LinkAssignment, Transport, WaitStrategy, WireId};
use crate::domain::{Domain, Notice};
use crate::lane::{Change, Lane};
use crate::message::Head;
use crate::payload::Payload;

const LIMIT: Duration = Duration::from_secs(30);
const BYTES: u64 = 1 << 20;

fn id(slot: u16, generation: u16) -> DomainId {
    DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
}

fn home(number: u16) -> String {
    format!("/local/domain/{number}")
}

fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The manager's side.
struct Manager {
    fake: FakeStore,
    store: Store,
    machine: Machine,
}

impl Manager {
    fn new() -> Self {
        let fake = FakeStore::default();
        Self { store: fake.connect(0), fake, machine: Machine::default() }
    }

    fn assignment(slot: u16, generation: u16, lanes: u16) -> Assignment {
        let peer_slot = 3 - slot;
        let (name, peer) = ("between".to_owned(), format!("d{peer_slot}"));
        let link = LinkAssignment { link: 1, name, peer, peer_slot, lanes, slots: 8, transport: Transport::Pointer };
        Assignment {
            appliance: "test".into(),
            domain: format!("d{slot}"),
            id: WireId { slot, generation },
            arena_bytes: BYTES,
            links: vec![link],
            domains: 2,
            wait: WaitStrategy::Sleep,
            cpus: Vec::new(),
            processors: 0,
            // Longer than a node.
            params: BTreeMap::from([("long".to_owned(), serde_json::json!("x".repeat(3000)))]),
        }
    }

    fn write(&self, number: u16, node: ManagerNode, value: &[u8]) {
        self.store.now().write(&node.path(&home(number)), value).unwrap();
    }

    fn tell<T: serde::Serialize>(&self, number: u16, node: ManagerNode, value: &T) {
        self.write(number, node, &layout::encode("test", value).unwrap());
    }

    fn untell(&self, number: u16, node: ManagerNode) {
        assert!(self.store.now().remove(&node.path(&home(number))).unwrap());
    }

    fn said(&self, number: u16, node: DomainNode) -> Option<Vec<u8>> {
        self.store.now().read_if_any(&node.path(&home(number))).unwrap()
    }

    fn wait<T: serde::de::DeserializeOwned>(&self, number: u16, node: DomainNode) -> T {
        let value = until(&node.name(), || self.said(number, node));
        layout::decode("test", &value).unwrap()
    }

    fn announce(&self, number: u16, assignment: &Assignment) {
        self.fake.add_domain(number);
        let text = serde_json::to_vec(assignment).unwrap();
        self.store.now().write(&format!("{}/domid", home(number)), number.to_string().as_bytes()).unwrap();
        write_document(&self.store.now(), &ManagerNode::Assignment.path(&home(number)), &text).unwrap();
        self.write(number, ManagerNode::Pair, b"99");
        self.write(number, ManagerNode::Version, b"1");
    }

    fn platform(&self, number: u16) -> Result<XenPlatform, PlatformError> {
        XenPlatform::over(self.fake.connect(number), "", self.machine.devices(number), LIMIT)
    }

    fn domain(&self, number: u16, assignment: &Assignment) -> Domain {
        self.announce(number, assignment);
        Domain::on(Box::new(self.platform(number).unwrap())).unwrap()
    }

    /// As [`Manager::domain`], for one whose arena is kept by `keeper`, and who inherits what is said.
    fn heir(&self, number: u16, assignment: &Assignment, keeper: u16, left: Option<Predecessor>) -> Domain {
        self.tell(number, ManagerNode::Keeper, &Reader { domain: keeper });
        if let Some(left) = left {
            self.tell(number, ManagerNode::Predecessor, &left);
        }
        self.domain(number, assignment)
    }

    /// Lets `reader` map the arena of `owner`.
    fn introduce(&self, reader: (u16, DomainId), owner: (u16, DomainId)) {
        self.tell(owner.0, ManagerNode::Reader(reader.1), &Reader { domain: reader.0 });
        let root = self.wait(owner.0, DomainNode::Root(reader.1));
        let peer = Peer::Alive { domain: owner.0, root, bytes: BYTES };
        self.tell(reader.0, ManagerNode::Peer(owner.1), &peer);
        self.wait::<BTreeMap<String, ()>>(reader.0, DomainNode::Mapped(owner.1));
    }

    fn connect(&self, opener: (u16, DomainId), binder: (u16, DomainId)) {
        let of = |peer| ManagerNode::Link { link: 1, peer };
        self.tell(opener.0, of(binder.1), &Link { domain: binder.0, ports: None });
        let ports = self.wait(opener.0, DomainNode::Ports { link: 1, peer: binder.1 });
        self.tell(binder.0, of(opener.1), &Link { domain: opener.0, ports: Some(ports) });
    }

    fn bring_together(&self, a: (u16, DomainId), b: (u16, DomainId)) {
        self.introduce(a, b);
        self.introduce(b, a);
        self.connect(a, b);
    }
}

fn next_change(lane: &mut Lane) -> Change {
    until("a change of the lane", || lane.change())
}

/// Serves both ends until both say that they are up.
fn until_up(ends: [(&mut Lane, DomainId); 2]) {
    let mut waiting = Vec::from(ends);
    until("both ends of a lane to be up", || {
        waiting.retain_mut(|(lane, peer)| {
            lane.change().inspect(|change| assert_eq!(*change, Change::Up(*peer))).is_none()
        });
        waiting.is_empty().then_some(())
    });
}

#[test]
fn two_domains_meet_talk_part_and_meet_again() {
    let manager = Manager::new();
    let [first, second] = [1, 2].map(|slot| Manager::assignment(slot, 1, 2));
    let (a, b) = (manager.domain(5, &first), manager.domain(6, &second));
    assert_eq!(a.required_param::<String>("long").unwrap().len(), 3000);
    let arena: layout::Arena = manager.wait(5, DomainNode::Arena);
    assert_eq!(arena, layout::Arena { bytes: BYTES, provider: layout::ProviderKind::Module });
    assert_eq!(manager.wait::<u32>(5, DomainNode::Frames), 4711);
    assert_eq!(manager.wait::<usize>(6, DomainNode::Bells(1)), 2);
    let (here, there) = ((5, id(1, 1)), (6, id(2, 1)));
    manager.bring_together(here, there);
    let (mut a_lanes, mut b_lanes) = (a.take_lanes("between").unwrap(), b.take_lanes("between").unwrap());
    for (mine, theirs) in a_lanes.iter_mut().zip(&mut b_lanes) {
        until_up([(mine, there.1), (theirs, here.1)]);
        mine.send(Head { kind: 7, ..Head::default() }, Payload::new()).unwrap();
        mine.flush();
        let (head, _) = until("the message", || theirs.recv()).unwrap();
        assert_eq!(head.kind, 7);
    }
    a.ready(&[("address", "[::1]:2049".into())]).unwrap();
    let notes = layout::read_document(&manager.store.now(), &DomainNode::Ready.path(&home(5))).unwrap();
    assert_eq!(notes, br#"{"address":"[::1]:2049"}"#);

    // The second one dies; its nodes go with it.
    drop((b, b_lanes));
    manager.fake.remove_domain(6);
    manager.tell(5, ManagerNode::Peer(there.1), &Peer::Dead {});
    manager.untell(5, ManagerNode::Link { link: 1, peer: there.1 });
    manager.untell(5, ManagerNode::Reader(there.1));
    for lane in &mut a_lanes {
        assert_eq!(next_change(lane), Change::Down(there.1));
    }
    let mut notices = a.notices().unwrap();
    manager.wait::<Passed>(5, DomainNode::Passed(there.1));
    manager.untell(5, ManagerNode::Peer(there.1));
    until("the end of what was said of the dead", || {
        let nodes = [DomainNode::Passed(there.1), DomainNode::Mapped(there.1), DomainNode::Root(there.1)];
        nodes.iter().all(|node| manager.said(5, *node).is_none()).then_some(())
    });
    assert_eq!(manager.said(5, DomainNode::Ports { link: 1, peer: there.1 }), None);
    assert_eq!(manager.machine.granted_to(6), 0, "the arena has been taken back");

    let b = manager.domain(7, &Manager::assignment(2, 2, 2));
    manager.bring_together(here, (7, id(2, 2)));
    let mut lane = b.take_lane("between", 0).unwrap();
    until_up([(&mut lane, here.1), (&mut a_lanes[0], id(2, 2))]);
    manager.write(5, ManagerNode::Stop, b"");
    until("the notice of the end", || notices.poll().filter(|notice| *notice == Notice::Shutdown));
    manager.fake.die();
}

#[test]
fn who_is_told_nonsense_says_so_and_goes_on() {
    let manager = Manager::new();
    let _domain = manager.domain(5, &Manager::assignment(1, 1, 2));
    let peer = id(2, 1);
    let problem = |words: &str| {
        until(words, || {
            let text = manager.said(5, DomainNode::Problem)?;
            String::from_utf8_lossy(&text).contains(words).then_some(())
        });
    };
    manager.store.now().write("/local/domain/5/fido/peers/09-1", b"{}").unwrap();
    problem("no node of this layout");
    manager.store.now().remove("/local/domain/5/fido/peers/09-1").unwrap();
    manager.write(5, ManagerNode::Reader(peer), &[0xFF; 2000]);
    problem("readers/2-1: 2000 bytes");
    manager.tell(5, ManagerNode::Reader(peer), &Reader { domain: 0x7FF0 });
    problem("no domain can have that number");
    manager.untell(5, ManagerNode::Reader(peer));
    // A peer that has gone between its introduction and the mapping: its reference is worth nothing.
    manager.tell(5, ManagerNode::Peer(peer), &Peer::Alive { domain: 6, root: 44, bytes: BYTES });
    problem("reference 44 (page 0) of domain 6 cannot be mapped");
    assert_eq!(manager.said(5, DomainNode::Mapped(peer)), None);
    let link = |ports| Link { domain: 6, ports: Some(ports) };
    manager.tell(5, ManagerNode::Link { link: 1, peer }, &link(vec![1]));
    problem("link 1 has 2 lanes here, and the peer made 1 ports");
    manager.untell(5, ManagerNode::Link { link: 1, peer });
    manager.tell(5, ManagerNode::Peer(peer), &Peer::Dead {});
    manager.wait::<Passed>(5, DomainNode::Passed(peer));
    manager.untell(5, ManagerNode::Peer(peer));
    // After all that, it is as good as new.
    let next = id(2, 2);
    manager.tell(5, ManagerNode::Reader(next), &Reader { domain: 7 });
    manager.wait::<u32>(5, DomainNode::Root(next));
    manager.fake.die();
}

#[test]
fn a_word_that_comes_too_late_leaves_no_node() {
    let manager = Manager::new();
    manager.announce(5, &Manager::assignment(1, 1, 1));
    let platform = manager.platform(5).unwrap();
    platform.reporter().passed(id(2, 1)).unwrap();
    platform.reporter().mapped(id(2, 1)).unwrap();
    assert_eq!(manager.said(5, DomainNode::Passed(id(2, 1))), None);
    assert_eq!(manager.said(5, DomainNode::Mapped(id(2, 1))), None);
}

#[test]
fn without_a_manager_or_with_another_release_there_is_no_domain() {
    let manager = Manager::new();
    manager.fake.add_domain(5);
    let devices = manager.machine.devices(5);
    let alone = XenPlatform::over(manager.fake.connect(5), "", devices, Duration::from_millis(50));
    assert!(matches!(&alone, Err(PlatformError::NoManager(text)) if text.contains("fido/version")), "{alone:?}");
    manager.announce(5, &Manager::assignment(1, 1, 1));
    manager.write(5, ManagerNode::Version, b"2");
    let error = manager.platform(5).unwrap_err();
    assert!(matches!(error, PlatformError::Xen(XenError::Layout(LayoutError::Version { .. }))), "{error}");
    let problem = manager.said(5, DomainNode::Problem).unwrap();
    assert!(String::from_utf8_lossy(&problem).contains("same release"));
    manager.write(5, ManagerNode::Version, b"1");
    manager.write(5, ManagerNode::Assignment, b"");
    manager.store.now().write("/local/domain/5/fido/assignment/0", b"{}").unwrap();
    let error = manager.platform(5).unwrap_err();
    assert!(error.to_string().contains("assignment"), "{error}");
    let gone = manager.fake.connect(5);
    manager.fake.die();
    let error = XenPlatform::over(gone, "", manager.machine.devices(5), LIMIT).unwrap_err();
    assert!(matches!(error, PlatformError::Xen(XenError::Store(_))), "{error}");
}

#[test]
fn the_end_of_xenstored_is_the_end_of_the_manager() {
    let manager = Manager::new();
    manager.announce(5, &Manager::assignment(1, 1, 1));
    let mut platform = manager.platform(5).unwrap();
    manager.fake.die();
    assert!(matches!(platform.next_event(), Err(PlatformError::ManagerGone)));
}

#[test]
fn an_arena_is_kept_before_it_is_offered_and_a_successor_reads_it() {
    let manager = Manager::new();
    let first = manager.heir(5, &Manager::assignment(1, 1, 1), 4, None);
    assert!(first.take_predecessor().is_none());
    let root: u32 = manager.wait(5, DomainNode::Kept);
    assert_eq!(manager.machine.granted_to(4), 1);
    let mut heritage = crate::heritage::Heritage::new(&first.memory(), 64).unwrap();
    heritage.write(0, b"promised");
    heritage.announce();
    // The keeper hands on to guest 6 what it has itself: here, another grant of the same arena.
    let reader = id(2, 1);
    manager.tell(5, ManagerNode::Reader(reader), &Reader { domain: 6 });
    let handed: u32 = manager.wait(5, DomainNode::Root(reader));
    assert_ne!(handed, root);
    let left = |root| Predecessor { id: WireId { slot: 1, generation: 1 }, domain: 5, root, bytes: BYTES };
    let second = manager.heir(6, &Manager::assignment(1, 2, 1), 4, Some(left(handed)));
    let window = second.take_predecessor().unwrap();
    let inherited = crate::heritage::Inherited::of(&window).unwrap().unwrap();
    assert_eq!(&inherited.to_vec()[..8], b"promised");
    assert_eq!(window.id(), id(1, 1));
    // What cannot be mapped is said, and lived without.
    let third = manager.heir(7, &Manager::assignment(1, 3, 1), 4, Some(left(4711)));
    assert!(third.take_predecessor().is_none());
    assert!(manager.said(7, DomainNode::Problem).is_some());
}
