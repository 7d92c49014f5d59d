//! A capture at a switch, read by tshark.

use crate::rig::{Appliance, PATIENCE, Space, said};
use crate::switch::manifest;

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn tshark_finds_the_protocols_and_nothing_wrong_in_a_capture() {
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("lan.pcap").display().to_string(), env!("CARGO_BIN_EXE_mmnet-capture"));
    let (a, b) = (Space::new(1, 1500), Space::new(2, 1500));
    let settings = "params.ports.mirror = { mirror = true }";
    let text = manifest(&[("switch", settings, &[&a, &b])]);
    let appliance = Appliance::start(&format!(
        "{text}
        [domain.capture]
        program = {program:?}
        arena = \"16MiB\"
        windows = [\"t1\", \"t2\"]
        params.file = {file:?}
        [[link]]
        name = \"mirror\"
        between = [\"capture\", \"switch\"]
        slots = 256
        "
    ));
    a.run(&["ping", "-c1", "-W5", &b.v4()]);
    a.run(&["ping", "-c1", "-W5", &b.v6()]);
    let _server = b.start(&["iperf3", "-s"]);
    b.wait_for_port(5201);
    for address in [b.v4(), b.v6()] {
        a.run(&["iperf3", "-c", &address, "-n", "4M"]);
        a.run(&["iperf3", "-c", &address, "-u", "-b", "20M", "-n", "1M"]);
    }
    let settled = appliance.manager.wait_until(PATIENCE, |status| {
        let frames = status.domain("capture").and_then(|domain| domain.notes.get("frames")?.parse::<u64>().ok());
        frames.is_some_and(|frames| frames > 1000)
    });
    assert!(settled, "{:#?}", appliance.manager.status());
    println!("{:?}", appliance.manager.status().domain("capture").unwrap().notes);
    appliance.end();
    let found = |filter: &str| said(&["tshark", "-n", "-r", &file, "-Y", filter]);
    for protocol in ["arp", "icmp", "icmpv6.type == 135", "tcp.flags.syn == 1 && ip", "tcp && ipv6", "udp && ip"] {
        assert!(!found(protocol).is_empty(), "no {protocol}");
    }
    assert_eq!(found("_ws.malformed || _ws.expert.severity == 8388608"), "", "malformed, or wrong for its protocol");
}
