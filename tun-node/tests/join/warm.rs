//! Killed and started again while no source answers: how long until the first packet is forwarded,
//! and whether every route is as it was.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use tun_node::ctl::message::{Request, Response};
use tun_node::snapshot::StateFile;

use super::cluster::{Etcd, PREFIX};
use super::fleet::{Fleet, HUB, Node, SHORT, wait};

/// Subnets of 64 addresses, so that 10.0.0.0/8 has enough of them.
const NETWORK: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":26,"SubnetMin":"10.0.0.64","Backend":{"Type":"vxlan"}}"#;

const MAGIC: &[u8] = b"the first packet";

/// The prefix of a lease, from 10.64.0.0 on.
fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0000 + number * 64)
}

/// Leases of `peers` nodes; that of number 0 is at 192.0.2.2.
fn leases(count: u32, peers: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let lease = |number: u32| {
        let peer = number % peers;
        let address = match peer {
            0 => Ipv4Addr::new(192, 0, 2, 2),
            _ => Ipv4Addr::from(0xc612_0000 + peer),
        };
        let [_, _, high, low] = peer.to_be_bytes();
        let key = format!("{PREFIX}/subnets/{}-26", subnet(number));
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:ff:00:00:{high:02x}:{low:02x}"}}}}"#
        );
        (key.into_bytes(), value.into_bytes())
    };
    (0..count).map(lease).collect()
}

/// Does something in the namespace of a node.
fn inside<T: Send>(fleet: &Fleet, node: u8, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{}", fleet.namespace(node))).unwrap();
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        entered.join().unwrap()
    })
}

/// Waits until a process runs the program that it was started for.
fn executed(pid: u32) -> Instant {
    let link = format!("/proc/{pid}/exe");
    let deadline = Instant::now() + SHORT;
    while !fs::read_link(&link).is_ok_and(|exe| exe.ends_with("tun-node")) {
        assert!(Instant::now() < deadline, "the node is never executed");
    }
    Instant::now()
}

/// Sends to a subnet of the node behind 192.0.2.2 without pause, and returns when the first packet
/// came there: one given to the device, and one that the kernel's routes led to it.
fn first_packets(fleet: &Fleet, start: impl FnOnce() -> Node) -> (Node, Duration, Duration) {
    let underlay = inside(fleet, 2, || UdpSocket::bind("192.0.2.2:8472").unwrap());
    underlay.set_read_timeout(Some(SHORT)).unwrap();
    let stop = AtomicBool::new(false);
    let destination = (IpAddr::from(Ipv4Addr::from(u32::from(subnet(0)) + 1)), 9);
    let send = |to_device: bool, mark: u8| {
        let stop = &stop;
        move || {
            let message = [MAGIC, &[mark]].concat();
            let mut socket = None;
            while !stop.load(Ordering::Relaxed) {
                if socket.is_none() {
                    let fresh = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let bound = !to_device
                        || setsockopt(&fresh, sockopt::BindToDevice, &"warren0".into()).is_ok();
                    socket = bound.then_some(fresh);
                }
                if let Some(socket) = &socket {
                    // Refused until there is a route.
                    let _ = socket.send_to(&message, destination);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    };
    std::thread::scope(|scope| {
        for (to_device, mark) in [(true, 1), (false, 2)] {
            let work = send(to_device, mark);
            scope.spawn(move || inside(fleet, 1, work));
        }
        let receive = scope.spawn(|| {
            let mut came: [Option<Instant>; 2] = [None; 2];
            let mut octets = [0; 2048];
            while came.contains(&None) {
                let Ok(length) = underlay.recv(&mut octets) else {
                    break;
                };
                let at = Instant::now();
                if let Some((mark, rest)) = octets[..length].split_last()
                    && rest.ends_with(MAGIC)
                {
                    came[usize::from(*mark) - 1].get_or_insert(at);
                }
            }
            stop.store(true, Ordering::Relaxed);
            came
        });
        let node = start();
        let began = executed(node.pid());
        let came = receive.join().unwrap();
        let took = came.map(|at| at.expect("a packet").saturating_duration_since(began));
        (node, took[0], took[1])
    })
}

/// How many entries the newest state has.
fn remembered(state: &Path) -> usize {
    let files = fs::read_dir(state).into_iter().flatten().flatten();
    let mut paths = files.map(|file| file.path());
    let Some(path) = paths.find(|path| path.extension().is_some_and(|e| e == "state")) else {
        return 0;
    };
    let loaded = StateFile::new(path).load();
    loaded.state.map_or(0, |(saved, _)| {
        saved
            .sources
            .iter()
            .map(|source| source.entries.len())
            .sum()
    })
}

fn warm(count: u32, peers: u32) -> Option<[Duration; 2]> {
    let fleet = Fleet::new(2)?;
    let mut etcd = Etcd::start_at(HUB, 1, &["--quota-backend-bytes=4294967296"])?;
    etcd.put_config(NETWORK);
    etcd.put_all(&leases(count, peers));
    let config = fleet.config(1, false, &etcd.endpoints(), "");
    let node = fleet.spawn(1, &config);
    let all = count as usize + 1;
    let long = Duration::from_secs(120);
    wait("every route", long, || node.route_count() == all);
    let state = fleet.directory().join("state1/tun-node");
    wait("the state to be saved", long, || remembered(&state) == all);
    let before = node.routes();
    assert_eq!(before.len(), all);
    // kill -9, and nobody to ask.
    drop(node);
    etcd.kill(0);
    let (node, first, routed) = first_packets(&fleet, || fleet.spawn(1, &config));
    eprintln!(
        "{count} routes to {peers} peers without etcd: the first packet {first:?} after exec, by \
         the kernel's route {routed:?}"
    );
    let decided = wait("all to be decided again", long, || {
        match node.ask(&Request::Sources) {
            Some(Response::Sources(report)) => {
                let mut sources = report.sources.into_iter();
                let etcd = sources.find(|source| source.source == "etcd");
                etcd.is_some_and(|etcd| usize::try_from(etcd.remembered) == Ok(all))
            }
            Some(_) | None => false,
        }
    });
    eprintln!("all was decided again {decided:?} later");
    let table = |routes: Vec<_>| {
        let lines = routes.into_iter().map(|route| format!("{route:?}"));
        lines.collect::<Vec<_>>()
    };
    assert!(
        table(node.routes()) == table(before),
        "the table is another one"
    );
    Some([first, routed])
}

#[test]
fn ten_thousand_routes_are_there_again_before_etcd_is() {
    let Some([first, _]) = warm(10_000, 1000) else {
        return;
    };
    // The promise is of the optimised program on a machine of its own.
    assert!(first < Duration::from_secs(5), "{first:?}");
}

#[test]
#[ignore = "cargo test --release -p tun-node --test join hundred_thousand -- --ignored --nocapture"]
fn a_hundred_thousand_routes_forward_within_100_ms_of_a_restart() {
    let Some([first, _]) = warm(100_000, 10_000) else {
        return;
    };
    assert!(first < Duration::from_millis(100), "{first:?}");
}
