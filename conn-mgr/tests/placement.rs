//! Where the processes of an appliance under `fidod` really run.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::Path;
use std::process::Command;

use fido_core::topology::{HandOver, Matrix, Origin, Topology, allowed, list, store};
use rustix::process::{Pid, Signal, kill_process};
use support::run::Running;
use support::{Bench, eventually};

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    support::component();
}

/// A `fidod` and what it said when it was ready. Killed, and its domains with it, when dropped.
struct Appliance {
    fidod: Running,
    status: serde_json::Value,
}

impl Appliance {
    fn start(bench: &Bench, cache: &Path) -> Self {
        let manifest = bench.path("appliance.toml");
        std::fs::write(&manifest, bench.text()).unwrap();
        let mut fidod = Running::start(
            Command::new(env!("CARGO_BIN_EXE_fidod"))
                .arg(&manifest)
                .arg("--json")
                .env("XDG_RUNTIME_DIR", bench.path("run"))
                .env("XDG_CACHE_HOME", cache)
                .env_remove("RUST_LOG"),
        );
        let line = fidod.wait_for("the status of a ready appliance", |fidod| {
            fidod.out().split_once('\n').map(|(line, _)| line.to_owned())
        });
        let status = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}\n{}", fidod.err()));
        Self { fidod, status }
    }

    fn domain(&self, name: &str) -> &serde_json::Value {
        let domains = self.status["domains"].as_array().unwrap();
        domains.iter().find(|domain| domain["name"] == name).unwrap()
    }

    fn pid(&self, name: &str) -> u32 {
        self.domain(name)["pid"].as_u64().unwrap() as u32
    }
}

/// What the kernel says of a process.
fn cpus_of(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

fn pid_of_generation(bench: &Bench, domain: &str, number: usize) -> u32 {
    let mut pids = Vec::new();
    eventually("the next incarnation", || {
        let log = bench.log();
        let lines = log.iter().filter_map(|line| line.strip_prefix(&format!("{domain} pid ")));
        pids = lines.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect();
        pids.len() > number
    });
    pids[number]
}

#[test]
fn domains_run_where_the_plan_puts_them_and_stay_there() {
    let allowed = allowed().unwrap();
    let all = list::format(&allowed);
    let last = *allowed.last().unwrap();
    let mut bench = Bench::new();
    bench.domain("given", &[], &[&format!("cpus = \"{last}\"")]).domain("free", &[], &[]);
    let auto: Vec<String> = (0..allowed.len()).map(|n| format!("auto{n}")).collect();
    auto.iter().for_each(|name| _ = bench.domain(name, &[], &["cpus = \"auto\""]));
    bench.link("l", "given", "auto0", 4);
    let appliance = Appliance::start(&bench, &bench.path("no-cache"));
    assert_eq!(cpus_of(appliance.pid("given")), last.to_string());
    assert_eq!(cpus_of(appliance.pid("free")), all);
    assert_eq!(appliance.domain("given")["place"], serde_json::json!({ "placed": "given", "cpus": [last] }));
    assert_eq!(appliance.domain("free")["place"], serde_json::json!({ "placed": "anywhere" }));
    // One processor is given away, so one of the domains that want one is left over: never the one with a link.
    let mut seen = vec![last];
    for name in &auto {
        let place = &appliance.domain(name)["place"];
        if place["placed"] == "left-over" {
            assert_eq!(cpus_of(appliance.pid(name)), all);
            continue;
        }
        let cpu = place["cpus"][0].as_u64().unwrap() as u32;
        assert_eq!(cpus_of(appliance.pid(name)), cpu.to_string(), "{name}");
        seen.push(cpu);
    }
    seen.sort_unstable();
    assert_eq!(seen, allowed, "each processor has one domain");
    let errors = appliance.fidod.err();
    assert_eq!(errors.matches("it is not pinned").count(), 1, "{errors}");

    for name in ["given", "auto0"] {
        let before = (appliance.pid(name), cpus_of(appliance.pid(name)));
        kill_process(Pid::from_raw(before.0 as i32).unwrap(), Signal::KILL).unwrap();
        bench.wait_for(&format!("{name} 2 ready"));
        let after = pid_of_generation(&bench, name, 1);
        assert_ne!(after, before.0);
        assert_eq!(cpus_of(after), before.1, "{name} keeps its place");
    }
}

#[test]
fn a_kept_matrix_is_used_and_a_spoilt_one_is_not() {
    let topology = Topology::discover().unwrap();
    let cpus = &topology.allowed;
    let mut bench = Bench::new();
    bench.domain("one", &[], &["cpus = \"auto\""]);
    let cache = bench.path("cache");
    let pairs = cpus.iter().flat_map(|&a| cpus.iter().map(move |&b| (a, b))).filter(|(a, b)| a != b);
    let ns = 77.0;
    let cell = HandOver { ns, low_ns: ns, high_ns: ns, write_ns: ns, read_ns: ns, rounds: 9, origin: Origin::Measured };
    let matrix = Matrix::new(cpus.clone(), pairs.map(|pair| (pair, cell))).unwrap();
    let file = store::save(&cache.join("fido"), &topology, &matrix).unwrap();
    let errors = Appliance::start(&bench, &cache).fidod.err();
    // On a single processor there is nothing to measure.
    let basis = if cpus.len() > 1 { "by the hand-overs measured" } else { "by the topology" };
    assert!(errors.contains(basis), "{errors}");
    std::fs::write(&file, "{\"version\":99}").unwrap();
    let appliance = Appliance::start(&bench, &cache);
    let errors = appliance.fidod.err();
    assert!(errors.contains("version 99") && errors.contains("by the topology"), "{errors}");
    assert_eq!(cpus_of(appliance.pid("one")), cpus[0].to_string());
}
