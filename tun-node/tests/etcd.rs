//! The etcd source against Debian's etcd, on loopback.
//!
//! Each test starts its own cluster and prints that it is skipped where there is no `etcd`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test ends where its own assumption is wrong"
)]

#[path = "etcd/certificates.rs"]
mod certificates;
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "support/tls.rs"]
mod tls;
#[path = "etcd/users.rs"]
mod users;

use std::process::Command as Process;
use std::time::{Duration, Instant};

use cluster::{CONFIG, Etcd, Node, PREFIX, own};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use tun_node::flannel::NetConf;
use tun_node::rib::Event;
use tun_node::rib::SourceKind;
use tun_node::source::SourceNotice;
use tun_node::source::etcd::{Command, OwnNode};

const SHORT: Duration = Duration::from_secs(20);

/// A lease as a flannel node would write it.
fn lease(number: u16) -> (Vec<u8>, Vec<u8>) {
    let [high, low] = number.to_be_bytes();
    let key = format!("{PREFIX}/subnets/10.{high}.{low}.0-24");
    let value = format!(
        r#"{{"PublicIP":"198.18.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:ff:00:00:{high:02x}:{low:02x}"}}}}"#
    );
    (key.into_bytes(), value.into_bytes())
}

fn leases(numbers: std::ops::Range<u16>) -> Vec<(Vec<u8>, Vec<u8>)> {
    numbers.map(lease).collect()
}

fn all_know(nodes: &mut [Node], routes: usize, most: Duration) -> Option<Duration> {
    let start = Instant::now();
    for node in nodes {
        let left = most.checked_sub(start.elapsed())?;
        node.wait_for(left, |node| node.table.routes().count() == routes)?;
    }
    Some(start.elapsed())
}

#[test]
fn three_nodes_find_each_other() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    for (config, prefixes) in [
        (CONFIG, 1),
        (
            r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}"#,
            2,
        ),
    ] {
        etcd.delete(PREFIX, "/coreos.com/network0");
        etcd.put_config(config);
        let mut nodes: Vec<Node> = (1..=3).map(|n| Node::of(&etcd, n)).collect();
        let took = all_know(&mut nodes, 3 * prefixes, SHORT).expect("found each other");
        assert!(took < Duration::from_secs(5), "{took:?}");
        eprintln!("3 nodes, {prefixes} families: all routes after {took:?}");
        let network = NetConf::parse(config.as_bytes()).unwrap();
        let values = etcd.values();
        assert_eq!(values.len(), 3);
        for node in &mut nodes {
            node.run(Duration::from_millis(50));
            let subnet = node.subnet().unwrap();
            let key = format!("{PREFIX}/subnets/{subnet}");
            let (_, value) = values.iter().find(|(found, _)| *found == key).unwrap();
            assert_eq!(*value, node.own.attrs(&network).to_json());
            assert_eq!(node.remote(), 2 * prefixes);
        }
        // One leaves and gives its subnet back; the others see it go.
        let mut leaver = nodes.pop().unwrap();
        leaver.source.as_ref().unwrap().tell(Command::Leave);
        let left = |node: &Node| {
            node.seen.contains(&SourceNotice::Left {
                source: SourceKind::Etcd,
            })
        };
        leaver.wait_for(SHORT, left).expect("left");
        all_know(&mut nodes, 2 * prefixes, SHORT).expect("gone");
        assert_eq!(etcd.values().len(), 2);
        // The operator deletes what they have; they claim the same again.
        let subnets: Vec<String> = nodes.iter().filter_map(Node::subnet).collect();
        etcd.delete(&format!("{PREFIX}/subnets/"), &format!("{PREFIX}/subnets0"));
        let there = |subnet: &String| etcd.values().iter().any(|(key, _)| key.ends_with(subnet));
        let end = Instant::now() + SHORT;
        while !subnets.iter().all(there) {
            assert!(Instant::now() < end, "{:?}", etcd.values());
            for node in &mut nodes {
                node.run(Duration::from_millis(20));
            }
        }
        all_know(&mut nodes, 2 * prefixes, SHORT).expect("known again");
    }
}

#[test]
fn changes_are_seen_at_once() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    // So many that the twenty that go are no mass withdrawal.
    etcd.put_all(&leases(1000..1100));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 100).unwrap();
    let mut times = Vec::new();
    for number in 2000..2020 {
        let (key, value) = lease(number);
        let start = Instant::now();
        etcd.put(&key, &value);
        node.wait_for(SHORT, |node| node.remote() == 101).unwrap();
        times.push(start.elapsed());
        let key = String::from_utf8(key).unwrap();
        let start = Instant::now();
        etcd.delete(&key, &format!("{key}\0"));
        node.wait_for(SHORT, |node| node.remote() == 100).unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("40 changes, writing included: half within {median:?}, all within {slowest:?}");
    // One of them may have waited for its processor; half of them have not.
    assert!(median < Duration::from_millis(200) && slowest < Duration::from_secs(2));
}

