//! Two TAP devices joined by a link.

use std::time::Duration;

use crate::rig::{Appliance, Space};

fn wire(a: &Space, b: &Space) -> Appliance {
    let link = "[[link]]\nname = \"wire\"\nbetween = [\"a\", \"b\"]\n";
    Appliance::start(&format!("{}{}{link}", a.domain("a"), b.domain("b")))
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn tcp_and_udp_cross_a_link_over_ipv4_and_ipv6() {
    let (a, b) = (Space::new(1, 1500), Space::new(2, 1500));
    let appliance = wire(&a, &b);
    a.run(&["ping", "-c1", "-W5", &b.v4()]);
    a.run(&["ping", "-c1", "-W5", &b.v6()]);
    let _server = b.start(&["iperf3", "-s"]);
    b.wait_for_port(5201);
    for (address, words) in [
        (b.v4(), &["-n", "256M"][..]),
        (b.v6(), &["-n", "64M"]),
        (b.v4(), &["-n", "64M", "-R"]),
        (b.v4(), &["-n", "64M", "-P", "4"]),
        (b.v4(), &["-u", "-b", "200M", "-n", "16M"]),
    ] {
        println!("{}", a.run(&[&["iperf3", "-c", &address][..], words].concat()));
    }
    for name in ["a", "b"] {
        let stats = appliance.manager.stats(name).unwrap();
        assert_eq!((stats.payload_bytes_copied, stats.refusals), (0, 0), "{name}: {stats:?}");
        println!("{:?}", appliance.manager.status().domain(name).unwrap().notes);
    }
    appliance.end();
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn connections_survive_the_death_of_either_end_and_all_buffers_come_back() {
    let (a, b) = (Space::new(1, 1500), Space::new(2, 1500));
    let appliance = wire(&a, &b);
    let _server = b.start(&["iperf3", "-s"]);
    b.wait_for_port(5201);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| a.run(&["iperf3", "-c", &b.v4(), "--bidir", "-t", "5"]));
        for name in ["a", "b", "a"] {
            std::thread::sleep(Duration::from_millis(300));
            assert!(!load.is_finished(), "under load");
            appliance.kill(name);
        }
        println!("{}", load.join().unwrap());
    });
    for name in ["a", "b"] {
        appliance.wait_for_buffers(name);
    }
    let generation = |name: &str| appliance.manager.status().domain(name).unwrap().generation;
    assert_eq!((generation("a"), generation("b")), (3, 2), "{:#?}", appliance.manager.status());
    appliance.end();
}
