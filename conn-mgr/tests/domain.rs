//! The manager with domains that use the real client, [`fido_core::domain::Domain`].
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::Manifest;
use fido_core::domain::{Domain, Notice};
use fido_core::heritage::{Heritage, Inherited};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::platform::host::protocol::SOCKET_VARIABLE;
use support::{Bench, PATIENCE};

/// Becomes a domain when the manager starts this program again: it answers every message with the payload it brought,
/// and greets whoever comes.
#[test]
fn component() {
    if std::env::var_os(SOCKET_VARIABLE).is_some() {
        std::process::exit(serve());
    }
}

fn serve() -> i32 {
    let domain = Domain::join().unwrap();
    let mut lanes: Vec<_> =
        domain.assignment().links.iter().flat_map(|l| domain.take_lanes(&l.name).unwrap()).collect();
    let mut notices = domain.notices().unwrap();
    let greets = domain.param("greets", false).unwrap();
    let inherited = testament(&domain);
    // Dies before it is ready, as long as it inherits and the file is there.
    if let Some(file) = domain.param("dies-if", None::<std::path::PathBuf>).unwrap()
        && inherited.is_some()
        && file.exists()
    {
        return 5;
    }
    let mut heritage = Heritage::new(&domain.memory(), 64).unwrap();
    heritage.publish(0, u64::from(domain.memory().id().generation.number()));
    heritage.announce();
    let mut ups = 0u64;
    let mut answers = 0u64;
    domain.ready(&[("inherited", inherited.map_or("nothing".into(), |word| word.to_string()))]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if notices.poll() == Some(Notice::Shutdown) {
            return 0;
        }
        for lane in &mut lanes {
            if let Some(fido_core::lane::Change::Up(_)) = lane.change() {
                ups += 1;
                if greets {
                    let _ = lane.send(Head { kind: 1, flags: 0, args: [0; 4] }, Payload::new());
                }
            }
            while let Some(Ok((head, payload))) = lane.recv() {
                answers += u64::from(greets);
                if !greets {
                    let _ = lane.send(head, payload);
                }
                domain.ready(&[("ups", ups.to_string()), ("answers", answers.to_string())]).unwrap();
            }
            lane.flush();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    1
}

/// What the predecessor left: its generation.
fn testament(domain: &Domain) -> Option<u64> {
    let window = domain.take_predecessor()?;
    assert!(domain.take_predecessor().is_none(), "once");
    Inherited::of(&window).unwrap().unwrap().word(0)
}

fn appliance(bench: &Bench) -> Manager {
    let manifest = Manifest::parse(bench.text(), "test").unwrap_or_else(|error| panic!("{error}"));
    let options = Options { runtime_dir: Some(bench.path("run")), ..Options::default() };
    Manager::start(manifest, options).unwrap()
}

#[test]
fn who_inherits_gets_what_the_last_one_that_served_has_left() {
    let mut bench = Bench::new();
    let file = bench.path("die");
    let keys = ["restart-delay = \"1ms\"", "restart-limit = 1000", "inherit = true"];
    let dies = format!("params = {{ dies-if = {file:?} }}");
    bench.domain("heir", &[], &[keys[0], keys[1], keys[2], &dies]).domain("other", &[], &keys[..2]);
    bench.link("l", "heir", "other", 1);
    let manager = appliance(&bench);
    let inherited = |domain: &str| {
        let status = manager.wait_ready(PATIENCE).unwrap();
        let domain = status.domain(domain).unwrap().clone();
        (domain.generation, domain.notes["inherited"].clone())
    };
    assert_eq!(inherited("heir"), (1, "nothing".into()));
    for generation in 1..=3 {
        manager.kill("heir").unwrap();
        assert_eq!(inherited("heir"), (generation + 1, generation.to_string()));
    }
    manager.kill("other").unwrap();
    assert_eq!(inherited("other"), (2, "nothing".into()), "it does not inherit");
    std::fs::write(&file, "").unwrap();
    manager.kill("heir").unwrap();
    // Some die before they are ready; what the fourth has left is not lost with them.
    assert!(manager.wait_until(PATIENCE, |status| status.domain("heir").unwrap().generation >= 8));
    std::fs::remove_file(&file).unwrap();
    let (generation, left) = inherited("heir");
    assert!(generation >= 8);
    assert_eq!(left, "4");
    manager.kill("heir").unwrap();
    assert_eq!(inherited("heir"), (generation + 1, generation.to_string()));
    manager.shutdown(PATIENCE).unwrap();
    assert!(bench.is_swept());
}

#[test]
fn messages_flow_and_survive_deaths() {
    let mut bench = Bench::new();
    let keys = ["restart-delay = \"1ms\"", "params = { greets = true }"];
    bench.domain("front", &[], &keys).domain("back", &[], &keys[..1]).link("l", "front", "back", 2);
    let manifest = Manifest::parse(bench.text(), "test").unwrap_or_else(|error| panic!("{error}"));
    let options = Options { runtime_dir: Some(bench.path("run")), ..Options::default() };
    let manager = Manager::start(manifest, options).unwrap();
    let answered = |generation, count: &str| {
        let settled = manager.wait_until(PATIENCE, |status| {
            let front = status.domain("front").unwrap();
            front.generation == generation && front.notes.get("answers").is_some_and(|n| n == count)
        });
        assert!(settled, "{:#?}", manager.status());
    };
    answered(1, "2");
    for count in ["4", "6", "8"] {
        manager.kill("back").unwrap();
        manager.wait_ready(PATIENCE).unwrap();
        answered(1, count);
    }
    manager.kill("front").unwrap();
    answered(2, "2");
    assert!(manager.stats("front").unwrap().messages_sent >= 10);
    manager.shutdown(PATIENCE).unwrap();
    assert!(bench.is_swept());
}