#[test]
fn killed_cluster_loses_nothing_and_its_return_is_noticed() {
    let Some(mut etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    etcd.put_all(&leases(0..50));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 50).unwrap();
    etcd.kill(0);
    node.wait_for(SHORT, |node| node.status().lost.is_some())
        .unwrap();
    let before = node.seen.len();
    node.run(Duration::from_secs(6));
    assert_eq!((node.remote(), node.withdrawn()), (50, 0));
    assert!(node.seen.len() - before <= 1, "{:?}", node.seen);
    etcd.start_member(0);
    etcd.wait_until_writable();
    etcd.put_all(&leases(100..101));
    let took = node.wait_for(SHORT, |node| node.remote() == 51).unwrap();
    eprintln!("change after the return: seen after {took:?}");
    assert!(took < Duration::from_secs(2));
    assert_eq!(node.withdrawn(), 0);
}

#[test]
fn killed_leader_and_silent_member_lose_nothing() {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    etcd.put_all(&leases(0..50));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 50).unwrap();
    let leader = etcd.leader();
    etcd.kill(leader);
    node.run(Duration::from_secs(3));
    etcd.wait_until_writable();
    etcd.put_all(&leases(100..101));
    let took = node.wait_for(SHORT, |node| node.remote() == 51).unwrap();
    eprintln!("leader killed: change seen after {took:?}");
    assert_eq!(node.withdrawn(), 0);
    etcd.start_member(leader);
    etcd.wait_until_writable();
    node.run(Duration::from_secs(2));
    // The member that is used falls silent, whichever it is: the others are asked.
    for at in 0..3 {
        etcd.signal(at, Signal::SIGSTOP);
        let (key, value) = lease(200 + at as u16);
        let start = Instant::now();
        let writer = std::thread::scope(|scope| {
            let etcd = &etcd;
            let writer = scope.spawn(move || etcd.put(&key, &value));
            let most = Duration::from_secs(15);
            let took = node.wait_for(most, |node| node.remote() == 52 + at);
            let took = took.map(|_| start.elapsed());
            writer.join().unwrap();
            took
        });
        eprintln!("member {at} silent: change seen after {writer:?}");
        assert!(writer.is_some(), "{:?}", node.status());
        etcd.signal(at, Signal::SIGCONT);
        node.run(Duration::from_secs(1));
    }
    assert_eq!(node.withdrawn(), 0);
}

#[test]
fn black_hole_is_noticed_within_15_s() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    etcd.put_all(&leases(0..10));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 10).unwrap();
    etcd.signal(0, Signal::SIGSTOP);
    let took = node.wait_for(Duration::from_secs(15), |node| node.status().lost.is_some());
    eprintln!("black hole noticed after {took:?}");
    assert!(took.is_some());
    assert_eq!(node.withdrawn(), 0);
    etcd.signal(0, Signal::SIGCONT);
    etcd.put_all(&leases(10..11));
    let took = node.wait_for(SHORT, |node| node.remote() == 11).unwrap();
    eprintln!("and its end after {took:?}");
}

/// The member dies and starts again while nothing passes, between two pings: nobody tells the node
/// that its watch is gone.
#[test]
fn a_watch_that_the_member_forgot_in_silence_is_opened_again() {
    // In a network namespace, where an address can be taken away; the threads of the source and
    // the member are started inside.
    let isolated = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: a network namespace of the test's own needs root: {error}");
            return;
        }
        forgotten_watches();
    });
    isolated.join().unwrap();
}

