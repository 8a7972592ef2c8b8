//! Datagrams by the ring beside the device's queue (`packet-ring`), from a node to the kernel's own VXLAN
//! device ([`common::opposite`]). Needs root and Linux 6.6.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy spares test functions, not their helpers"
)]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::opposite::{self, FAMILIES, settle};
use common::{Lab, Node, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

#[test]
fn datagrams_of_all_lengths_come_in_order_and_each_is_accounted_for() {
    let Some((lab, node)) = open("") else { return };
    let mut packets = 0;
    for (ours, theirs) in FAMILIES {
        let before = node.counters().total;
        let sent = stream(&lab, (ours, theirs), BURSTS, false, |number| {
            (12 + (number as usize * 37) % 1300, None)
        });
        settle(&node);
        let after = node.counters().total;
        let read = after.device.read.packets - before.device.read.packets;
        assert_taken(&node, packets + sent);
        packets += sent;
        let by_ring = after.device.read_ring - before.device.read_ring;
        // The worker sleeps between the bursts, and the first of each wakes it.
        assert!(by_ring > sent / 2, "{by_ring} of {sent}");
        assert!(by_ring < read, "all {read} came by the ring");
        let balance = after.balance();
        assert_eq!(balance.received, balance.left + balance.dropped);
    }
    node.stop();
}

/// What else wakes the worker does so at moments of its own: the worker may ask the device just before the
/// datagram comes there that those in the ring are behind.
#[test]
fn datagrams_come_in_order_while_commands_wake_the_worker() {
    let Some((lab, node)) = open("") else { return };
    let mut asked = 0;
    in_order_beside(&lab, &node, || {
        node.counters();
        asked += 1;
        std::thread::sleep(Duration::from_micros(asked % 7 * 100));
    });
    assert!(asked > 100, "{asked}");
    node.stop();
}

/// As one does that waits long for a CPU.
#[test]
fn datagrams_come_in_order_from_a_worker_that_stood_still() {
    let Some((lab, node)) = open("") else { return };
    in_order_beside(&lab, &node, || {
        node.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(200));
        node.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(50));
    });
    node.stop();
}

/// Streams datagrams, which are to come in order, while `action` is done over and over.
fn in_order_beside(lab: &Lab, node: &Node, mut action: impl FnMut() + Send) {
    let is_over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        // Also where the stream fails.
        let _over = Over(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                action();
            }
        });
        stream(lab, FAMILIES[0], BURSTS, false, |_| (100, None))
    });
    settle(node);
    assert_taken(node, sent);
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn rows_of_datagrams_among_others_come_once_and_are_accounted_for() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    // Every so often a row of twenty that is to be cut, which keeps to the device's queue.
    let sent = stream(&lab, (ours, theirs), BURSTS, true, |number| {
        let row = number % 1999 == 1000;
        (200, row.then_some(20))
    });
    settle(&node);
    let device = node.counters().total.device;
    assert_taken(&node, sent);
    assert!(device.read_super > 5, "{device:?}");
    assert!(device.read_ring > sent / 8, "{device:?} of {sent}");
    node.stop();
}

#[test]
fn beside_flow_offload_dense_ones_come_by_the_ring_and_are_accounted_for() {
    let Some((lab, node)) = open("flow-offload = true") else {
        return;
    };
    let (ours, theirs) = FAMILIES[0];
    let sent = stream(&lab, (ours, theirs), BURSTS, true, |_| (100, None));
    settle(&node);
    let report = node.counters();
    let device = &report.total.device;
    assert_taken(&node, sent);
    assert!(device.read_ring > 100, "{device:?} of {sent}");
    let balance = report.total.balance();
    assert_eq!(balance.received, balance.left + balance.dropped);
    node.stop();
}

