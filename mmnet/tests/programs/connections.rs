//! The kernel's TCP over a wire that is bad, and many connections.

use crate::peer;
use crate::rig::{Appliance, Space};

/// Connections that are made one after the other; FIDO_CONNECTIONS says another number (100000 take less than a minute).
const CONNECTIONS: usize = 2000;

fn wire(a: &Space, b: &Space, settings: &str) -> Appliance {
    let link = "[[link]]\nname = \"wire\"\nbetween = [\"a\", \"b\"]\nslots = 256\n";
    Appliance::start(&format!("{}{}{link}", a.domain_with("a", settings), b.domain("b")))
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn what_is_lost_doubled_reordered_and_damaged_arrives_whole() {
    for (settings, host, mib) in [
        ("loss = 10000, duplication = 10000, reordering = 10000", "10.77.0.2", 32),
        ("loss = 10000, duplication = 10000, reordering = 10000", "fd77::2", 16),
        // Damage is noticed only by checksums that are there.
        ("corruption = 10000", "10.77.0.2", 4),
    ] {
        let (a, b) = (Space::new(1, 1500), Space::new(2, 1500));
        let offload = if settings.starts_with("corruption") { "params.offload = false\n" } else { "" };
        let appliance = wire(&a, &b, &format!("{offload}params.faults = {{ seed = 1, {settings} }}"));
        let _server = peer::server(&b);
        peer::client(&a, &format!("send {host} {mib}"), 60);
        for name in ["a", "b"] {
            appliance.wait_for_buffers(name);
        }
        println!("{:?}", appliance.manager.status().domain("a").unwrap().notes);
        appliance.end();
    }
}

#[test]
#[ignore = "needs root and Debian's programs: run by .ci/net"]
fn connections_come_and_go_some_reset_and_some_half_open() {
    let count = std::env::var("FIDO_CONNECTIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(CONNECTIONS);
    let limit = 60 + count / 100;
    let (a, b) = (Space::new(1, 1500), Space::new(2, 1500));
    let appliance = wire(&a, &b, "");
    // Ports of closed connections are used again at once, and there are more of them.
    a.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1"]);
    let _server = peer::server(&b);
    peer::client(&a, &format!("churn 10.77.0.2 {}", count / 2), limit);
    peer::client(&a, &format!("churn fd77::2 {}", count / 2), limit);
    for name in ["a", "b"] {
        appliance.wait_for_buffers(name);
    }
    appliance.end();
}
