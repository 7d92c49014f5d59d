//! The carrier with a program that plays `xl`, a xenstored in this process, and guests that are threads of it. The real
//! ones are in the Xen testbed.

mod bench;
mod puppet;
mod vault;

use std::time::Duration;

use bench::{Bench, Manners, PATIENCE};
use fido_core::assignment::WireId;
use fido_core::platform::xen::layout::ManagerNode;
use fido_core::platform::xen::store::Code;

use super::XenError;
use crate::manager::{DomainState, ManagerError, ShutdownError, Status};

fn problem(status: &Status, domain: &str) -> String {
    status.domain(domain).and_then(|domain| domain.problem.clone()).unwrap_or_default()
}

fn nas(bench: &mut Bench) {
    bench.domain("net", "windows = [\"disk\"]").domain("fs", "").domain("disk", "");
    bench.link("nfs", "net", "fs", 2).link("block", "fs", "disk", 3);
}

#[test]
fn an_appliance_of_guests_comes_up_and_goes_down() {
    let mut bench = Bench::new("up-and-down");
    nas(&mut bench);
    let manager = bench.start();
    let status = manager.wait_ready(PATIENCE).unwrap();
    let guests: Vec<_> = status.domains.iter().map(|domain| domain.guest.unwrap()).collect();
    assert!(status.domains.iter().all(|d| d.generation == 1 && d.notes["note"] == "x".repeat(3000)), "{status:#?}");
    for line in [
        "net 1 map fs 1",
        "net 1 map disk 1",
        "net 1 open 1 fs 1",
        "fs 1 bind 1 net 1 [1001, 1002]",
        "fs 1 open 2 disk 1",
        "disk 1 bind 2 fs 1 [1001, 1002, 1003]",
        "disk 1 grant net 1",
        "disk 1 grant fs 1",
    ] {
        bench.wait_for(line);
    }
    assert!(!bench.log().iter().any(|line| line.contains("disk 1 map net")), "a window is one-way");
    // Only fs reads net; the others have two readers.
    let pairs = guests.iter().map(|&guest| bench.store(guest).now().read_if_any("fido/pair").unwrap());
    assert_eq!(pairs.collect::<Vec<_>>(), [Some(guests[1].to_string().into_bytes()), None, None]);
    // What the manager tells one guest, that one cannot change and others cannot read.
    let home = |at: usize| format!("/local/domain/{}", guests[at]);
    let own = bench.store(guests[0]);
    let refusal = own.now().write(&ManagerNode::Stop.path(&home(0)), b"x").unwrap_err();
    assert_eq!(refusal.code(), Some(&Code::NotPermitted));
    let refusal = own.now().read(&ManagerNode::Version.path(&home(1))).unwrap_err();
    assert_eq!(refusal.code(), Some(&Code::NotPermitted));
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(bench.guests(), Vec::<u16>::new());
    let config = bench.config("fs");
    assert!(config.contains(&format!("name = {:?}\n", bench.guest_name("fs"))), "{config}");
    assert!(config.contains("\nuuid = \"f1d0f1d0-0002-0001-"), "{config}");
}