#[test]
fn a_capture_sees_all_that_leaves_and_the_ring_is_closed_meanwhile() {
    let Some((lab, node)) = open("") else { return };
    let (ours, theirs) = FAMILIES[0];
    let capture = lab.within(1, || {
        let every = Protocol::from(i32::from(3_u16.to_be()));
        Socket::new(Domain::PACKET, Type::DGRAM, Some(every)).unwrap()
    });
    force_buffer(&capture);
    wait_until("the ring is closed", || {
        node.status()?.packet_ring.filter(|ring| !ring.on)
    })
    .unwrap();
    let because = node.status().unwrap().packet_ring.unwrap().because;
    assert!(because.contains("captures"), "{because}");
    // What was in the ring is carried before the worker sleeps next.
    stream(&lab, (ours, theirs), 1, false, |_| (64, None));
    let before = node.counters().total.device;
    let sent = stream(&lab, (ours, theirs), BURSTS / 10, false, |_| {
        (MARKED_OCTETS, None)
    });
    settle(&node);
    assert_eq!(node.counters().total.device.read_ring, before.read_ring);
    assert_eq!(captured(&capture), sent - ENDS);
    drop(capture);
    wait_until("the ring is open", || {
        node.status()?.packet_ring.filter(|ring| ring.on)
    })
    .unwrap();
    stream(&lab, (ours, theirs), BURSTS / 10, false, |_| (64, None));
    assert!(node.counters().total.device.read_ring > before.read_ring);
    node.stop();
}

#[test]
fn there_is_no_ring_unless_it_is_asked_for_or_beside_several_queues() {
    let Some((lab, node)) = open("") else { return };
    node.stop();
    let (ours, theirs) = FAMILIES[0];
    for (worker, because) in [
        ("", None),
        ("packet-ring = true\ncount = 2", Some("queues")),
    ] {
        let path = opposite::configure(&lab, worker);
        let node = lab.spawn(1, &path);
        node.wait_ready();
        stream(&lab, (ours, theirs), BURSTS / 10, false, |_| (64, None));
        let ring = node.status().unwrap().packet_ring;
        let said = ring.as_ref().map(|ring| (ring.on, ring.because.as_str()));
        match because {
            None => assert_eq!(said, None),
            Some(because) => assert!(said.is_some_and(|(on, it)| !on && it.contains(because))),
        }
        assert_eq!(node.counters().total.device.read_ring, 0);
        node.stop();
    }
}

/// All packets that were sent were read, or are counted where there was no room for them.
fn assert_taken(node: &Node, sent: u64) {
    let device = node.counters().total.device;
    let queue_drops = node.status().unwrap().device.queue_drops.unwrap();
    let taken = device.read.packets + device.ring_full + queue_drops;
    assert!(taken >= sent, "{device:?} and {queue_drops} of {sent}");
}

/// How often [`stream`] sends and pauses.
const BURSTS: u32 = 1500;

/// Octets of the payloads that [`captured`] counts.
const MARKED_OCTETS: usize = 777;

/// A node with the ring, and the kernel's device for its peer; `None`, after saying why, where there can
/// be none.
fn open(worker: &str) -> Option<(Lab, Node)> {
    let lab = Lab::new()?;
    let path = opposite::open(&lab, &format!("packet-ring = true\n{worker}"));
    let node = lab.spawn(1, &path);
    node.wait_ready();
    let ring = node.status()?.packet_ring?;
    if !ring.on {
        let foreseen = ["CAP_BPF", "6.6"];
        let is_foreseen = foreseen.iter().any(|why| ring.because.contains(why));
        assert!(is_foreseen, "{ring:?}: {}", node.log());
        eprintln!("skipped: the host has no ring: {}", ring.because);
        return None;
    }
    Some((lab, node))
}

