//! The encapsulation changed live, and the ports that flows leave by.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tun_node::ctl::message::{Request, Response};

use crate::row::Row;

#[test]
fn the_encapsulation_changes_node_by_node_under_load_without_a_loss() {
    const PER_SECOND: u64 = 20_000;
    const BURST: u64 = 200;
    const WINDOW: u64 = 8_000;
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2, 3], r#"["vxlan", "ipip", "fou"]"#);
    for node in [1, 2, 3] {
        row.ip(node, "link set warren0 txqueuelen 20000");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = mpsc::channel();
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let receiver = row.spawn(2, move || {
        let socket = UdpSocket::bind("10.244.2.1:6000").unwrap();
        let raw = socket2::SockRef::from(&socket);
        // Beyond the host's limit where this process may.
        let _ = nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::RcvBufForce,
            &(64 << 20),
        );
        let _ = raw.set_recv_buffer_size(64 << 20);
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        ready.send(()).unwrap();
        let (mut seen, mut again) = (HashSet::new(), 0_u64);
        let mut buffer = [0; 64];
        while let Ok(octets) = socket.recv(&mut buffer) {
            let number = u64::from_be_bytes(buffer[..octets].try_into().unwrap());
            if number == u64::MAX {
                break;
            }
            again += u64::from(!seen.insert(number));
            count.store(seen.len() as u64, Ordering::Relaxed);
        }
        (seen.len() as u64, again)
    });
    is_ready.recv().unwrap();
    let ends = Arc::clone(&stop);
    let count = Arc::clone(&arrived);
    let sender = row.spawn(1, move || {
        let socket = UdpSocket::bind("10.244.1.1:0").unwrap();
        socket.connect("10.244.2.1:6000").unwrap();
        let start = Instant::now();
        let mut number = 0_u64;
        while !ends.load(Ordering::Relaxed) {
            let due = u64::try_from(start.elapsed().as_millis()).unwrap() * PER_SECOND / 1000;
            // What a busy machine made late is not made up for all at once, and no queue on the way
            // is filled because a node waits for its processor: only a change may lose something.
            let room = WINDOW.saturating_sub(number - count.load(Ordering::Relaxed));
            for _ in 0..due.saturating_sub(number).min(BURST).min(room) {
                number += u64::from(socket.send(&number.to_be_bytes()).is_ok());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        let limit = Instant::now() + Duration::from_secs(5);
        while count.load(Ordering::Relaxed) < number && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..3 {
            let _ = socket.send(&u64::MAX.to_be_bytes());
        }
        (number, took)
    });
    let flows_on = |further: u64| {
        let goal = arrived.load(Ordering::Relaxed) + further;
        row.await_true("packets arrive", Duration::from_secs(20), || {
            arrived.load(Ordering::Relaxed) >= goal
        });
    };
    flows_on(PER_SECOND / 2);
    for encap in ["ipip", "fou", "vxlan"] {
        for node in [1, 2, 3] {
            let request = Request::Prefer {
                peer: None,
                encapsulation: Some(encap.to_owned()),
            };
            assert_eq!(row.ask(node, &request), Some(Response::Done));
            row.await_true("it is in use", Duration::from_secs(5), || {
                row.in_use(node) == encap
            });
            flows_on(PER_SECOND / 4);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, took) = sender.join().unwrap();
    let (arrived, again) = receiver.join().unwrap();
    let peer = row
        .total(1)
        .peers
        .into_iter()
        .find(|peer| peer.peer == "n2")
        .expect("n2");
    let rate = sent as f64 / took.as_secs_f64();
    println!(
        "{sent} numbered packets at {rate:.0} a second: {} lost, {again} twice; {:?}",
        sent - arrived,
        peer.by_encapsulation
    );
    assert_eq!((sent - arrived, again), (0, 0), "{:#?}", row.total(1));
    for encap in ["vxlan", "ipip", "fou"] {
        assert!(peer.by_encapsulation.contains_key(encap), "{encap}");
    }
}

#[test]
fn a_thousand_flows_leave_by_many_ports_and_each_by_one() {
    let Some(mut row) = Row::new() else { return };
    if Command::new("tcpdump").arg("--version").output().is_err() {
        eprintln!("skipped: tcpdump is not installed");
        return;
    }
    row.start(&[1, 2], r#""fou""#);
    row.ip(1, "link set warren0 txqueuelen 20000");
    let file = row.directory.path().join("flows.pcap");
    let mut capture = Command::new("ip")
        .args([
            "netns",
            "exec",
            &row.namespace(2),
            "tcpdump",
            "-i",
            "wire",
            "-U",
            "-B",
            "16384",
            "-n",
            "-w",
        ])
        .arg(&file)
        .args(["udp", "dst", "port", "5555", "and", "greater", "60"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    row.await_true("the capture begins", Duration::from_secs(5), || {
        fs::metadata(&file).is_ok_and(|file| file.len() >= 24)
    });
    row.spawn(1, || {
        let sockets: Vec<UdpSocket> = (0..1000)
            .map(|_| UdpSocket::bind("10.244.1.1:0").unwrap())
            .collect();
        for number in 0..10_u8 {
            for socket in &sockets {
                let _ = socket.send_to(&[number; 16], "10.244.2.1:7");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
    .join()
    .unwrap();
    // Every packet is in the file, or has had its time: the file grows no more.
    let size = || fs::metadata(&file).map_or(0, |file| file.len());
    row.await_true("the capture is whole", Duration::from_secs(20), || {
        let before = size();
        std::thread::sleep(Duration::from_millis(300));
        size() == before
    });
    let _ = kill(
        Pid::from_raw(i32::try_from(capture.id()).unwrap()),
        Signal::SIGINT,
    );
    capture.wait().unwrap();
    let octets = fs::read(&file).unwrap();
    let mut flows: BTreeMap<u16, (u16, Vec<u8>)> = BTreeMap::new();
    let mut at = 24;
    while at + 16 <= octets.len() {
        let length = u32::from_le_bytes(octets[at + 8..at + 12].try_into().unwrap()) as usize;
        let frame = &octets[at + 16..at + 16 + length];
        at += 16 + length;
        // Ethernet 14, IPv4 20, UDP 8. A train that the link carries uncut holds several packets.
        let outer = u16::from_be_bytes([frame[34], frame[35]]);
        let mut train = &frame[42..];
        while let [0x45, _, high, low, ..] = train {
            let (packet, rest) = train.split_at(u16::from_be_bytes([*high, *low]).into());
            train = rest;
            // Inner IPv4 20, inner UDP 8.
            let port = |offset: usize| u16::from_be_bytes([packet[offset], packet[offset + 1]]);
            if packet[9] != 17 || port(22) != 7 {
                continue;
            }
            let flow = flows.entry(port(20)).or_insert_with(|| (outer, Vec::new()));
            assert_eq!(flow.0, outer, "flow {} changed its port", port(20));
            flow.1.push(packet[28]);
        }
    }
    let ports: BTreeSet<u16> = flows.values().map(|flow| flow.0).collect();
    println!("{} flows by {} source ports", flows.len(), ports.len());
    assert!(
        flows.len() >= 999 && ports.len() >= 60,
        "{} {}",
        flows.len(),
        ports.len()
    );
    assert!(flows.values().all(|flow| flow.1.is_sorted()), "reordered");
}