fn forgotten_watches() {
    let ip = |arguments: &str| {
        let mut ip = Process::new("ip");
        let status = ip.args(arguments.split(' ')).status();
        assert!(status.is_ok_and(|status| status.success()), "{arguments}");
    };
    std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "1").unwrap();
    let sockets_that_end = || {
        let sockets = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let states = sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3));
        states.into_iter().any(|state| state == "04")
    };
    ip("link set lo up");
    ip("address add 192.0.2.77/32 dev lo");
    let Some(mut etcd) = Etcd::start_at("192.0.2.77", 1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    // So many that a ping comes every 5 s.
    etcd.put_all(&leases(0..1000));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 1000).unwrap();
    for round in 0..3 {
        // So that the connection is seldom in use.
        node.run(Duration::from_millis(1500));
        ip("address del 192.0.2.77/32 dev lo");
        etcd.kill(0);
        // As a machine that lost its power does: the kernel forgets the connections too.
        while sockets_that_end() {
            std::thread::sleep(Duration::from_millis(10));
        }
        ip("address add 192.0.2.77/32 dev lo");
        etcd.start_member(0);
        etcd.wait_until_writable();
        etcd.put_all(&leases(1000 + round..1001 + round));
        let wanted = usize::from(1001 + round);
        let took = node.wait_for(SHORT, |node| node.remote() == wanted);
        eprintln!("change after the return: seen after {took:?}");
        assert!(took.is_some_and(|took| took < Duration::from_secs(4)));
        assert_eq!(node.withdrawn(), 0);
    }
}

#[test]
fn compaction_and_wiped_data_withdraw_nothing() {
    let Some(mut etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    let mut nodes: Vec<Node> = (1..=4).map(|n| Node::of(&etcd, n)).collect();
    all_know(&mut nodes, 4, SHORT).unwrap();
    let subnets: Vec<Option<String>> = nodes.iter().map(Node::subnet).collect();
    let answer = etcd
        .ask("kv/range", &serde_json::json!({ "key": "AA==" }))
        .unwrap();
    let body = serde_json::json!({ "revision": answer["header"]["revision"], "physical": true });
    etcd.ask("kv/compaction", &body).unwrap();
    etcd.kill(0);
    etcd.start_member(0);
    etcd.wait_until_writable();
    for node in &mut nodes {
        node.run(Duration::from_millis(1500));
        assert_eq!((node.table.routes().count(), node.withdrawn()), (4, 0));
    }
    etcd.wipe(0);
    etcd.start_member(0);
    etcd.wait_until_writable();
    etcd.put_config(CONFIG);
    for _ in 0..4 {
        for node in &mut nodes {
            node.run(Duration::from_millis(500));
        }
    }
    assert_eq!(etcd.values().len(), 4, "claimed again");
    for (node, subnet) in nodes.iter().zip(&subnets) {
        assert_eq!((node.table.routes().count(), node.withdrawn()), (4, 0));
        assert_eq!(node.subnet(), *subnet);
        assert_eq!(node.status().held, 0);
    }
}

#[test]
fn mass_deletion_is_held_until_confirmed() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    etcd.put_all(&leases(0..1000));
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.remote() == 1000).unwrap();
    // All but those of 10.0.0.0/16 whose third octet begins with 2 .. 9, and 10.1.0.0 to 10.3.231.0.
    let (mut keys, mut deleted) = (leases(0..1000), 0);
    keys.sort();
    let from = String::from_utf8(keys[200].0.clone()).unwrap();
    let to = String::from_utf8(keys[800].0.clone()).unwrap();
    etcd.delete(&from, &to);
    node.wait_for(SHORT, |node| node.status().held > 0).unwrap();
    deleted += node.status().held;
    assert_eq!((deleted, node.remote()), (600, 1000));
    assert!(
        node.alarms
            .iter()
            .any(|alarm| alarm.contains("600 of 1000")),
        "{:?}",
        node.alarms
    );
    let outcome = node.handle(Event::Confirm(None));
    assert_eq!((outcome.routes.len(), node.remote()), (600, 400));
}