/// Sends numbered datagrams in bursts with pauses, some of which are long enough for the worker to
/// sleep, and checks that they arrive in their order, or, with rows among them, once each. `next` says how
/// many octets one has and, where it is a row, of how many datagrams. Returns how many packets were sent;
/// that the node took all of them its counters say.
fn stream(
    lab: &Lab,
    (ours, theirs): (IpAddr, IpAddr),
    bursts: u32,
    has_rows: bool,
    next: impl Fn(u32) -> (usize, Option<usize>) + Send,
) -> u64 {
    let sink = lab.within(2, || {
        let socket = Socket::new(Domain::for_address((theirs, 0).into()), Type::DGRAM, None);
        let socket = socket.unwrap();
        socket.bind(&SocketAddr::new(theirs, 9000).into()).unwrap();
        force_buffer(&socket);
        UdpSocket::from(socket)
    });
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let source = lab.within(1, || UdpSocket::bind((ours, 0)).unwrap());
    source.connect((theirs, 9000)).unwrap();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&source, bursts, next));
        let mut seen = BTreeSet::new();
        let mut room = [0; 2048];
        loop {
            let octets = match sink.recv(&mut room) {
                Ok(octets) => octets,
                Err(error) => panic!("{error} behind {:?}", seen.last()),
            };
            if octets == END.len() && room[..octets] == *END {
                break;
            }
            let number = u32::from_be_bytes(room[..4].try_into().unwrap());
            // A row may overtake what came while the worker was being woken.
            let is_in_order = seen.last().is_none_or(|last| number > *last);
            assert!(has_rows || is_in_order, "{number} behind {:?}", seen.last());
            assert!(seen.insert(number), "{number} twice");
        }
        let (numbers, packets) = sending.join().unwrap();
        // On a busy host queues have no room for some, at either end.
        let arrived = u32::try_from(seen.len()).unwrap();
        assert!(arrived > numbers / 2, "{arrived} of {numbers}");
        packets
    })
}

/// Gives a socket a receive buffer beyond what the host allows its users.
fn force_buffer(socket: &Socket) {
    let wanted = 64 << 20;
    setsockopt(socket, sockopt::RcvBufForce, &wanted).unwrap();
}

const END: &[u8] = b"the end";

/// How often that is said, since it may be lost.
const ENDS: u64 = 5;

/// Sends as [`stream`] says; the numbers and the packets that were sent.
fn send(
    source: &UdpSocket,
    bursts: u32,
    next: impl Fn(u32) -> (usize, Option<usize>),
) -> (u32, u64) {
    let (mut number, mut packets) = (0_u32, 0);
    let mut payload = vec![0; 65_536];
    for burst in 0..bursts {
        for _ in 0..(burst * 7) % 97 + 1 {
            let (octets, row) = next(number);
            let count = row.unwrap_or(1);
            for part in payload.chunks_mut(octets).take(count) {
                part[..4].copy_from_slice(&number.to_be_bytes());
                number += 1;
            }
            cut(source, row.map_or(0, |_| octets));
            let payload = &payload[..octets * count];
            assert_eq!(source.send(payload).unwrap(), payload.len());
            packets += 1;
        }
        // From none to one that lets the worker sleep, and what follows a row take the ring again.
        let pause = u64::from(burst % 13) * 90;
        let pause = if burst % 100 == 99 { 30_000 } else { pause };
        std::thread::sleep(Duration::from_micros(pause));
    }
    cut(source, 0);
    for _ in 0..ENDS {
        std::thread::sleep(Duration::from_millis(50));
        source.send(END).unwrap();
        packets += 1;
    }
    (number, packets)
}

/// Has the kernel cut what is sent into datagrams of so many octets; 0 for not.
fn cut(source: &UdpSocket, octets: usize) {
    let octets = i32::try_from(octets).unwrap();
    setsockopt(source, sockopt::UdpGsoSegment, &octets).unwrap();
}

/// How many datagrams with [`MARKED_OCTETS`] a capture saw leave.
fn captured(capture: &Socket) -> u64 {
    capture
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut count = 0;
    let mut room = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
    while let Ok(octets) = capture.recv(&mut room) {
        // The outer packets are longer.
        count += u64::from(octets == MARKED_OCTETS + 28);
    }
    count
}
