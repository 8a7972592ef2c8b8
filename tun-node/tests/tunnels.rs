//! Nodes under a path that changes: three namespaces in a row, the middle one a router.
//!
//! ```text
//!  node 1 (192.0.2.1) ── router, node 3 (192.0.2.254, 198.51.100.254) ── node 2 (198.51.100.2)
//! ```
//!
//! What is measured is printed; the bounds asserted are those that the documentation promises.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "clippy spares test functions, not their helpers; what is measured is printed"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{PROGRAM, run};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tun_node::counters::WorkerReport;
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{PathReport, Request, Response, StatusReport};

/// Three namespaces in a row and the nodes in them.
struct Row {
    prefix: String,
    directory: tempfile::TempDir,
    nodes: Vec<Child>,
}

impl Row {
    fn new() -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if !geteuid().is_root() {
            eprintln!("skipped: network namespaces and devices need root");
            return None;
        }
        if let Err(error) = File::open("/dev/net/tun") {
            eprintln!("skipped: /dev/net/tun: {error}");
            return None;
        }
        if Command::new("nft").arg("--version").output().is_err() {
            eprintln!("skipped: nft is not installed (package nftables)");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let row = Self {
            prefix: format!("wr{}-{number}-", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
            nodes: Vec::new(),
        };
        for node in [1, 2, 3] {
            run("ip", &["netns", "add", &row.namespace(node)]);
            row.ip(node, "link set lo up");
        }
        for (node, own, other) in [
            (1, "192.0.2.1", "192.0.2.254"),
            (2, "198.51.100.2", "198.51.100.254"),
        ] {
            let peer = row.namespace(node);
            row.ip(
                3,
                &format!("link add to{node} type veth peer name wire netns {peer}"),
            );
            row.ip(3, &format!("addr add {other}/24 dev to{node}"));
            row.ip(3, &format!("link set to{node} up"));
            row.ip(node, &format!("addr add {own}/24 dev wire"));
            row.ip(node, "link set wire up");
            row.ip(node, &format!("route add default via {other}"));
        }
        row.exec(3, "sysctl -qw net.ipv4.ip_forward=1");
        Some(row)
    }

    fn namespace(&self, node: u8) -> String {
        format!("{}{node}", self.prefix)
    }

    fn ip(&self, node: u8, arguments: &str) -> String {
        let namespace = self.namespace(node);
        let mut all = vec!["-n", &namespace];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    fn exec(&self, node: u8, command: &str) -> String {
        let namespace = self.namespace(node);
        let mut all = vec!["netns", "exec", &namespace];
        all.extend(command.split_whitespace());
        run("ip", &all)
    }

    /// Runs `action` on a thread of its own in the namespace of a node.
    fn spawn<T: Send + 'static>(
        &self,
        node: u8,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(node))).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            action()
        })
    }

    const fn underlay(node: u8) -> &'static str {
        match node {
            1 => "192.0.2.1",
            2 => "198.51.100.2",
            _ => "192.0.2.254",
        }
    }

    /// Starts nodes that are peers of each other and waits until each hears the others.
    fn start(&mut self, nodes: &[u8], encap: &str, extra: &str) {
        for &node in nodes {
            let mut text = format!(
                r#"
[node]
name = "n{node}"
underlay = ["{underlay}"]
prefixes = ["10.244.{node}.0/24"]
[device]
addresses = ["10.244.{node}.1/24"]
[control]
socket = "{socket}"
"#,
                underlay = Self::underlay(node),
                socket = self.socket(node).display(),
            );
            for &peer in nodes.iter().filter(|peer| **peer != node) {
                text.push_str(&format!(
                    r#"
[[peers]]
name = "n{peer}"
address = "{address}"
encap = {encap}
vtep-mac = "auto"
prefixes = ["10.244.{peer}.0/24"]
"#,
                    address = Self::underlay(peer),
                ));
            }
            text.push_str(extra);
            let path = self.directory.path().join(format!("{node}.toml"));
            fs::write(&path, text).unwrap();
            let log = File::create(self.directory.path().join(format!("{node}.log"))).unwrap();
            let child = Command::new("ip")
                .args(["netns", "exec", &self.namespace(node), PROGRAM])
                .args(["run", "--log", "info", "--config"])
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            self.nodes.push(child);
        }
        for &node in nodes {
            self.await_true("all peers answer", Duration::from_secs(20), || {
                let paths = self.paths(node);
                paths.len() + 1 == nodes.len()
                    && paths.iter().all(|path| {
                        path.path_mtu_by == "probe" && path.ways.iter().all(|way| way.state == "up")
                    })
            });
        }
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.directory.path().join(format!("n{node}.sock"))
    }

    fn ask(&self, node: u8, request: &Request) -> Option<Response> {
        Client::connect(&self.socket(node)).ok()?.ask(request).ok()
    }

    fn paths(&self, node: u8) -> Vec<PathReport> {
        match self.ask(node, &Request::Peers) {
            Some(Response::Peers(peers)) => peers.into_iter().filter_map(|p| p.path).collect(),
            _ => Vec::new(),
        }
    }

    /// What node `node` knows about its first peer.
    fn path(&self, node: u8) -> PathReport {
        self.paths(node).into_iter().next().expect("a peer")
    }

    fn in_use(&self, node: u8) -> String {
        let path = self.path(node);
        let way = path.ways.iter().find(|way| way.in_use);
        way.map(|way| way.encapsulation.clone()).unwrap_or_default()
    }

    fn status(&self, node: u8) -> StatusReport {
        match self.ask(node, &Request::Status) {
            Some(Response::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn total(&self, node: u8) -> WorkerReport {
        match self.ask(node, &Request::Counters) {
            Some(Response::Counters(counters)) => counters.total,
            other => panic!("{other:?}"),
        }
    }

    fn await_true(&self, what: &str, limit: Duration, look: impl Fn() -> bool) -> Duration {
        let start = Instant::now();
        while !look() {
            if start.elapsed() > limit {
                let logs = [1, 2, 3].map(|node| {
                    let log = self.directory.path().join(format!("{node}.log"));
                    fs::read_to_string(log).unwrap_or_default()
                });
                panic!(
                    "not within {limit:?}: {what}\n{:#?}\n{}",
                    self.paths(1),
                    logs.concat()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = kill(
                Pid::from_raw(i32::try_from(node.id()).unwrap()),
                Signal::SIGTERM,
            );
            let _ = node.wait();
        }
        for node in [1, 2, 3] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(node)])
                .output();
        }
    }
}

/// A TCP transfer from node 1 to node 2 that goes on until it is dropped; counts what arrives.
struct Transfer {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Transfer {
    fn start(row: &Row) -> Self {
        let (arrived, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (count, ends) = (Arc::clone(&arrived), Arc::clone(&stop));
        row.spawn(2, move || {
            let listener = TcpListener::bind("10.244.2.1:5001").unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(octets) => count.fetch_add(octets as u64, Ordering::Relaxed),
                };
            }
        });
        is_ready.recv().unwrap();
        let ends = Arc::clone(&stop);
        row.spawn(1, move || {
            let mut stream = TcpStream::connect("10.244.2.1:5001").unwrap();
            let data = vec![7; 1 << 14];
            // Paced, so that a test machine has time for the rest.
            while !ends.load(Ordering::Relaxed) && stream.write_all(&data).is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { arrived, stop }
    }

    fn octets(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Waits until a further 500,000 octets have arrived and says how long the longest pause was.
    fn longest_pause(&self, row: &Row) -> Duration {
        let goal = self.octets() + 500_000;
        let (mut last, mut seen, mut longest) = (Instant::now(), self.octets(), Duration::ZERO);
        while seen < goal {
            let now = self.octets();
            if now != seen {
                seen = now;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            if last.elapsed() > Duration::from_secs(30) {
                panic!("the transfer stands still: {:#?}", row.paths(1));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        longest
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_running_transfer_survives_a_path_that_shrinks_without_a_word() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#""vxlan""#, "");
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
    row.start(&[1, 2], r#""vxlan""#, "");
    let transfer = Transfer::start(&row);
    transfer.longest_pause(&row);

    // Forged: from a host on the way that did not drop anything.
    row.spawn(3, || {
        for mtu in [68, 576, 1300] {
            forge_too_big(
                Ipv4Addr::new(192, 0, 2, 1),
                Ipv4Addr::new(198, 51, 100, 2),
                mtu,
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    })
    .join()
    .unwrap();
    row.await_true(
        "the forged ones are counted",
        Duration::from_secs(5),
        || row.path(1).forged >= 3,
    );
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
    row.start(&[1, 2], r#"["vxlan", "fou"]"#, "");
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
fn the_encapsulation_changes_node_by_node_under_load_without_a_loss() {
    const PER_SECOND: u64 = 20_000;
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2, 3], r#"["vxlan", "ipip", "fou"]"#, "");
    for node in [1, 2, 3] {
        row.ip(node, "link set warren0 txqueuelen 20000");
    }
    let stop = Arc::new(AtomicBool::new(false));
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
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let (mut seen, mut again) = (std::collections::HashSet::new(), 0_u64);
        let mut buffer = [0; 64];
        while let Ok(octets) = socket.recv(&mut buffer) {
            let number = u64::from_be_bytes(buffer[..octets].try_into().unwrap());
            if number == u64::MAX {
                break;
            }
            again += u64::from(!seen.insert(number));
        }
        (seen.len() as u64, again)
    });
    std::thread::sleep(Duration::from_millis(200));
    let ends = Arc::clone(&stop);
    let sender = row.spawn(1, move || {
        let socket = UdpSocket::bind("10.244.1.1:0").unwrap();
        socket.connect("10.244.2.1:6000").unwrap();
        let start = Instant::now();
        let mut number = 0_u64;
        while !ends.load(Ordering::Relaxed) {
            let due = u64::try_from(start.elapsed().as_millis()).unwrap() * PER_SECOND / 1000;
            while number < due {
                if socket.send(&number.to_be_bytes()).is_ok() {
                    number += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..3 {
            let _ = socket.send(&u64::MAX.to_be_bytes());
        }
        (number, took)
    });
    std::thread::sleep(Duration::from_millis(500));
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
            std::thread::sleep(Duration::from_millis(250));
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
fn a_routing_loop_made_at_run_time_ends_at_once_and_is_said() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan"]"#, "");
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
    // A probe leaves every 400 ms, so the first looped packet may be as much younger.
    assert!(took < Duration::from_secs(1), "{took:?}");
    let before = (cpu(&row), row.total(1));
    let pinged = row.spawn(1, || ());
    pinged.join().unwrap();
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
    // Each has one peer: the other.
    let one = "[[routes]]\nprefix = \"203.0.113.0/24\"\nvia = \"n2\"\n";
    let two = "[[routes]]\nprefix = \"203.0.113.0/24\"\nvia = \"n1\"\n";
    row.start_pair(one, two);
    let _ = Command::new("ip")
        .args([
            "netns",
            "exec",
            &row.namespace(1),
            "ping",
            "-c",
            "1",
            "-W",
            "1",
            "203.0.113.9",
        ])
        .output();
    let took = row.await_true("an alarm", Duration::from_secs(1), || {
        !row.status(2).alarms.is_empty()
    });
    println!("two nodes point at each other: alarm {took:?} after the ping gave up");
    let drops = row.total(2).decap.drops;
    assert_eq!(drops.get("tunnel_loop"), Some(&1), "{drops:?}");
}

impl Row {
    /// Nodes 1 and 2 with a further section each.
    fn start_pair(&mut self, one: &str, two: &str) {
        // The names differ, so each is started by itself; then both are awaited.
        for (node, extra) in [(1_u8, one), (2, two)] {
            let peer = 3 - node;
            let text = format!(
                r#"
[node]
name = "n{node}"
underlay = ["{underlay}"]
prefixes = ["10.244.{node}.0/24"]
[device]
addresses = ["10.244.{node}.1/24"]
[control]
socket = "{socket}"
[[peers]]
name = "n{peer}"
address = "{address}"
encap = "fou"
prefixes = ["10.244.{peer}.0/24"]
{extra}"#,
                underlay = Self::underlay(node),
                socket = self.socket(node).display(),
                address = Self::underlay(peer),
            );
            let path = self.directory.path().join(format!("{node}.toml"));
            fs::write(&path, text).unwrap();
            let log = File::create(self.directory.path().join(format!("{node}.log"))).unwrap();
            let child = Command::new("ip")
                .args(["netns", "exec", &self.namespace(node), PROGRAM])
                .args(["run", "--config"])
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            self.nodes.push(child);
        }
        for node in [1, 2] {
            self.await_true("the peer answers", Duration::from_secs(20), || {
                self.paths(node)
                    .iter()
                    .any(|path| path.ways.iter().all(|way| way.state == "up"))
            });
        }
    }
}

#[test]
fn a_thousand_flows_leave_by_many_ports_and_each_by_one() {
    let Some(mut row) = Row::new() else { return };
    if Command::new("tcpdump").arg("--version").output().is_err() {
        eprintln!("skipped: tcpdump is not installed");
        return;
    }
    row.start(&[1, 2], r#""fou""#, "");
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
    std::thread::sleep(Duration::from_millis(500));
    let _ = kill(
        Pid::from_raw(i32::try_from(capture.id()).unwrap()),
        Signal::SIGINT,
    );
    capture.wait().unwrap();
    let octets = fs::read(&file).unwrap();
    let mut flows: std::collections::BTreeMap<u16, (u16, Vec<u8>)> =
        std::collections::BTreeMap::new();
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
    let ports: std::collections::BTreeSet<u16> = flows.values().map(|flow| flow.0).collect();
    println!("{} flows by {} source ports", flows.len(), ports.len());
    assert!(
        flows.len() >= 999 && ports.len() >= 60,
        "{} {}",
        flows.len(),
        ports.len()
    );
    assert!(flows.values().all(|flow| flow.1.is_sorted()), "reordered");
}
