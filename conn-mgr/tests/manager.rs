//! The manager with real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::os::fd::AsFd;
use std::time::Duration;

use conn_mgr::manager::{DomainState, KillError, Manager, ManagerError, Options, ShutdownError, WaitError};
use conn_mgr::manifest::Manifest;
use fido_core::platform::host::protocol::{self, FromDomain, FromManager, PROTOCOL_VERSION};
use support::{Bench, PATIENCE, connect, eventually, is_alive};

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    support::component();
}

fn options(bench: &Bench) -> Options {
    Options { runtime_dir: Some(bench.path("run")), start_deadline: PATIENCE, ..Options::default() }
}

fn start(bench: &Bench) -> Manager {
    start_with(bench, options(bench))
}

fn start_with(bench: &Bench, options: Options) -> Manager {
    let manifest = Manifest::parse(bench.text(), "test").unwrap_or_else(|error| panic!("{error}"));
    Manager::start(manifest, options).unwrap()
}

#[test]
fn linked_domains_get_each_others_arenas_and_bells_and_nobody_else_does() {
    let mut bench = Bench::new();
    bench.domain("net", &[], &["windows = [\"disk\"]"]).domain("fs", &[], &[]).domain("disk", &[], &[]);
    bench.domain("other", &[], &[]).link("nfs", "net", "fs", 2).link("block", "fs", "disk", 3);
    let manager = start(&bench);
    let status = manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(status.domains.iter().map(|d| d.slot).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(status.domains.iter().all(|d| d.generation == 1 && d.restarts == 0 && d.notes["port"] == "1234"));
    for line in [
        "net 1 peer fs 2.1 counted 5",
        "net 1 peer disk 3.1 counted 5",
        "net 1 link 1 2.1 lanes 2",
        "net 1 bell 1/1",
        "fs 1 peer net 1.1 counted 5",
        "fs 1 peer disk 3.1 counted 5",
        "fs 1 link 1 1.1 lanes 2",
        "fs 1 link 2 3.1 lanes 3",
        "fs 1 bell 2/2",
        "disk 1 peer fs 2.1 counted 5",
        "disk 1 link 2 2.1 lanes 3",
        "disk 1 bell 2/0",
    ] {
        bench.wait_for(line);
    }
    assert_eq!(manager.stats("disk").unwrap().messages_sent, 5);
    assert_eq!(manager.stats("nobody"), None);
    manager.shutdown(PATIENCE).unwrap();
    let log = bench.log();
    assert!(!log.iter().any(|line| line.starts_with("disk 1 peer net")), "a window is one-way: {log:#?}");
    assert!(!log.iter().any(|line| line.starts_with("other 1 peer") || line.contains("peer other")), "{log:#?}");
    assert!(bench.is_swept());
}

#[test]
fn a_death_is_told_fenced_and_followed_by_the_next_generation() {
    let mut bench = Bench::new();
    bench.domain("net", &[], &["windows = [\"disk\"]"]).domain("fs", &[], &[]).domain("disk", &[], &[]);
    bench.link("nfs", "net", "fs", 1).link("block", "fs", "disk", 1);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    bench.wait_for("fs 1 link 2 3.1");
    manager.kill("disk").unwrap();
    assert_ne!(manager.status().domain("disk").unwrap().state, DomainState::Ready);
    let status = manager.wait_ready(PATIENCE).unwrap();
    let disk = status.domain("disk").unwrap();
    assert_eq!((disk.generation, disk.restarts), (2, 1));
    assert!(disk.problem.as_ref().unwrap().contains("on request"));
    bench.wait_for("fs 1 link 2 3.2 lanes 1");
    bench.wait_for("net 1 fenced 3.1");
    bench.wait_for("fs 1 fenced 3.1");
    bench.wait_for("net 1 peer disk 3.2");
    let order = ["fs 1 peer disk 3.1", "fs 1 died 3.1", "fs 1 passed 3.1", "fs 1 fenced 3.1"];
    let order: Vec<_> = order.iter().map(|line| bench.position(line)).collect();
    assert!(order.is_sorted(), "{order:?} in {:#?}", bench.log());
    assert!(bench.position("fs 1 passed 3.1") < bench.position("net 1 fenced 3.1"));
    assert_eq!(manager.stats("disk").unwrap().messages_sent, 10, "the dead incarnation's counts are kept");
    assert_eq!(manager.kill("nobody"), Err(KillError::Unknown("nobody".into())));
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(manager.kill("disk"), Err(KillError::Stopped));
}

#[test]
fn the_one_after_next_incarnation_waits_for_the_fence() {
    let mut bench = Bench::new();
    let word = format!("pass-when={}", bench.path("go").display());
    bench.line("fence.deadline = \"1h\"").domain("fs", &[&word], &[]).domain("disk", &[], &[]);
    bench.link("block", "fs", "disk", 1);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    bench.wait_for("fs 1 link 1 2.1");
    manager.kill("disk").unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    bench.wait_for("fs 1 link 1 2.2");
    manager.kill("disk").unwrap();
    assert!(manager.wait_ready(Duration::from_millis(300)).is_err(), "2.1 and 2.3 would share a place");
    assert_eq!(manager.status().domain("disk").unwrap().state, DomainState::Restarting);
    std::fs::write(bench.path("go"), "").unwrap();
    assert_eq!(manager.wait_ready(PATIENCE).unwrap().domain("disk").unwrap().generation, 3);
    assert!(bench.position("fs 1 passed 2.1") < bench.position("disk 3 ready"));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn who_does_not_map_what_it_is_given_is_killed() {
    let mut bench = Bench::new();
    bench.line("fence.deadline = \"200ms\"").domain("fs", &["never-maps"], &["restart = \"never\""]);
    bench.domain("disk", &[], &[]).link("block", "fs", "disk", 1);
    let manager = start(&bench);
    assert!(manager.wait_until(PATIENCE, |status| status.domain("fs").unwrap().state == DomainState::Failed));
    assert!(manager.status().domain("fs").unwrap().problem.as_ref().unwrap().contains("did not map"));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn who_does_not_pass_the_fence_is_killed() {
    let mut bench = Bench::new();
    bench.line("fence.deadline = \"200ms\"").domain("fs", &["pass-when=/nonexistent"], &[]).domain("disk", &[], &[]);
    bench.link("block", "fs", "disk", 1);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    bench.wait_for("fs 1 link 1 2.1");
    manager.kill("disk").unwrap();
    assert!(manager.wait_until(PATIENCE, |status| status.domain("fs").unwrap().generation == 2));
    assert!(manager.status().domain("fs").unwrap().problem.as_ref().unwrap().contains("did not let go"));
    manager.wait_ready(PATIENCE).unwrap();
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn the_restart_limit_ends_in_failure_and_the_others_go_on() {
    let mut bench = Bench::new();
    bench.domain("bad", &["abort"], &["restart-limit = 2", "restart-delay = \"1ms\""]).domain("good", &[], &[]);
    bench.domain("late", &[], &["after = [\"bad\"]"]);
    let manager = start(&bench);
    let WaitError::Failed { domain, problem } = manager.wait_ready(PATIENCE).unwrap_err() else { panic!() };
    assert_eq!(domain, "bad");
    assert!(problem.contains("restart limit") && problem.contains("signal: 6"), "{problem}");
    assert!(manager.wait_until(PATIENCE, |s| s.domain("good").unwrap().state == DomainState::Ready));
    let status = manager.status();
    assert_eq!((status.domain("bad").unwrap().generation, status.domain("bad").unwrap().restarts), (3, 2));
    assert_eq!(status.domain("late").unwrap().state, DomainState::Waiting);
    manager.shutdown(PATIENCE).unwrap();
    assert_eq!(bench.log().iter().filter(|line| line.starts_with("bad pid")).count(), 3);
}

#[test]
fn who_gives_up_at_its_first_start_is_not_started_again() {
    let mut bench = Bench::new();
    bench.domain("bad", &["crash"], &[]);
    let manager = start(&bench);
    let error = manager.wait_ready(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("gave up") && error.contains("exit status: 3"), "{error}");
    assert_eq!(manager.status().domain("bad").unwrap().generation, 1);
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn ends_in_order_by_policy() {
    let mut bench = Bench::new();
    bench.domain("once", &["done"], &["restart = \"on-failure\""]).domain("never", &["done"], &["restart = \"never\""]);
    bench.domain("crash", &["crash"], &["restart = \"never\""]);
    let manager = start(&bench);
    let state = |name: &str| manager.status().domain(name).unwrap().state;
    eventually("both ended", || state("once") == DomainState::Ended && state("never") == DomainState::Ended);
    eventually("one failed", || state("crash") == DomainState::Failed);
    assert_eq!(manager.kill("once"), Err(KillError::NotRunning("once".into())));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_program_that_cannot_be_executed_is_a_failed_start() {
    let mut bench = Bench::new();
    let script = bench.path("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bench.line(&format!("[domain.bad]\nprogram = {script:?}\nrestart-limit = 1"));
    let manager = start(&bench);
    let error = manager.wait_ready(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("cannot start"), "{error}");
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn what_does_not_become_ready_in_time_is_killed() {
    for word in ["never-connect", "never-ready"] {
        let mut bench = Bench::new();
        bench.domain("slow", &[word], &["restart = \"never\""]);
        let manager = start_with(&bench, Options { start_deadline: Duration::from_millis(300), ..options(&bench) });
        let error = manager.wait_ready(PATIENCE).unwrap_err().to_string();
        assert!(error.contains("not ready within"), "{error}");
        manager.shutdown(PATIENCE).unwrap();
    }
}

#[test]
fn whoever_breaks_the_protocol_goes_and_the_others_stay() {
    for (word, reason) in [
        ("garbage-later", "malformed message"),
        ("huge", "more than 65536 bytes"),
        ("arena-twice", "a second arena"),
        ("unsealed", "not sealed"),
        ("unformatted", "not an arena"),
        ("other-layout", "build both from the same release"),
        ("wrong-size", "131072 were assigned"),
        ("no-arena-fd", "0 descriptors"),
        ("few-bells", "1 descriptors"),
        ("wrong-bells", "not an eventfd"),
        ("bells-of-others", "link 99, which it does not have"),
        ("passes-anything", "passed the fence of 2.1"),
        ("close", "closed its connection"),
        ("garbage-first", "ended before it was ready"),
        ("ready-first", "ended before it was ready"),
        ("old-version", "ended before it was ready"),
        ("name=good", "ended before it was ready"),
    ] {
        let mut bench = Bench::new();
        bench.domain("bad", &[word], &["restart = \"never\""]).domain("good", &[], &[]).link("l", "bad", "good", 2);
        let manager = start(&bench);
        let bad = |status: &conn_mgr::manager::Status| status.domain("bad").unwrap().clone();
        assert!(manager.wait_until(PATIENCE, |s| bad(s).state == DomainState::Failed), "{word}");
        let problem = bad(&manager.status()).problem.unwrap();
        assert!(problem.contains(reason), "{word}: {problem}");
        assert!(manager.wait_until(PATIENCE, |s| s.domain("good").unwrap().state == DomainState::Ready), "{word}");
        manager.shutdown(PATIENCE).unwrap();
        if word == "name=good" {
            bench.wait_for("was started as domain `bad`, not as");
        }
        if word == "old-version" {
            bench.wait_for("it speaks version 0");
        }
    }
}

#[test]
fn impostors_are_refused() {
    let mut bench = Bench::new();
    bench.domain("net", &["connect-twice"], &[]);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    assert!(bench.wait_for("second connection").contains("has a connection already"));
    let socket = connect(&bench.socket());
    // The answer may be there before anything has been said.
    let _ = protocol::send(socket.as_fd(), &FromDomain::Hello { version: PROTOCOL_VERSION, domain: "net".into() }, &[]);
    let (answer, _) = protocol::receive::<FromManager>(socket.as_fd()).unwrap();
    let FromManager::Refused { reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("not a domain"), "{reason}");
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn starts_in_order_and_shuts_down_against_it() {
    let mut bench = Bench::new();
    bench.domain("net", &[], &["after = [\"fs\"]"]).domain("fs", &[], &["after = [\"disk\"]"]).domain("disk", &[], &[]);
    bench.link("nfs", "net", "fs", 1).link("block", "fs", "disk", 1);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    manager.shutdown(PATIENCE).unwrap();
    let order = ["disk pid", "disk 1 ready", "fs pid", "fs 1 ready", "net pid", "net 1 ready"];
    let order = order.iter().chain(&["net 1 shutdown", "fs 1 shutdown", "disk 1 shutdown"]);
    let order: Vec<_> = order.map(|line| bench.position(line)).collect();
    assert!(order.is_sorted(), "{order:?} in {:#?}", bench.log());
    assert!(manager.status().domains.iter().all(|d| d.state == DomainState::Ended && d.pid.is_none()));
    assert_eq!(manager.wait_ready(PATIENCE), Err(WaitError::Stopped));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn the_stubborn_are_terminated_and_then_killed() {
    let mut bench = Bench::new();
    bench.domain("deaf", &["ignore-shutdown"], &[]).domain("dead", &["ignore-shutdown", "ignore-term"], &[]);
    let manager = start(&bench);
    manager.wait_ready(PATIENCE).unwrap();
    let error = manager.shutdown(Duration::from_secs(2)).unwrap_err();
    assert_eq!(error, ShutdownError::Forced { domains: vec!["dead".into()] });
    assert!(manager.status().domain("deaf").unwrap().problem.as_ref().unwrap().contains("SIGTERM"));
}

#[test]
fn a_dropped_manager_leaves_nothing_behind() {
    let mut bench = Bench::new();
    bench.domain("a", &[], &[]).domain("b", &["never-connect"], &[]);
    let manager = start(&bench);
    bench.wait_for("b pid");
    bench.wait_for("a 1 ready");
    let pids: Vec<_> = manager.status().domains.iter().filter_map(|d| d.pid).collect();
    assert_eq!(pids.len(), 2);
    drop(manager);
    assert!(pids.iter().all(|&pid| !is_alive(pid)));
    assert!(bench.is_swept());
}

#[test]
fn processors_are_as_assigned() {
    let mut bench = Bench::new();
    bench.domain("pinned", &[], &["cpus = [0]"]);
    let manager = start_with(&bench, Options { start_deadline: Duration::MAX, ..options(&bench) });
    assert_eq!(manager.wait_ready(Duration::MAX).unwrap().domain("pinned").unwrap().notes["cpus"], "1");
    manager.shutdown(Duration::MAX).unwrap();
}

#[test]
fn many_deaths_in_a_row() {
    let mut bench = Bench::new();
    let keys = ["restart-limit = 1000", "restart-delay = \"0ms\""];
    bench.domain("a", &[], &keys).domain("b", &[], &keys).domain("c", &[], &keys);
    bench.link("ab", "a", "b", 1).link("bc", "b", "c", 2).link("ca", "c", "a", 1);
    let manager = start(&bench);
    for round in 0..12 {
        manager.wait_ready(PATIENCE).unwrap();
        manager.kill(["a", "b", "c"][round % 3]).unwrap();
        if round % 4 == 0 {
            // May be between two lives.
            let _ = manager.kill(["b", "c", "a"][round % 3]);
        }
    }
    let status = manager.wait_ready(PATIENCE).unwrap();
    assert!(status.domains.iter().all(|d| d.generation >= 5));
    manager.shutdown(PATIENCE).unwrap();
    assert!(!bench.log().iter().any(|line| line.contains("unexpected")));
}

#[test]
fn an_appliance_of_guests_needs_xen() {
    let text = "appliance = \"a\"\nplatform = \"xen\"\n[domain.d]\nprogram = \"/bin/sh\"\n\
                [domain.d.xen]\nkernel = \"k\"\nimage = \"i\"\n";
    let manifest = Manifest::parse(text, "test").unwrap_or_else(|error| panic!("{error}"));
    // In a dom0, the files are what is missing.
    let result = Manager::start(manifest, Options::default());
    assert!(matches!(result, Err(ManagerError::Xen(_))));
}
