//! Packets that are too big, sent by a real kernel: what its senders are told and believe, and TCP
//! that never asks.
//!
//! The nodes' devices are given an MTU far above the path's, so that nothing but the node stands
//! between a sender and a black hole. Reverse path filtering is strict: the messages must come from
//! an address that the kernel takes them from.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, SockAddr, Socket, Type};
use tun_node::sys::sockopt::{self, IntOption};
use tun_node::udp::Family;

use crate::common::run;
use crate::row::{Plan, Row};

/// What a link of 1500 octets leaves over IPv4 and over IPv6: written down, not computed.
const MTUS: [(&str, u16, u16); 6] = [
    ("ipip", 1480, 1460),
    ("fou", 1472, 1452),
    ("gue", 1468, 1448),
    ("vxlan-gpe", 1464, 1444),
    ("vxlan", 1450, 1430),
    ("geneve", 1450, 1430),
];

fn start(row: &mut Row, over: u8, encap: &str, device: &str) {
    // The device takes more than the path, and no route says so: what a sender learns, it learns
    // from the node.
    let device = format!("mtu = 9000\nunderlay-mtu = 9100\nroutes = false\n{device}");
    row.start_plan(&Plan {
        over,
        encap: &format!("{encap:?}"),
        device: &device,
        sections: |_| "[probing]\ninterval-ms = 100\n",
        ..Plan::default()
    });
    for node in [1, 2] {
        row.await_true("the path is measured", Duration::from_secs(30), || {
            row.path(node).path_mtu == 1500
        });
        row.ip(node, "route add 10.244.0.0/16 dev warren0");
        row.ip(node, "-6 route add fd00:10:244::/48 dev warren0");
        row.exec(
            node,
            "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.warren0.rp_filter=1 \
             net.ipv4.tcp_mtu_probing=0",
        );
    }
}

#[test]
fn over_ipv4_the_senders_are_told_the_mtu_of_the_table() {
    told(4);
}

#[test]
fn over_ipv6_the_senders_are_told_the_mtu_of_the_table() {
    told(6);
}

fn told(over: u8) {
    let Some(mut row) = Row::new() else { return };
    for (encap, over_v4, over_v6) in MTUS {
        let mtu = if over == 4 { over_v4 } else { over_v6 };
        let what = format!("{encap} over IPv{over}");
        start(&mut row, over, encap, "");
        // TCP that does no path MTU discovery: the clamp keeps its segments small.
        let (octets, segment) = stream_without_discovery(&row);
        assert_eq!(octets, STREAM_OCTETS, "{what}");
        // 40 octets of headers, 12 of time stamps.
        assert_eq!(segment, mtu - 52, "{what}");
        assert_eq!(row.total(1).encap.fragmented, 0, "{what}");
        // The kernel's own ping, which may not be fragmented, and what the kernel remembers.
        for (destination, answer, headers) in [
            ("10.244.2.1", format!("(mtu = {mtu})"), 28),
            ("fd00:10:244:2::1", format!("mtu={mtu}"), 48),
        ] {
            let said = row.try_exec(1, &format!("ping -n -c 1 -W 5 -M do -s 3000 {destination}"));
            assert!(said.contains(&answer), "{what}: no {answer:?} in {said}");
            let route = row.exec(1, &format!("ip route get {destination}"));
            assert!(route.contains(&format!("mtu {mtu}")), "{what}: {route}");
            let fits = mtu - headers;
            row.exec(
                1,
                &format!("ping -n -c 1 -W 5 -M do -s {fits} {destination}"),
            );
            // What may be cut is: by the node, or by the kernel that knows the path, which for the
            // answer the other kernel has to learn first.
            let may = if headers == 28 { "dont" } else { "want" };
            row.exec(
                1,
                &format!("ping -n -c 3 -i 0.2 -W 5 -M {may} -s 3000 {destination}"),
            );
        }
        let said = row.command(1, "explain 10.244.1.1 10.244.2.1 udp 1 2 --octets 3000");
        let answer = format!("too big, {mtu} octets fit from 10.244.2.1");
        assert!(said.contains(&answer), "{what}: {said}");
        let said = row.command(1, "explain 10.244.1.1 10.244.2.1 udp 1 2 --octets 100");
        assert!(
            said.contains("if too big") && said.contains(&answer),
            "{said}"
        );
        println!("{what}: TCP without discovery in segments of {segment}, senders told {mtu}");
        row.stop();
    }
}