#[test]
fn a_guest_that_dies_is_told_fenced_and_followed_by_the_next_generation() {
    let mut bench = Bench::new("death");
    nas(&mut bench);
    let manager = bench.start();
    let first = manager.wait_ready(PATIENCE).unwrap().domain("disk").unwrap().guest.unwrap();
    bench.wait_for("fs 1 open 2 disk 1");
    // Not by the manager: somebody has typed `xl destroy`.
    bench.destroy(first);
    let again = |status: &Status| status.domain("disk").unwrap().generation == 2;
    assert!(manager.wait_until(PATIENCE, again), "{:#?} {:#?}", manager.status(), bench.log());
    let status = manager.wait_ready(PATIENCE).unwrap();
    assert_ne!(status.domain("disk").unwrap().guest, Some(first));
    for line in ["fs 1 open 2 disk 2", "net 1 map disk 2", "net 1 fenced disk 1", "fs 1 fenced disk 1"] {
        bench.wait_for(line);
    }
    let order = ["fs 1 map disk 1", "fs 1 open 2 disk 1", "fs 1 died disk 1", "fs 1 fenced disk 1"];
    let order: Vec<_> = order.iter().map(|line| bench.position(line)).collect();
    assert!(order.is_sorted(), "{order:?} in {:#?}", bench.log());
    assert!(bench.position("fs 1 revoke disk 1") > bench.position("fs 1 grant disk 1"));
    // Nothing of the dead one is left in what the others are told, nor in what they say.
    let net = status.domain("net").unwrap().guest.unwrap();
    bench.eventually("no node about the dead", || !bench.paths(net).iter().any(|path| path.contains("3-1")));
    // The manager kills, too.
    manager.kill("fs").unwrap();
    let again = |status: &Status| status.domain("fs").unwrap().generation == 2;
    assert!(manager.wait_until(PATIENCE, again), "{:#?} {:#?}", manager.status(), bench.log());
    manager.wait_ready(PATIENCE).unwrap();
    bench.wait_for("disk 2 bind 2 fs 2");
    let fs = manager.status().domain("fs").unwrap().guest.unwrap().to_string();
    assert_eq!(bench.store(net).now().read("fido/pair").unwrap(), fs.as_bytes(), "its reader is another guest now");
    manager.shutdown(PATIENCE).unwrap();
}

/// A guest may write anything, anywhere in its part, at any time. LINK stands for a link of two lanes with `good`, GOOD
/// for its slot.
const HOSTILE: [(&str, &str, &str); 19] = [
    ("version", "2", "layout version \"2\""),
    ("arena", "{\"bytes\":4096,\"provider\":\"module\"}", "an arena of 4096 bytes, 1048576 were assigned"),
    ("arena", "not json", "xenstore node arena"),
    ("arena", "{\"bytes\":1048576,\"provider\":\"gntalloc\"}", "no module fido_arena"),
    ("arena", "LONG", "1025 bytes"),
    ("nonsense", "1", "data/fido/nonsense, which means nothing"),
    ("bells/99", "1", "bells/99 of a link that it does not have"),
    ("bells/LINK", "3", "3 lanes for link"),
    ("bells/01", "2", "bells/01, which means nothing"),
    ("bells/LINK", "-1", "xenstore node bells/"),
    ("roots/GOOD-7", "1", "although it was not told of 20.7"),
    ("roots/GOOD-1", "\"x\"", "xenstore node roots/20-1"),
    ("ports/LINK-GOOD-1", "[1]", "expected 2 different event-channel ports"),
    ("ports/LINK-GOOD-1", "[7,7]", "expected 2 different event-channel ports"),
    ("ports/LINK-GOOD-1", "[0,131072]", "expected 2 different event-channel ports"),
    ("mapped/4095-4095", "{}", "although it was not told"),
    ("passed/GOOD-1", "{\"except\":[{\"slot\":4096,\"generation\":1}]}", "which cannot exist"),
    ("passed/GOOD-1", "{}", "of whose death it was not told"),
    ("ready/0", "{\"a\":1}", "ready: invalid type"),
];

