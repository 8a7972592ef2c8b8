//! Routing loops made on purpose.

use std::fs;
use std::process::Command;
use std::time::Duration;

use tun_node::counters::WorkerReport;

use crate::row::{Plan, Row};

#[test]
fn a_routing_loop_made_at_run_time_ends_at_once_and_is_said() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan"]"#);
    assert!(row.status(1).alarms.is_empty());
    let cpu = |row: &Row| {
        let pid = row.status(1).pid;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // utime and stime: the 14th and 15th field, 11 and 12 behind the name and the state.
        fields[10] + fields[11]
    };
    // Own outer packets to the peer come out of the device again.
    row.ip(1, "route add 198.51.100.2/32 dev warren0");
    let took = row.await_true("an alarm", Duration::from_secs(5), || {
        !row.status(1).alarms.is_empty()
    });
    println!(
        "a peer routed into the tunnel: alarm after {took:?}: {:?}",
        row.status(1).alarms
    );
    // A probe leaves every 300 to 400 ms, so the first looped packet may be as much younger.
    assert!(took < Duration::from_secs(1), "{took:?}");
    let before = (cpu(&row), row.total(1));
    let _ = Command::new("ip")
        .args([
            "netns",
            "exec",
            &row.namespace(1),
            "ping",
            "-c",
            "20",
            "-i",
            "0.1",
            "-W",
            "1",
            "10.244.2.1",
        ])
        .output();
    let after = (cpu(&row), row.total(1));
    let loops = |report: &WorkerReport| {
        report
            .encap
            .drops
            .get("tunnel_loop")
            .copied()
            .unwrap_or_default()
    };
    let went_round = loops(&after.1) - loops(&before.1);
    let entered = after.1.encap.received.packets - before.1.encap.received.packets;
    println!(
        "20 pings: {entered} packets read, {went_round} of them looped; {} ticks of CPU in 3 s",
        after.0 - before.0
    );
    // Each ping is read once, and its outer packet once: no packet goes round twice.
    assert!(
        entered <= 20 + went_round && went_round < 20 + 40,
        "{entered} {went_round}"
    );
    assert!(after.0 - before.0 < 60, "busy");
    row.ip(1, "route del 198.51.100.2/32 dev warren0");
    row.exec(1, "ping -c 3 -i 0.2 -W 2 10.244.2.1");
}

#[test]
fn a_prefix_that_two_nodes_point_at_each_other_carries_each_packet_once() {
    let Some(mut row) = Row::new() else { return };
    row.start_plan(&Plan {
        encap: "\"fou\"",
        sections: |node| match node {
            1 => "[[routes]]\nprefix = \"203.0.113.0/24\"\nvia = \"n2\"\n",
            _ => "[[routes]]\nprefix = \"203.0.113.0/24\"\nvia = \"n1\"\n",
        },
        ..Plan::default()
    });
    let namespace = row.namespace(1);
    let pinger = row.spawn(1, move || {
        let arguments = "ping -c 1 -W 1 203.0.113.9".split(' ');
        Command::new("ip")
            .args(["netns", "exec", &namespace])
            .args(arguments)
            .output()
    });
    let took = row.await_true("an alarm", Duration::from_secs(5), || {
        !row.status(2).alarms.is_empty()
    });
    println!("two nodes point at each other: alarm {took:?} after the ping began");
    assert!(took < Duration::from_secs(1), "{took:?}");
    pinger.join().unwrap().unwrap();
    let drops = row.total(2).decap.drops;
    assert_eq!(drops.get("tunnel_loop"), Some(&1), "{drops:?}");
}