#[test]
fn hostile_keys_are_quarantined_and_harm_nothing() {
    let Some(etcd) = Etcd::start(1, &["--max-request-bytes", "20000000"]) else {
        return;
    };
    etcd.put_config(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.subnet().is_some())
        .unwrap();
    let marker = std::env::temp_dir().join(format!("warren-hostile-{}", std::process::id()));
    let shell = format!("$(touch {})", marker.display());
    let key = |name: &str| format!("{PREFIX}/subnets/{name}").into_bytes();
    let good = |n: u16| lease(n).1;
    let with = |n: u16, from: &str, to: &str| {
        let text = String::from_utf8(good(n)).unwrap();
        text.replace(from, to).into_bytes()
    };
    let mut hostile: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for n in 0..60_u16 {
        let name = format!("10.200.{n}.0-24");
        let ip = format!("198.18.200.{n}");
        let at = |to: &str| with(200 * 256 + n, &ip, to);
        hostile.push(match n % 20 {
            0 => (key(&name), shell.clone().into_bytes()),
            1 => (key(&format!("{name};{shell}")), good(n)),
            2 => (key(&format!("{name}\0")), good(n)),
            3 => ([key(&name), vec![0xff, 0xfe]].concat(), good(n)),
            4 => (key(&name), b"{\"PublicIP\":\"\xff\"}".to_vec()),
            5 => (key(&name), vec![b'['; 60_000]),
            6 => (key(&name), at("192.0.2.1")),
            7 => (key(&name), at("127.0.0.1")),
            8 => (key(&name), at("224.0.0.9")),
            9 => (key(&name), at("0.0.0.0")),
            10 => (key(&format!("0.0.0.0-{}", n / 20)), good(n + 2000)),
            11 => (key(&format!("10.0.{}.0-25", n / 20)), good(n + 3000)),
            12 => (key(&format!("{name}&fc00:1::-64")), good(n)),
            13 => (key(&format!("fc00:{n}::-64")), good(n)),
            14 => (key(&format!("10.200.{n}.7-24")), good(n)),
            15 => (key(&format!("172.16.{n}.0-24")), good(n)),
            16 => (key(&name), with(200 * 256 + n, "02:ff", "ff:ff")),
            17 => (
                key(&name),
                with(200 * 256 + n, "\"VNI\":1", "\"VNI\":77777777"),
            ),
            18 => (key(&name), with(200 * 256 + n, "vxlan", &shell)),
            _ => (
                key(&name),
                vec![b'x'; if n == 19 { 10 << 20 } else { 100_000 }],
            ),
        });
    }
    for (at, kv) in hostile.iter().enumerate() {
        if at % 6 == 0 {
            etcd.put_all(&leases(at as u16 / 6..at as u16 / 6 + 1));
        }
        etcd.put(&kv.0, &kv.1);
    }
    let all = |node: &Node| node.remote() == 10 && node.status().quarantined == 60;
    let seen = node.wait_for(Duration::from_secs(60), all);
    let list = |node: &Node| {
        let all = node.table.quarantine();
        all.map(|q| format!("{} {}", q.key, q.refusal))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(seen.is_some(), "{} routes\n{}", node.remote(), list(&node));
    // The same when they are there from the beginning.
    let mut late = Node::of(&etcd, 2);
    let seen = late.wait_for(Duration::from_secs(20), |node| {
        node.remote() == 11 && node.status().quarantined >= 57
    });
    assert!(seen.is_some(), "{} routes\n{}", late.remote(), list(&late));
    assert!(!marker.exists());
}

#[test]
fn a_node_at_another_address_says_so_and_keeps_its_subnet() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    let mut node = Node::of(&etcd, 1);
    node.wait_for(SHORT, |node| node.subnet().is_some())
        .unwrap();
    let before = etcd.values();
    let at = |ip: &str| {
        let values = etcd.values();
        values.len() == 1
            && values[0].0 == before[0].0
            && values[0].1.contains(&format!("\"PublicIP\":\"{ip}\""))
    };
    assert!(at("192.0.2.1"), "{before:?}");
    let moved = OwnNode {
        public_ip: [192, 0, 2, 11].into(),
        ..node.own
    };
    node.source.as_ref().unwrap().tell(Command::Own(moved));
    let took = node.wait_for(SHORT, |_| at("192.0.2.11"));
    eprintln!("the other address is published after {took:?}");
    assert!(took.is_some(), "{:?}", etcd.values());
    assert_eq!(node.withdrawn(), 0);
}

#[test]
fn ten_thousand_keys_are_live_in_2_s() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    etcd.put_all(&leases(0..10_000));
    let start = Instant::now();
    let mut node = Node::of(&etcd, 1);
    node.wait_for(Duration::from_secs(20), |node| node.remote() == 10_000)
        .unwrap();
    let took = start.elapsed();
    eprintln!("10,000 keys listed: {took:?}");
    // And when they come while the node watches.
    let mut other = Node::of(&etcd, 2);
    other
        .wait_for(Duration::from_secs(20), |node| node.remote() == 10_001)
        .unwrap();
    etcd.delete(
        &format!("{PREFIX}/subnets/10.0."),
        &format!("{PREFIX}/subnets/10.0/"),
    );
    let start = Instant::now();
    etcd.put_all(&leases(10_000..20_000));
    let written = start.elapsed();
    other
        .wait_for(Duration::from_secs(30), |node| node.remote() >= 19_744)
        .unwrap();
    eprintln!(
        "10,000 more written in {written:?}, live after {:?}",
        start.elapsed()
    );
    let _ = own(1);
    if cfg!(not(debug_assertions)) {
        assert!(took < Duration::from_secs(2));
    }
}