#[test]
fn what_a_guest_leaves_is_given_to_its_successor_and_let_go_when_that_serves() {
    let mut bench = Bench::new("heritage");
    bench.domain("fs", "inherit = true").domain("net", "").link("nfs", "net", "fs", 1);
    let manager = bench.start();
    let guest = manager.wait_ready(PATIENCE).unwrap().domain("fs").unwrap().guest.unwrap();
    let keeper = |guest: u16| bench.store(guest).now().read_if_any("fido/keeper").unwrap();
    let net = manager.status().domain("net").unwrap().guest.unwrap();
    assert_eq!((keeper(guest).is_some(), keeper(net)), (true, None), "only who inherits has a keeper");
    assert!(!bench.log().iter().any(|line| line.contains("finds")), "nobody has died: {:#?}", bench.log());
    bench.destroy(guest);
    bench.wait_for("fs 2 finds 79 of 1");
    bench.wait_for("1.1 is let go");
    let heir = manager.status().domain("fs").unwrap().guest.unwrap();
    let given = bench.position(&format!("1.1, of 1.1, for guest {heir}"));
    assert!(given < bench.position("fs 2 finds 79 of 1") && given < bench.position("1.1 is let go"));
    // The next one inherits from this one, and nothing of the first.
    manager.wait_ready(PATIENCE).unwrap();
    bench.destroy(heir);
    bench.wait_for("fs 3 finds 79 of 2");
    bench.wait_for("1.2 is let go");
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_heritage_that_cannot_be_kept_costs_the_heritage_and_no_more() {
    let mut bench = Bench::new("no-vault");
    bench.domain("fs", "inherit = true");
    bench.fail_vault();
    let manager = bench.start();
    let status = manager.wait_ready(PATIENCE).unwrap();
    assert!(problem(&status, "fs").contains("it can leave nothing to a successor"), "{status:#?}");
    bench.destroy(status.domain("fs").unwrap().guest.unwrap());
    assert!(manager.wait_until(PATIENCE, |s| s.is_ready() && s.domain("fs").is_some_and(|fs| fs.generation == 2)));
    assert!(!bench.log().iter().any(|line| line.contains("finds")), "{:#?}", bench.log());
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn what_a_guest_may_not_say_is_refused_and_costs_only_that_guest() {
    let mut bench = Bench::new("hostile");
    for (at, (node, value, _)) in HOSTILE.iter().enumerate() {
        bench.domain(&format!("bad{at}"), "restart = \"never\"\nafter = [\"good\", \"other\"]");
        let fill = |text: &str| {
            let link = (2 * at + 1).to_string();
            text.replace("LINK", &link).replace("GOOD", "20").replace("LONG", &"9".repeat(1025))
        };
        let says = vec![(fill(node), fill(value))];
        bench.manners(&format!("bad{at}"), Manners { says, ..Manners::default() });
    }
    bench.domain("good", "").domain("other", "");
    for at in 0..HOSTILE.len() {
        let bad = format!("bad{at}");
        bench.link(&format!("l{at}"), &bad, "good", 2).link(&format!("m{at}"), &bad, "other", 1);
    }
    let manager = bench.start();
    let over = |status: &Status| status.failed().count() == HOSTILE.len();
    assert!(manager.wait_until(PATIENCE, over), "{:#?}", manager.status());
    let status = manager.status();
    for (at, (node, value, expected)) in HOSTILE.iter().enumerate() {
        let problem = problem(&status, &format!("bad{at}"));
        assert!(problem.contains(expected), "{node} = {value}: {problem}");
    }
    for good in ["good", "other"] {
        let good = status.domain(good).unwrap();
        assert_eq!((good.state, good.generation, &good.problem), (DomainState::Ready, 1, &None));
    }
    assert_eq!(bench.guests().len(), 2);
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(bench.guests(), Vec::<u16>::new());
}

#[test]
fn who_owes_an_answer_is_the_one_to_go() {
    let mut bench = Bench::new("debts");
    bench.line("fence.deadline = \"300ms\"");
    bench.domain("a", "restart = \"never\"").domain("b", "restart = \"never\"").link("l", "a", "b", 1);
    bench.manners("b", Manners { never_grants: true, ..Manners::default() });
    let manager = bench.start();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("b").unwrap().state == DomainState::Failed));
    let status = manager.status();
    assert!(problem(&status, "b").contains("did not grant its arena to domain 1.1 in time"), "{status:#?}");
    assert_eq!(status.domain("a").unwrap().state, DomainState::Ready);
    manager.shutdown(PATIENCE).unwrap();

    let mut bench = Bench::new("ports");
    bench.line("fence.deadline = \"300ms\"");
    bench.domain("a", "restart = \"never\"").domain("b", "restart = \"never\"").link("l", "a", "b", 1);
    bench.manners("a", Manners { never_opens: true, ..Manners::default() });
    let manager = bench.start();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("a").unwrap().state == DomainState::Failed));
    assert!(problem(&manager.status(), "a").contains("did not make the ports of link 1"));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn how_a_guest_ends_decides_what_follows() {
    let mut bench = Bench::new("ends");
    bench.domain("early", "").domain("done", "restart = \"on-failure\"").domain("crash", "restart-delay = \"1ms\"");
    bench.manners("early", Manners { exits_early: Some("exit 3".into()), ..Manners::default() });
    bench.manners("done", Manners { exits: Some("exit 0".into()), ..Manners::default() });
    let manager = bench.start();
    let state = |domain: &str, state| {
        let is_so = |status: &Status| status.domain(domain).unwrap().state == state;
        assert!(manager.wait_until(PATIENCE, is_so), "{domain}: {:#?}", manager.status());
    };
    state("early", DomainState::Failed);
    assert!(problem(&manager.status(), "early").contains("exit 3"), "{:#?}", manager.status());
    state("done", DomainState::Ended);
    state("crash", DomainState::Ready);
    let guest = manager.status().domain("crash").unwrap().guest.unwrap();
    bench.crash(guest);
    let again = |status: &Status| status.domain("crash").unwrap().generation == 2;
    assert!(manager.wait_until(PATIENCE, again), "{:#?}", manager.status());
    assert!(problem(&manager.status(), "crash").contains("kernel crashed"));
    state("crash", DomainState::Ready);
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(bench.guests(), Vec::<u16>::new());
}