#[test]
fn tcp_that_neither_asks_nor_is_clamped_gets_through() {
    let Some(mut row) = Row::new() else { return };
    for over in [4, 6] {
        for encap in ["vxlan", "ipip"] {
            start(&mut row, over, encap, "clamp-mss = false");
            let begin = Instant::now();
            let (octets, segment) = stream_without_discovery(&row);
            assert_eq!(octets, STREAM_OCTETS);
            assert_eq!(segment, 9000 - 52, "not clamped");
            let total = row.total(1).encap;
            println!(
                "{encap} over IPv{over}: {octets} octets of TCP in segments of {segment} in {:?}; {} packets cut into {} more",
                begin.elapsed(),
                total.fragmented,
                total.fragments
            );
            row.stop();
        }
    }
}

#[test]
fn rows_of_datagrams_that_nobody_may_refuse_get_through() {
    let Some(mut row) = Row::new() else { return };
    for over in [4, 6] {
        for encap in ["vxlan", "ipip", "fou"] {
            start(&mut row, over, encap, "");
            let total = row.total(1);
            datagrams(&row);
            let after = row.total(1);
            let cut = after.encap.fragmented - total.encap.fragmented;
            let uncut = after.device.read_super - total.device.read_super;
            println!(
                "{encap} over IPv{over}: {cut} packets cut, {uncut} of them rows of datagrams"
            );
            assert!(cut > 0);
            assert_eq!(after.encap.drops.get("too_big"), None, "{:?}", after.encap);
            row.stop();
        }
    }
}

/// Sends datagrams that are just too big, in rows of one call each (`UDP_SEGMENT`), with DF clear;
/// each must arrive as it was.
fn datagrams(row: &Row) {
    const EACH: usize = 1472;
    let payload = |number: usize| -> Vec<u8> {
        let octets = (0..EACH).map(|n| (n * 31 + number * 7 + n / 253).to_le_bytes()[0]);
        octets.collect()
    };
    let receiver = row.spawn(2, move || {
        let socket = std::net::UdpSocket::bind("10.244.2.1:5003").unwrap();
        let limit = Some(Duration::from_secs(20));
        socket.set_read_timeout(limit).unwrap();
        socket
    });
    let socket = receiver.join().unwrap();
    let sender = row.spawn(1, || {
        let socket = std::net::UdpSocket::bind("10.244.1.1:0").unwrap();
        socket.connect("10.244.2.1:5003").unwrap();
        set_dont_discover(&socket);
        sockopt::set(socket.as_fd(), IntOption::UDP_SEGMENT, 1472).unwrap();
        socket
    });
    let sender = sender.join().unwrap();
    let mut buffer = [0; 2000];
    for (turn, count) in [2, 5, 20, 40].into_iter().enumerate() {
        let first = turn * 100;
        let mut data: Vec<u8> = (first..first + count).flat_map(payload).collect();
        // A shorter last one.
        data.truncate(data.len() - 700);
        sender.send(&data).unwrap();
        let mut missing: std::collections::BTreeSet<Vec<u8>> =
            data.chunks(EACH).map(<[u8]>::to_vec).collect();
        while !missing.is_empty() {
            let octets = socket.recv(&mut buffer).expect("every datagram");
            assert!(missing.remove(&buffer[..octets]), "another one");
        }
    }
}

