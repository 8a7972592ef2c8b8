//! Peers that are not always encapsulated to, with the kernel's own routes.

use std::time::Duration;

use tun_node::ctl::message::{ExplainReport, PeerReport};

use crate::row::{Plan, Row};

/// Pings from node 1's overlay address to that of `node`.
fn ping(row: &Row, node: u8) {
    for (from, to) in [
        ("10.244.1.1".to_owned(), format!("10.244.{node}.1")),
        (
            "fd00:10:244:1::1".to_owned(),
            format!("fd00:10:244:{node}::1"),
        ),
    ] {
        row.exec(1, &format!("ping -n -c 2 -i 0.2 -W 5 -I {from} {to}"));
    }
}

#[test]
fn cross_subnet_encapsulates_only_where_a_router_lies_between() {
    let Some(mut row) = Row::new() else { return };
    // Node 2 is behind the router; the router, node 3, is on the link of both.
    row.start_plan(&Plan {
        nodes: &[1, 2, 3],
        peer: "mode = \"cross-subnet\"",
        ..Plan::default()
    });
    let routes = row.ip(1, "route show");
    assert!(routes.contains("10.244.2.0/24 dev warren0"), "{routes}");
    assert!(
        routes.contains("10.244.3.0/24 via 192.0.2.254 dev wire"),
        "{routes}"
    );
    ping_v4(&row, 2);
    ping_v4(&row, 3);
    // The other family has no way over that gateway: it is encapsulated all the same.
    row.exec(1, "ping -n -c 1 -W 5 -I fd00:10:244:1::1 fd00:10:244:2::1");
    let sent = |name: &str| {
        let peers = row.peers(1).into_iter();
        let mut peers = peers.filter(|peer| peer.name == name);
        peers.next().map(|peer| peer.tally.encap.packets)
    };
    assert!(sent("n2") >= Some(2), "{:?}", sent("n2"));
    assert_eq!(sent("n3"), Some(0));
    let said = row.command(1, "explain 10.244.1.1 10.244.3.1 udp 1 2");
    assert!(said.contains("would not be encapsulated"), "{said}");
    row.stop();
    let routes = row.ip(1, "route show");
    assert!(!routes.contains("10.244."), "left behind: {routes}");
}

fn ping_v4(row: &Row, node: u8) {
    row.exec(
        1,
        &format!("ping -n -c 2 -i 0.2 -W 5 -I 10.244.1.1 10.244.{node}.1"),
    );
}

#[test]
fn direct_never_encapsulates_and_always_does() {
    let Some(mut row) = Row::new() else { return };
    for (mode, encapsulated) in [("direct", false), ("always", true)] {
        row.start_plan(&Plan {
            nodes: &[1, 3],
            peer: &format!("mode = {mode:?}"),
            ..Plan::default()
        });
        ping_v4(&row, 3);
        let peers = row.peers(1);
        assert_eq!(peers[0].tally.encap.packets > 0, encapsulated, "{mode}");
        // The other family has no way over that gateway: it is always encapsulated.
        ping(&row, 3);
        row.stop();
    }
}

#[test]
fn what_people_see_of_a_peer_is_all_there() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan", "fou"]"#);
    ping(&row, 2);
    // A router refuses one of the ways.
    for rule in [
        "table ip door",
        "chain ip door through { type filter hook forward priority 0 ; }",
        "rule ip door through udp dport 5555 reject with icmp type admin-prohibited",
    ] {
        row.exec(3, &format!("nft add {rule}"));
    }
    let limit = Duration::from_secs(10);
    let said = |words: &str| row.command(1, "peers").contains(words);
    for words in [
        "n2: path MTU 1500 (by probe)",
        "* vxlan      up       rtt ",
        "  fou        down     rtt ",
        "%, answered by peer; sent 4, heard ",
        "last error: prohibited, says 192.0.2.254",
    ] {
        row.await_true(words, limit, || said(words));
    }
    println!("{}", row.command(1, "peers"));
    people_and_machines_read_the_same(&row);
    explanations_tell_what_a_larger_packet_gets(&row);
}

/// Digits may differ between two questions; nothing else does.
fn without_numbers(text: &str) -> String {
    let mut masked = String::new();
    for letter in text.chars() {
        match letter {
            '0'..='9' if masked.ends_with('#') => {}
            '0'..='9' => masked.push('#'),
            other => masked.push(other),
        }
    }
    masked
}

fn people_and_machines_read_the_same(row: &Row) {
    let json = row.command(1, "peers --json");
    let report: Vec<PeerReport> = serde_json::from_str(&json).unwrap();
    let text = without_numbers(&row.command(1, "peers"));
    let [peer] = &report[..] else {
        panic!("{json}");
    };
    let path = peer.path.as_ref().expect("it is probed");
    let mut lines = vec![format!(
        "{}: path MTU {} (by {})",
        path.peer, path.path_mtu, path.path_mtu_by
    )];
    assert!(path.probes_sent > 0 && path.probes_heard > 0, "{json}");
    lines.push(format!(
        ", probes {} sent and {} accepted",
        path.probes_sent, path.probes_heard
    ));
    let error = path.last_error.as_ref().expect("the router refused");
    lines.push(format!("; last error: {error}\n"));
    assert_eq!(path.ways.len(), 2, "{json}");
    for way in &path.ways {
        let tally = &peer.tally.by_encapsulation[&way.encapsulation];
        let lost = way.loss_per_mille.expect("probes were sent");
        lines.push(format!(
            "  {} {:<10} {:<8} rtt {} us, loss {}.{} %, answered by {}; sent {}, heard {}\n",
            if way.in_use { '*' } else { ' ' },
            way.encapsulation,
            way.state,
            way.rtt_us.expect("it was up"),
            lost / 10,
            lost % 10,
            way.answered_by,
            tally.encap.packets,
            tally.decap.packets
        ));
    }
    for line in lines {
        assert!(text.contains(&without_numbers(&line)), "{line}\n{text}");
    }
}

fn explanations_tell_what_a_larger_packet_gets(row: &Row) {
    for (from, to) in [
        ("10.244.1.1", "10.244.2.1"),
        ("fd00:10:244:1::1", "fd00:10:244:2::1"),
    ] {
        let question = format!("explain {from} {to} udp 1 2");
        for octets in [100, 1450, 1451] {
            let json = row.command(1, &format!("{question} --octets {octets} --json"));
            let report: ExplainReport = serde_json::from_str(&json).unwrap();
            assert_eq!(report.mtu, Some(1450), "{json}");
            let told = format!("too big, 1450 octets fit from {to}");
            assert_eq!(report.too_big.as_ref(), Some(&told), "{json}");
            let text = row.command(1, &format!("{question} --octets {octets}"));
            let shows = |name: &str, value: &str| {
                let mut lines = text.lines();
                lines.any(|line| line.strip_prefix(name).map(str::trim) == Some(value))
            };
            assert!(shows("mtu", "1450"), "{text}");
            if octets > 1450 {
                assert_eq!(report.answer.as_ref(), Some(&told), "{json}");
                assert_eq!(report.reason.as_deref(), Some("too_big"), "{json}");
                assert!(shows("answer", &told), "{text}");
            } else {
                assert_eq!((report.answer, report.reason), (None, None), "{json}");
                assert!(shows("if too big", &told), "{text}");
            }
            assert!(text.contains(&report.text), "{text}");
        }
    }
}
