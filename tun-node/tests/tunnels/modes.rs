//! Peers that are not always encapsulated to, with the kernel's own routes.

use std::time::Duration;

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
}