#[test]
fn a_sender_behind_the_node_is_told_by_an_address_that_the_kernel_takes() {
    let Some(mut row) = Row::new() else { return };
    start(&mut row, 4, "vxlan", "");
    let pod = Pod::new(&row);
    // Its neighbour is known once its address is no longer tentative.
    for node in ["10.244.1.1", "fd00:10:244:1::1"] {
        row.await_true("the pod reaches the node", Duration::from_secs(10), || {
            pod.ping(node).contains(" 0% packet loss")
        });
    }
    for (destination, answers) in [
        ("10.244.2.1", ["From 10.244.2.1", "(mtu = 1450)"]),
        ("fd00:10:244:2::1", ["From fd00:10:244:2::1", "mtu=1450"]),
    ] {
        let said = pod.ping(&format!("-M do -s 3000 {destination}"));
        for answer in answers {
            assert!(said.contains(answer), "no {answer:?} in {said}");
        }
        let said = pod.ping(&format!("-M do -s 1000 {destination}"));
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}

/// A namespace whose packets node 1 forwards.
struct Pod(String);

impl Pod {
    fn new(row: &Row) -> Self {
        let pod = Self(row.namespace(4));
        run("ip", &["netns", "add", &pod.0]);
        row.ip(
            1,
            &format!(
                "link add topod mtu 9000 type veth peer name eth0 mtu 9000 netns {}",
                pod.0
            ),
        );
        row.exec(
            1,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        row.ip(1, "link set topod up");
        // IPv6 answers for an address only on the link that has it.
        row.ip(1, "-6 addr add fe80::1/64 dev topod nodad");
        row.ip(1, "route add 10.244.1.9/32 dev topod");
        row.ip(1, "-6 route add fd00:10:244:1::9/128 dev topod");
        for arguments in [
            "link set eth0 addrgenmode eui64 up",
            "addr add 10.244.1.9/32 dev eth0",
            "addr add fd00:10:244:1::9/128 dev eth0 nodad",
            "route add 10.244.1.1 dev eth0",
            "route add default via 10.244.1.1",
            "-6 route add default via fe80::1 dev eth0",
        ] {
            let mut all = vec!["-n", &pod.0];
            all.extend(arguments.split_whitespace());
            run("ip", &all);
        }
        pod
    }

    fn ping(&self, arguments: &str) -> String {
        // The first one finds the neighbours.
        let output = Command::new("ip")
            .args([
                "netns", "exec", &self.0, "ping", "-n", "-c", "3", "-i", "0.3", "-W", "5",
            ])
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

const STREAM_OCTETS: usize = 1 << 20;

/// Sends a stream from node 1 to node 2 by a TCP that does no path MTU discovery. Says how many
/// octets arrived, and the largest segment that the sender sends.
fn stream_without_discovery(row: &Row) -> (usize, u16) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let receiver = row.spawn(2, move || {
        let listener = TcpListener::bind("10.244.2.1:5002").unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut octets = Vec::new();
        let _ = stream.read_to_end(&mut octets);
        let expected = (0..octets.len()).map(|n| n.to_le_bytes()[0]);
        assert!(octets.iter().copied().eq(expected), "damaged");
        octets.len()
    });
    is_ready.recv().unwrap();
    let sender = row.spawn(1, || {
        let mut socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        set_dont_discover(&socket);
        let to: std::net::SocketAddr = "10.244.2.1:5002".parse().unwrap();
        socket.connect(&SockAddr::from(to)).unwrap();
        let segment = socket.tcp_mss().unwrap();
        socket
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let octets: Vec<u8> = (0..STREAM_OCTETS).map(|n| n.to_le_bytes()[0]).collect();
        socket.write_all(&octets).unwrap();
        u16::try_from(segment).unwrap()
    });
    let segment = sender.join().unwrap();
    (receiver.join().unwrap(), segment)
}

/// DF stays clear, and what routers say is not listened to.
fn set_dont_discover(socket: &impl AsFd) {
    let option = IntOption::mtu_discover(Family::Ipv4);
    sockopt::set(socket.as_fd(), option, libc::IP_PMTUDISC_DONT).unwrap();
}
