//! Several TAP devices on one switch.

use std::time::Duration;

use crate::rig::{Appliance, Space};

/// A switch with settings for it, and the spaces at it.
pub type Hub<'a> = (&'a str, &'a str, &'a [&'a Space]);

/// The switches, a TAP domain `t1`, `t2`, … for each space, and their links; all may read each other.
pub fn manifest(hubs: &[Hub<'_>]) -> String {
    let program = env!("CARGO_BIN_EXE_mmnet-switch");
    let names = hubs.iter().flat_map(|(switch, _, spaces)| {
        std::iter::once((*switch).to_owned()).chain(spaces.iter().map(|space| format!("t{}", space.number)))
    });
    let names: Vec<_> = names.collect();
    let windows = |of: &str| format!("windows = {:?}\n", names.iter().filter(|name| *name != of).collect::<Vec<_>>());
    let mut text = String::new();
    for (switch, settings, spaces) in hubs {
        text += &format!("[domain.{switch}]\nprogram = {program:?}\narena = \"16MiB\"\n{}", windows(switch));
        text += &format!("restart-delay = \"1ms\"\nrestart-limit = 1000\n{settings}\n");
        for space in *spaces {
            let name = format!("t{}", space.number);
            text += &format!("{}{}", space.domain(&name), windows(&name));
            text += &format!("[[link]]\nname = {name:?}\nbetween = [{name:?}, {switch:?}]\nslots = 256\n");
        }
    }
    text
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn the_others_go_on_when_a_domain_or_the_switch_dies_under_load_and_all_buffers_come_back() {
    let (a, b, c) = (Space::new(1, 1500), Space::new(2, 1500), Space::new(3, 1500));
    let appliance = Appliance::start(&manifest(&[("switch", "", &[&a, &b, &c])]));
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        from.run(&["ping", "-c1", "-W5", &to.v4()]);
        from.run(&["ping", "-c1", "-W5", &to.v6()]);
    }
    let _server = b.start(&["iperf3", "-s"]);
    b.wait_for_port(5201);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| a.run(&["iperf3", "-c", &b.v4(), "--bidir", "-t", "5"]));
        std::thread::sleep(Duration::from_millis(300));
        appliance.kill("t3");
        std::thread::sleep(Duration::from_millis(200));
        appliance.kill("switch");
        std::thread::sleep(Duration::from_millis(200));
        appliance.kill("t1");
        assert!(!load.is_finished(), "under load");
        println!("{}", load.join().unwrap());
    });
    c.run(&["ping", "-c1", "-W5", &a.v4()]);
    for name in ["t1", "t2", "t3"] {
        appliance.wait_for_buffers(name);
    }
    let status = appliance.manager.status();
    let generation = |name: &str| status.domain(name).unwrap().generation;
    assert_eq!(["switch", "t1", "t2", "t3"].map(generation), [2, 2, 1, 2], "{status:#?}");
    let stats = appliance.manager.stats("switch").unwrap();
    assert_eq!((stats.payload_bytes_copied, stats.refusals), (0, 0), "{stats:?}");
    println!("{:?}", status.domain("switch").unwrap().notes);
    appliance.end();
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn vlans_are_apart_across_a_trunk_and_ports_of_different_mtu_talk() {
    let (a, b) = (Space::new(1, 9000), Space::new(2, 1500));
    let (c, d) = (Space::new(3, 1500), Space::new(4, 1500));
    let trunk = "ports.trunk = { trunk = [10, 20], native = 10 }";
    let west = format!("params = {{ ports.t1 = {{ access = 10, mtu = 9000 }}, ports.t3.access = 20, {trunk} }}");
    let east = format!("params = {{ ports.t2.access = 10, ports.t4.access = 20, {trunk} }}");
    let text = manifest(&[("west", &west, &[&a, &c]), ("east", &east, &[&b, &d])]);
    let appliance =
        Appliance::start(&format!("{text}[[link]]\nname = \"trunk\"\nbetween = [\"west\", \"east\"]\nslots = 256\n"));
    a.run(&["ping", "-c1", "-W5", &b.v4()]);
    c.run(&["ping", "-c1", "-W5", &d.v4()]);
    a.fails(&["ping", "-c1", "-W1", &c.v4()]);
    a.fails(&["ping", "-c1", "-W1", &d.v4()]);
    let (_one, _other) = (b.start(&["iperf3", "-s"]), d.start(&["iperf3", "-s"]));
    b.wait_for_port(5201);
    d.wait_for_port(5201);
    // TCP agrees on what the smaller takes; large frames cross the trunk whole, those of VLAN 20 with a tag.
    println!("{}", a.run(&["iperf3", "-c", &b.v4(), "-n", "32M"]));
    println!("{}", a.run(&["iperf3", "-c", &b.v6(), "-n", "32M", "-R"]));
    println!("{}", c.run(&["iperf3", "-c", &d.v4(), "-n", "32M"]));
    println!("{}", c.run(&["iperf3", "-c", &d.v6(), "-n", "32M", "-R"]));
    for name in ["west", "east"] {
        let stats = appliance.manager.stats(name).unwrap();
        assert_eq!((stats.payload_bytes_copied, stats.refusals), (0, 0), "{name}: {stats:?}");
        println!("{:?}", appliance.manager.status().domain(name).unwrap().notes);
    }
    appliance.end();
}
