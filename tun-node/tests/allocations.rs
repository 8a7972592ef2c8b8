//! What the whole process allocates while packets pass: nothing for them.
//!
//! Two nodes run in this process, in a namespace each, under an allocator that counts for all
//! threads. What the control plane allocates by itself (probes, heartbeats) is measured first, idle.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy spares test functions, not their helpers; what is measured is printed"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Lab, Underlay, wait_until};
use nix::sched::{CloneFlags, setns};
use tun_node::config::Loaded;
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{Request, Response};
use tun_node::node::{RunOptions, run};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; counting touches an atomic
// number only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and the block came from the system's
        // allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(block, layout, octets) }
    }
}

/// How long each of the two measurements is.
const LENGTH: Duration = Duration::from_secs(4);

#[test]
fn packets_cost_no_allocation_in_the_whole_process() {
    // One node with a thread for each direction, one with two workers that carry both; then in a row in IP. Those
    // of before run on, idle.
    let pairs = [
        (
            "vxlan",
            [
                "[worker]\ndirections = \"apart\"\npacket-ring = true",
                "[worker]\ncount = 2\ndirections = \"together\"",
            ],
        ),
        ("ipip", ["[worker]\nipip-offload = true"; 2]),
    ];
    let mut labs = Vec::new();
    for (encap, workers) in pairs {
        let Some(lab) = Lab::new() else { return };
        for (node, worker) in (1..).zip(workers) {
            start(&lab, lab.config(node, encap, Underlay::V4, worker), node);
        }
        measure(&lab, encap);
        labs.push(lab);
    }
}

/// Starts a node, which runs until the process ends.
fn start(lab: &Lab, path: PathBuf, node: u8) {
    let namespace = File::open(format!("/run/netns/{}", lab.namespace(node))).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        run(RunOptions {
            loaded: Loaded::read(&path).unwrap(),
            path,
            rootless: false,
            command: Vec::new(),
            socket: None,
        })
    });
    wait_until("the node is ready", || {
        ready(&lab.socket(node)).then_some(())
    })
    .unwrap();
}

fn measure(lab: &Lab, encap: &str) {
    let receiver = lab.within(2, || UdpSocket::bind("10.244.2.1:7000").unwrap());
    receiver.set_nonblocking(true).unwrap();
    let sender = lab.within(1, || UdpSocket::bind("10.244.1.1:7001").unwrap());
    sender.connect("10.244.2.1:7000").unwrap();
    send(&sender, &receiver, Duration::from_secs(2));

    let before = ALLOCATIONS.load(Ordering::Relaxed);
    std::thread::sleep(LENGTH);
    let idle = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let arrived = send(&sender, &receiver, LENGTH);
    let loaded = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!(
        "{encap}: {idle} allocations in {LENGTH:?} idle, {loaded} with {arrived} packets from end to end"
    );
    assert!(arrived > 2000, "{encap}: {arrived}");
    // A probe more or less falls into the window; a packet is not among the causes.
    assert!(
        loaded < idle * 2 + arrived / 50,
        "{encap}: {loaded}, idle {idle}"
    );
}

/// Sends datagrams in small bursts for a while and returns how many arrived.
fn send(sender: &UdpSocket, receiver: &UdpSocket, length: Duration) -> u64 {
    let (mut arrived, mut room) = (0, [0; 256]);
    let started = Instant::now();
    while started.elapsed() < length {
        for _ in 0..32 {
            let _ = sender.send(&[0x5a; 64]);
        }
        std::thread::sleep(Duration::from_millis(1));
        while receiver.recv(&mut room).is_ok() {
            arrived += 1;
        }
    }
    arrived
}

fn ready(socket: &Path) -> bool {
    let answer = Client::connect(socket)
        .ok()
        .and_then(|mut client| client.ask(&Request::Status).ok());
    matches!(answer, Some(Response::Status(status)) if status.ready)
}
