//! A path that shrinks and grows, with and without a word; forged words; an encapsulation that is
//! eaten on the way.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::row::{Plan, Row, Transfer};

#[test]
fn a_running_transfer_survives_a_path_that_shrinks_without_a_word() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#""vxlan""#);
    let transfer = Transfer::start(&row);
    transfer.longest_pause(&row);
    row.exec(3, "nft add table ip silent");
    row.exec(
        3,
        "nft add chain ip silent out { type filter hook output priority 0 ; }",
    );
    row.exec(
        3,
        "nft add rule ip silent out icmp type destination-unreachable drop",
    );
    row.ip(3, "link set to2 mtu 1400");
    let pause = transfer.longest_pause(&row);
    println!("1500 -> 1400, ICMP dropped: the transfer paused for {pause:?}");
    assert!(pause < Duration::from_secs(5), "{pause:?}");
    let took = row.await_true("the size is found", Duration::from_secs(15), || {
        (1396..=1400).contains(&row.path(1).path_mtu)
    });
    println!(
        "path MTU found after a further {took:?}: {:?}",
        row.path(1).path_mtu
    );
    row.ip(3, "link set to2 mtu 1500");
    let took = row.await_true("raised again", Duration::from_secs(40), || {
        row.path(1).path_mtu == 1500
    });
    println!("1400 -> 1500: noticed after {took:?}");
    assert!(took < Duration::from_secs(35), "{took:?}");
    // The route knows it, so that the host's own senders do.
    row.await_true("the route is whole again", Duration::from_secs(2), || {
        !row.ip(1, "route show 10.244.2.0/24").contains("mtu")
    });
}

#[test]
fn a_router_that_speaks_is_heard_at_once_and_forgers_are_counted() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#""vxlan""#);
    let transfer = Transfer::start(&row);
    transfer.longest_pause(&row);

    // Forged: from a host on the way that did not drop anything.
    for (forged, mtu) in (1..).zip([68, 576, 1300]) {
        row.spawn(3, move || {
            forge_too_big(
                Ipv4Addr::new(192, 0, 2, 1),
                Ipv4Addr::new(198, 51, 100, 2),
                mtu,
            );
        })
        .join()
        .unwrap();
        row.await_true("the forged one is counted", Duration::from_secs(5), || {
            row.path(1).forged >= forged
        });
        assert_eq!(row.path(1).path_mtu, 1500);
    }
    let path = row.path(1);
    println!(
        "forged 68, 576, 1300: path MTU {} and {} counted",
        path.path_mtu, path.forged
    );
    assert_eq!(path.path_mtu, 1500);

    row.ip(3, "link set to2 mtu 1400");
    let pause = transfer.longest_pause(&row);
    println!("1500 -> 1400, ICMP allowed: the transfer paused for {pause:?}");
    assert!(pause < Duration::from_secs(2), "{pause:?}");
    row.await_true("it is shown", Duration::from_secs(1), || {
        let path = row.path(1);
        path.path_mtu == 1400
    });
    // What the engine would tell a sender, and what the host's route says.
    let route = row.ip(1, "route show 10.244.2.0/24");
    assert!(route.contains("mtu 1350"), "{route}");
}

/// Sends "fragmentation needed" from here to `victim` about a datagram that it might have sent.
fn forge_too_big(victim: Ipv4Addr, destination: Ipv4Addr, mtu: u16) {
    use socket2::{Domain, Protocol, SockAddr, Socket, Type};
    let mut quoted = Vec::new();
    etherparse::PacketBuilder::ipv4(victim.octets(), destination.octets(), 60)
        .udp(50_000, 8472)
        .write(&mut quoted, &[0; 64])
        .unwrap();
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&quoted);
    let sum = message
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
    let to = SockAddr::from(SocketAddr::from((victim, 0)));
    socket.send_to(&message, &to).unwrap();
}

#[test]
fn an_encapsulation_that_is_eaten_on_the_way_is_left_and_taken_up_again() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan", "fou"]"#);
    assert_eq!(row.in_use(1), "vxlan");
    row.exec(3, "nft add table ip eater");
    row.exec(
        3,
        "nft add chain ip eater through { type filter hook forward priority 0 ; }",
    );
    row.exec(3, "nft add rule ip eater through udp dport 8472 drop");
    let took = row.await_true("fallback", Duration::from_secs(10), || {
        row.in_use(1) == "fou"
    });
    let path = row.path(1);
    println!("UDP 8472 eaten: fou after {took:?}: {:?}", path.last_change);
    assert!(took < Duration::from_secs(3), "{took:?}");
    let why = path.last_change.expect("a change");
    assert!(why.starts_with("fou: vxlan does not answer"), "{why}");
    // An echo comes back once the other side has found out too.
    row.await_true(
        "fallback of the other side",
        Duration::from_secs(10),
        || row.in_use(2) == "fou",
    );
    row.exec(1, "ping -c 2 -i 0.2 -W 1 10.244.2.1");
    row.exec(3, "nft delete table ip eater");
    let took = row.await_true("return", Duration::from_secs(10), || {
        row.in_use(1) == "vxlan"
    });
    println!("passes again: vxlan after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    row.exec(1, "ping -c 2 -i 0.2 -W 1 10.244.2.1");
}

#[test]
fn a_dead_host_on_the_link_takes_nothing_from_a_live_peer() {
    let Some(mut row) = Row::new() else { return };
    // Nobody answers for that address on the link: what is sent there waits for its neighbour.
    let plan = Plan {
        sections: |node| match node {
            1 => {
                r#"
[[peers]]
name = "dead"
address = "192.0.2.77"
encap = ["vxlan", "fou"]
vtep-mac = "auto"
prefixes = ["10.244.77.0/24"]
"#
            }
            _ => "",
        },
        encap: r#"["vxlan", "fou"]"#,
        ..Plan::default()
    };
    for node in [1, 2] {
        let config = row.config(node, &plan);
        row.spawn_node(node, &config);
    }
    let live = || row.paths(1).into_iter().find(|path| path.peer == "n2");
    row.await_true("the live peer answers", Duration::from_secs(30), || {
        live().is_some_and(|path| path.ways.iter().all(|way| way.state == "up"))
    });
    // Twice as long as what waits for a neighbour waits. What was lost before both were there is
    // little of what is asked meanwhile.
    let mut loss = Vec::new();
    for _ in 0..60 {
        std::thread::sleep(Duration::from_millis(100));
        let path = live().expect("it was there");
        assert!(path.ways.iter().all(|way| way.state == "up"), "{path:#?}");
        loss = path.ways.iter().map(|way| way.loss_per_mille).collect();
    }
    let is_small = |loss: &Option<u32>| loss.is_some_and(|per_mille| per_mille < 250);
    assert!(loss.len() == 2 && loss.iter().all(is_small), "{loss:?}");
    row.await_true("its path MTU is found", Duration::from_secs(10), || {
        live().is_some_and(|path| path.path_mtu_by == "probe")
    });
}