#[test]
fn xl_that_fails_says_why() {
    let mut bench = Bench::new("xl-fails");
    bench.domain("a", "").domain("b", "restart-delay = \"1ms\"");
    bench.fail_create("a", "libxl: error: libxl_create.c: not enough memory");
    let manager = bench.start();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("a").unwrap().state == DomainState::Failed));
    assert!(problem(&manager.status(), "a").contains("not enough memory"), "{:#?}", manager.status());
    assert!(manager.wait_until(PATIENCE, |status| status.domain("b").unwrap().state == DomainState::Ready));
    bench.fail_destroys(1);
    manager.kill("b").unwrap();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("b").unwrap().generation == 2), "tried again");
    manager.wait_until(PATIENCE, |status| status.domain("b").unwrap().state == DomainState::Ready);
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(bench.guests(), Vec::<u16>::new());
}

#[test]
fn without_xenstored_what_is_linked_goes_on_and_can_be_ended() {
    let mut bench = Bench::new("store-gone");
    bench.domain("a", "").domain("b", "").link("l", "a", "b", 1);
    let manager = bench.start();
    manager.wait_ready(PATIENCE).unwrap();
    bench.end_store();
    let told =
        |status: &Status| status.domains.iter().all(|d| d.problem.as_ref().is_some_and(|p| p.contains("xenstored")));
    assert!(manager.wait_until(PATIENCE, told), "{:#?}", manager.status());
    assert!(manager.status().is_ready(), "they go on");
    manager.kill("b").unwrap();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("b").unwrap().state == DomainState::Failed));
    assert!(problem(&manager.status(), "b").contains("xenstored"), "{:#?}", manager.status());
    match manager.shutdown(Duration::from_millis(200)) {
        Ok(()) | Err(ShutdownError::Forced { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    assert_eq!(bench.guests(), Vec::<u16>::new());
}

#[test]
fn guests_that_cannot_be_destroyed_without_xenstored_are_named() {
    let mut bench = Bench::new("left-behind");
    bench.domain("a", "").domain("b", "");
    let manager = bench.start();
    manager.wait_ready(PATIENCE).unwrap();
    bench.end_store();
    bench.fail_destroys(1);
    let left = manager.shutdown(PATIENCE).unwrap_err();
    // The last one to be started is ended first; the other one can be.
    assert!(matches!(&left, ShutdownError::Left { domains } if domains.len() == 1), "{left}");
    assert_eq!(bench.guests().len(), 1);
}

#[test]
fn what_a_killed_manager_has_left_is_ended_and_what_is_not_ours_is_left_alone() {
    let mut bench = Bench::new("leftovers");
    bench.domain("a", "");
    let left = bench.add_guest(&bench.guest_name("a"), "f1d0f1d0-0001-0001-0000-000000000001");
    let other = bench.add_guest(&bench.guest_name("b"), "f1d0f1d0-0001-0001-0000-000000000002");
    let manager = bench.start();
    assert!(!bench.guests().contains(&left) && bench.guests().contains(&other));
    let error = bench.try_start().err().unwrap();
    assert!(matches!(&error, ManagerError::Xen(XenError::Running(name)) if name == bench.appliance()), "{error}");
    manager.shutdown(PATIENCE).unwrap();
    let foreign = bench.add_guest(&bench.guest_name("a"), "12345678-0001-0001-0000-000000000001");
    let error = bench.try_start().err().unwrap();
    assert!(matches!(&error, ManagerError::Xen(XenError::NameTaken { domain, .. }) if *domain == foreign), "{error}");
    assert!(bench.guests().contains(&foreign));
}

/// Appliance `x-y` with domain `z`, and `x` with `y-z`.
#[test]
fn a_guest_of_an_appliance_that_makes_the_same_name_is_left_alone() {
    let mut bench = Bench::new("same-name");
    bench.domain("a", "");
    let running = bench.add_guest(&bench.guest_name("a"), "f1d0f1d0-0001-0001-0000-000000000001");
    let id = WireId { slot: 1, generation: 1 }.check().unwrap();
    let mut assignment = bench.manifest().assignment(0, id).unwrap();
    assignment.appliance = "same".into();
    let path = format!("/local/domain/{running}/fido/assignment/0");
    bench.write(&path, &serde_json::to_vec(&assignment).unwrap());
    let error = bench.try_start().err().unwrap();
    assert!(matches!(&error, ManagerError::Xen(XenError::NameTaken { domain, .. }) if *domain == running), "{error}");
    assert!(bench.guests().contains(&running));
    // The same guest of a manager of this appliance, which was killed.
    assignment.appliance = bench.appliance().into();
    bench.write(&path, &serde_json::to_vec(&assignment).unwrap());
    let manager = bench.start();
    assert!(!bench.guests().contains(&running));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_manager_that_is_dropped_leaves_no_guest() {
    let mut bench = Bench::new("dropped");
    bench.domain("a", "");
    let manager = bench.start();
    manager.wait_ready(PATIENCE).unwrap();
    drop(manager);
    assert_eq!(bench.guests(), Vec::<u16>::new());
}

#[test]
fn what_xen_must_allow_is_checked_before() {
    let mut bench = Bench::new("limits");
    bench.line("").domain_sized("a", "256MiB").domain_sized("b", "256MiB").link("l", "a", "b", 1);
    let error = bench.try_start().err().unwrap().to_string();
    for part in ["gnttab_max_frames=265", "gnttab_max_maptrack_frames=", "allows 64 and 1024"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(bench.guests(), Vec::<u16>::new());
    bench.allow("gnttab_max_frames=512 gnttab_max_maptrack_frames=4096");
    let manager = bench.start();
    manager.wait_ready(PATIENCE).unwrap();
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn files_that_are_missing_are_named() {
    let mut bench = Bench::new("files");
    bench.domain("a", "");
    let error = super::start::check_files(&bench.manifest()).unwrap_err().to_string();
    assert!(error.contains("domain `a`, `xen.kernel`") && error.contains("/no/kernel"), "{error}");
}
