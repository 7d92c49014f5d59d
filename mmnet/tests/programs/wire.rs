//! Two TAP devices joined by a link.

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
