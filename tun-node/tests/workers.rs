//! A node with several workers, between real devices: flows keep their order and their worker,
//! totals add up, what fails in one worker ends the node, full buffers are counted.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy spares test functions, not their helpers"
)]

mod common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Lab, Node, PROGRAM, Underlay, wait_until};
use nix::sys::signal::Signal;
use tun_node::counters::{Balance, WorkerReport};
use tun_node::ctl::message::{CountersReport, Fault, Request};
use tun_node::node::EXIT_INTERNAL;

const TWO: &str = "[worker]\ncount = 2\n";
const APART: &str = "[worker]\ndirections = \"apart\"\n";

#[test]
fn flows_keep_their_order_and_both_workers_have_some() {
    let Some(lab) = Lab::new() else { return };
    for underlay in Underlay::BOTH {
        // A thread that moves to another CPU may overtake its own packets on a veth.
        let pinned = format!("{TWO}pin = true\n");
        let nodes = [1, 2].map(|node| lab.start(node, "vxlan", underlay, &pinned));
        let before = nodes.each_ref().map(Node::counters);
        assert_eq!(before[0].workers.len(), 2);
        let received = load(&lab, "10.244.2.1");
        // Some thousands: enough to see that they passed, whatever a busy machine loses.
        assert!(received > FLOWS * 10, "{received}");
        let after = nodes.each_ref().map(Node::counters);
        for worker in 0..2 {
            let read = |report: &CountersReport| report.workers[worker].device.read.packets;
            assert!(read(&after[0]) > read(&before[0]) + 100, "worker {worker}");
            let written = |report: &CountersReport| report.workers[worker].device.written.packets;
            assert!(
                written(&after[1]) > written(&before[1]) + 100,
                "worker {worker}"
            );
        }
        for report in &after {
            assert_balanced(&report.total);
            report.workers.iter().for_each(assert_balanced);
            assert_eq!(report.total, WorkerReport::total(&report.workers));
        }
        nodes.into_iter().for_each(Node::stop);
    }
}

#[test]
fn every_encapsulation_passes_with_two_workers() {
    let Some(lab) = Lab::new() else { return };
    let before = [lab.traces(1), lab.traces(2)];
    for encap in ["vxlan", "fou", "geneve", "ipip"] {
        let nodes = [1, 2].map(|node| lab.start(node, encap, Underlay::V4, TWO));
        for size in [0, 1400] {
            for _ in 0..5 {
                ping(&lab, 1, "10.244.2.1", size);
                ping(&lab, 2, "fd00:10:244:1::1", size);
            }
        }
        for node in &nodes {
            let report = node.counters();
            assert_balanced(&report.total);
            assert_eq!(report.total.decap.dropped, 0, "{encap}");
            if encap == "ipip" {
                let received = |worker: &WorkerReport| worker.decap.received.packets;
                assert_eq!(
                    received(&report.workers[1]),
                    0,
                    "the first receives for all"
                );
            }
        }
        nodes.into_iter().for_each(Node::stop);
        assert_eq!([lab.traces(1), lab.traces(2)], before, "{encap}");
    }
}

#[test]
fn of_two_workers_whose_directions_are_apart_each_carries_one() {
    let Some(lab) = Lab::new() else { return };
    let before = [lab.traces(1), lab.traces(2)];
    for encap in ["vxlan", "gue", "ipip"] {
        for underlay in Underlay::BOTH {
            let nodes = [1, 2].map(|node| lab.start(node, encap, underlay, APART));
            for size in [0, 1300] {
                for _ in 0..5 {
                    ping(&lab, 1, "10.244.2.1", size);
                    ping(&lab, 2, "fd00:10:244:1::1", size);
                }
            }
            for node in &nodes {
                let report = node.counters();
                let [encap_worker, decap_worker] = report.workers.as_slice() else {
                    panic!("{} workers", report.workers.len());
                };
                assert!(encap_worker.encap.forwarded.packets >= 20, "{encap}");
                assert_eq!(encap_worker.decap.received.packets, 0, "{encap}");
                assert_eq!(encap_worker.device.written.packets, 0, "{encap}");
                assert!(decap_worker.decap.forwarded.packets >= 20, "{encap}");
                assert_eq!(decap_worker.device.read.packets, 0, "{encap}");
                assert_eq!(report.total.decap.dropped, 0, "{encap}");
                // Only who receives can be probed.
                assert_eq!(encap_worker.probes_sent, 0, "{encap}");
                assert!(decap_worker.probes_passed > 0, "{encap}");
                report.workers.iter().for_each(assert_balanced);
                assert_balanced(&report.total);
                assert_eq!(report.total, WorkerReport::total(&report.workers));
            }
            nodes.into_iter().for_each(Node::stop);
            assert_eq!([lab.traces(1), lab.traces(2)], before, "{encap}");
        }
    }
}

#[test]
fn left_to_the_node_directions_are_apart_where_the_underlay_cuts_frames() {
    let Some(lab) = Lab::new() else { return };
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("skipped: two threads need two CPUs");
        return;
    }
    let whole = "tx-udp-segmentation of wire is on";
    let cut = "tx-udp-segmentation of wire is off";
    for (features, directions, because) in [
        ("gro on", "together", whole),
        // Only what TCP sockets make of a packet depends on these.
        ("gso off tso off", "together", whole),
        ("tx-udp-segmentation off", "apart", cut),
        // What the bench of whole tunnels takes for a wire: no checksum, no segmentation.
        (
            "tx off tso off gso off tx-udp-segmentation off",
            "apart",
            cut,
        ),
    ] {
        for node in [1, 2] {
            let every = "tx on sg on tso on gso on tx-udp-segmentation on";
            for features in [every, features] {
                let mut command = vec!["ethtool", "-K", "wire"];
                command.extend(features.split(' '));
                let output = lab.exec(node, &command);
                assert!(output.status.success(), "{output:?}");
            }
        }
        let is_whole = packets_of_a_train(&lab) == Some(1);
        assert_eq!(is_whole, directions == "together", "{features}");
        for underlay in Underlay::BOTH {
            let check = lab.config(1, "vxlan", underlay, "");
            let check = lab.exec(1, &[PROGRAM, "check", "--config", check.to_str().unwrap()]);
            let check = String::from_utf8(check.stdout).expect("text");
            let here = format!("here      directions {directions}: {because}");
            assert!(check.contains(&here), "{features}: {check}");
            let one = lab.start(1, "vxlan", underlay, "");
            // The other end need not have its directions spread alike.
            let two = lab.start(2, "vxlan", underlay, APART);
            ping(&lab, 1, "10.244.2.1", 1300);
            let status = one.status().expect("it answers");
            assert_eq!(status.directions, directions, "{features}: {status:?}");
            assert!(status.directions_because.starts_with(because), "{status:?}");
            assert_eq!(
                status.workers,
                if directions == "apart" { 2 } else { 1 },
                "{features}"
            );
            let line = format!("directions=\"{directions}\" because={because}");
            assert!(one.log().contains(&line), "{}", one.log());
            let status = two.status().expect("it answers");
            assert_eq!(
                (
                    status.directions.as_str(),
                    status.directions_because.as_str()
                ),
                ("apart", "as configured")
            );
            one.stop();
            two.stop();
        }
    }
    let config = lab.config(1, "vxlan", Underlay::V4, "");
    let check = [PROGRAM, "check", "--config", config.to_str().unwrap()];
    let check = lab.exec(1, &[&["taskset", "-c", "0"], check.as_slice()].concat());
    let check = String::from_utf8(check.stdout).expect("text");
    let here = format!("here      directions together: {cut}");
    assert!(check.contains(&here), "{check}");
    assert!(check.contains("but there is one CPU only"), "{check}");
    let text = fs::read_to_string(&config).expect("the configuration");
    let large = text.replace("[device]", "[device]\nunderlay-mtu = 9000");
    fs::write(&config, large).expect("the configuration");
    let check = lab.exec(1, &[PROGRAM, "check", "--config", config.to_str().unwrap()]);
    let check = String::from_utf8(check.stdout).expect("text");
    assert!(check.contains(&here), "{check}");
    let few = "but to few, of up to 9000 octets";
    assert!(check.contains(few), "{check}");
}

/// How many packets a message of ten datagrams is when it crosses the underlay; `None` where the
/// kernel refuses it, as those before 6.11 do for a device without checksum offload.
fn packets_of_a_train(lab: &Lab) -> Option<u64> {
    let sent = || {
        let counter = lab.exec(1, &["cat", "/sys/class/net/wire/statistics/tx_packets"]);
        let counter = String::from_utf8(counter.stdout).expect("text");
        counter.trim().parse::<u64>().expect("a number")
    };
    let socket = lab.within(1, || UdpSocket::bind("192.0.2.1:0").expect("a port"));
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000)
        .expect("Linux 4.18");
    let send = || socket.send_to(&[0; 10_000], "192.0.2.2:9");
    // The first waits for the neighbour's address.
    if let Err(error) = send() {
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        return None;
    }
    lab.ping(1, "192.0.2.2", 1, 56);
    // Whatever else crosses (an answer of ARP) comes once.
    let counts = (0..5).map(|_| {
        let before = sent();
        send().expect("sent");
        sent() - before
    });
    counts.min()
}

#[test]
fn flows_keep_their_order_by_two_pairs_of_workers() {
    let Some(lab) = Lab::new() else { return };
    let pairs = format!("{APART}count = 2\npin = true\n");
    let nodes = [1, 2].map(|node| lab.start(node, "vxlan", Underlay::V4, &pairs));
    let received = load(&lab, "10.244.2.1");
    assert!(received > FLOWS * 10, "{received}");
    for (node, carries) in nodes.iter().zip([true, false]) {
        let report = node.counters();
        assert_eq!(report.workers.len(), 4);
        for (number, worker) in report.workers.iter().enumerate() {
            let octets = match number % 2 == 0 {
                true => worker.encap.forwarded.octets,
                false => worker.decap.forwarded.octets,
            };
            assert!(
                octets > 1000 || (number % 2 == 0) != carries,
                "worker {number}: {octets}"
            );
            assert_balanced(worker);
        }
        assert_balanced(&report.total);
    }
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn every_worker_takes_new_tables() {
    let Some(lab) = Lab::new() else { return };
    let config = lab.config(1, "vxlan", Underlay::V4, TWO);
    let node = lab.spawn(1, &config);
    node.wait_ready();
    let first = node.status().expect("it answers").epoch;
    let text = fs::read_to_string(&config).expect("it was written");
    let route = "[[routes]]\nprefix = \"10.250.0.0/16\"\naction = \"blackhole\"\n";
    fs::write(&config, format!("{text}\n{route}")).expect("written");
    node.signal(Signal::SIGHUP);
    // No packet passes: a worker looks for them by itself.
    wait_until("all workers have the new tables", || {
        let status = node.status()?;
        (status.epoch > first && status.workers_epoch == status.epoch).then_some(())
    })
    .expect("they have them");
    let report = node.counters();
    assert!(report.workers.iter().all(|worker| worker.epoch > first));
    node.stop();
}

#[test]
fn a_second_worker_that_hangs_or_panics_ends_the_node_within_two_seconds() {
    let Some(lab) = Lab::new() else { return };
    for (fault, sentence) in [
        (Fault::Hang, "worker 1 has not answered"),
        (Fault::Panic, "worker 1 ended: it panicked"),
    ] {
        let mut node = lab.start(1, "vxlan", Underlay::V4, TWO);
        node.ask(&Request::Fault(fault)).expect("an answer");
        let (status, took) = node.wait();
        assert!(took < Duration::from_secs(2), "{fault:?} took {took:?}");
        assert_eq!(status.code(), Some(i32::from(EXIT_INTERNAL)));
        assert!(node.log().contains(sentence), "{}", node.log());
    }
}

#[test]
fn a_device_with_one_queue_has_one_worker_and_one_with_several_as_many_as_asked_for() {
    let Some(lab) = Lab::new() else { return };
    for (kind, workers) in [("", 1), ("multi_queue", 2)] {
        lab.ip(1, &format!("tuntap add dev warren0 mode tun {kind}"));
        for mode in ["attach", "persistent"] {
            let path = lab.config(1, "vxlan", Underlay::V4, TWO);
            let text = fs::read_to_string(&path).expect("it was written");
            let text = text.replace("[device]", &format!("[device]\nmode = \"{mode}\""));
            fs::write(&path, text).expect("written");
            let one = lab.spawn(1, &path);
            one.wait_ready();
            let two = lab.start(2, "vxlan", Underlay::V4, "");
            ping(&lab, 1, "10.244.2.1", 56);
            assert_eq!(one.status().map(|status| status.workers), Some(workers));
            one.stop();
            two.stop();
        }
        lab.ip(1, "link del warren0");
    }
}

#[test]
fn what_is_asked_for_is_made() {
    let Some(lab) = Lab::new() else { return };
    let worker = "[worker]\ncount = 2\npin = true\nbusy-poll-us = 50\n\
                  receive-buffer = 100000\nsend-buffer = 200000\n";
    let one = lab.start(1, "vxlan", Underlay::V4, worker);
    let two = lab.start(2, "vxlan", Underlay::V4, "[worker]\ncount = \"auto\"\n");
    ping(&lab, 1, "10.244.2.1", 56);
    let status = one.status().expect("it answers");
    assert_eq!(
        (status.receive_buffer, status.send_buffer),
        (Some(200_000), Some(400_000))
    );
    assert_eq!(status.device.queue_packets, Some(4000));
    let cpus = |number: u32| -> String {
        let text = fs::read_to_string(thread(&one, number).join("status")).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list:"));
        line.unwrap().to_owned()
    };
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if all > 1 {
        assert_ne!(cpus(0), cpus(1), "each has a CPU of its own");
    }
    assert!(!cpus(0).contains(['-', ',']), "{}", cpus(0));
    one.stop();
    two.stop();
}

#[test]
fn a_worker_looks_for_packets_as_long_as_it_is_told_to_and_sleeps_otherwise() {
    let Some(lab) = Lab::new() else { return };
    // Longer than it is from one liveness probe to the next.
    let looks = lab.start(
        1,
        "vxlan",
        Underlay::V4,
        "[worker]\nbusy-poll-us = 600000\n",
    );
    let sleeps = lab.start(2, "vxlan", Underlay::V4, "");
    ping(&lab, 1, "10.244.2.1", 56);
    // Longer than a worker looks that has found nothing yet.
    std::thread::sleep(Duration::from_secs(1));
    let used = |node: &Node| {
        let text = fs::read_to_string(thread(node, 0).join("schedstat")).unwrap();
        let nanos = text.split_whitespace().next().unwrap();
        Duration::from_nanos(nanos.parse().unwrap())
    };
    let before = [&looks, &sleeps].map(used);
    std::thread::sleep(Duration::from_secs(2));
    let after = [&looks, &sleeps].map(used);
    let [looking, sleeping] = [0, 1].map(|node| after[node] - before[node]);
    // Where other tests have the CPUs, it makes way for them.
    assert!(looking > Duration::from_millis(100), "{looking:?} of 2 s");
    assert!(sleeping < Duration::from_millis(50), "{sleeping:?} of 2 s");
    looks.stop();
    sleeps.stop();
}

#[test]
fn what_a_full_device_queue_loses_is_counted() {
    let Some(lab) = Lab::new() else { return };
    for worker in ["", TWO] {
        let one = lab.start(1, "vxlan", Underlay::V4, worker);
        let before = one.counters().total.device.read.packets;
        one.signal(Signal::SIGSTOP);
        lab.within(1, || {
            let socket = UdpSocket::bind("10.244.1.1:0").expect("a port");
            for _ in 0..SENT_TO_A_STOPPED_NODE {
                socket
                    .send_to(&[0; 64], "10.244.2.1:9")
                    .expect("the device takes or drops it");
            }
        });
        one.signal(Signal::SIGCONT);
        let last = |drops| {
            SENT_TO_A_STOPPED_NODE <= drops + one.counters().total.device.read.packets - before
        };
        let drops = wait_until("every packet is accounted for", || {
            let drops = one.status()?.device.queue_drops?;
            last(drops).then_some(drops)
        });
        let drops = drops.expect("they are");
        assert!(drops >= SENT_TO_A_STOPPED_NODE / 4, "{drops}");
        assert_balanced(&one.counters().total);
        one.stop();
    }
}

#[test]
fn a_full_send_buffer_is_counted_and_holds_the_other_direction_up_for_nothing() {
    let Some(lab) = Lab::new() else { return };
    for worker in [
        "[worker]\nsend-buffer = 4096\n",
        "[worker]\ncount = 2\nsend-buffer = 4096\n",
    ] {
        let one = lab.start(1, "vxlan", Underlay::V4, worker);
        let two = lab.start(2, "vxlan", Underlay::V4, "");
        ping(&lab, 1, "10.244.2.1", 56);
        // What leaves node 1 waits for the answer to an ARP request, and is charged to the socket.
        let mac = String::from_utf8(lab.exec(1, &["cat", "/sys/class/net/wire/address"]).stdout);
        let mac = mac.expect("text");
        lab.ip(
            2,
            &format!(
                "neigh replace 192.0.2.1 lladdr {} dev wire nud permanent",
                mac.trim()
            ),
        );
        let ignore = |how: &str| {
            let set = format!("net.ipv4.conf.all.arp_ignore={how}");
            assert!(lab.exec(2, &["sysctl", "-q", "-w", &set]).status.success());
        };
        ignore("8");
        lab.ip(1, "neigh flush dev wire");
        let receiver = lab.within(1, || UdpSocket::bind("10.244.1.1:0").expect("a port"));
        receiver
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let target = receiver.local_addr().expect("it is bound");
        let sender = lab.within(2, || UdpSocket::bind("10.244.2.1:0").expect("a port"));
        let stuck = lab.within(1, || UdpSocket::bind("10.244.1.1:0").expect("a port"));
        let mut drops = 0;
        for number in 0..100_u8 {
            for _ in 0..50 {
                stuck
                    .send_to(&[0; 1000], "10.244.2.1:9")
                    .expect("the device takes it");
            }
            sender.send_to(&[number], target).expect("sent");
            let mut octet = [0];
            receiver
                .recv(&mut octet)
                .expect("the other direction goes on");
            assert_eq!(octet, [number]);
            drops = full(&one.counters().total);
        }
        assert!(drops > 0, "{:#?}", one.counters().total.sockets);
        assert_balanced(&one.counters().total);
        ignore("0");
        lab.ip(1, "neigh flush dev wire");
        ping(&lab, 1, "10.244.2.1", 56);
        lab.ip(2, "neigh del 192.0.2.1 dev wire");
        one.stop();
        two.stop();
    }
}

#[test]
fn a_full_receive_buffer_is_counted_and_holds_the_other_direction_up_for_nothing() {
    let Some(lab) = Lab::new() else { return };
    for worker in [
        "[worker]\nreceive-buffer = 4096\n",
        "[worker]\ncount = 2\nreceive-buffer = 4096\n",
    ] {
        let one = lab.start(1, "vxlan", Underlay::V4, worker);
        let two = lab.start(2, "vxlan", Underlay::V4, "");
        let receiver = lab.within(2, || UdpSocket::bind("10.244.2.1:0").expect("a port"));
        receiver
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let target = receiver.local_addr().expect("it is bound");
        let sender = lab.within(1, || UdpSocket::bind("10.244.1.1:0").expect("a port"));
        let flood = lab.within(2, || UdpSocket::bind("10.244.2.1:0").expect("a port"));
        for number in 0..20_u8 {
            // What comes while the node does not look is more than its buffer holds.
            one.signal(Signal::SIGSTOP);
            let before = two.counters().total.encap.forwarded.packets;
            for _ in 0..200 {
                let _ = flood.send_to(&[0; 1000], "10.244.1.1:9");
            }
            wait_until("the flood is under way", || {
                (two.counters().total.encap.forwarded.packets >= before + 200).then_some(())
            })
            .expect("it is");
            sender.send_to(&[number], target).expect("sent");
            one.signal(Signal::SIGCONT);
            let mut octet = [0];
            receiver
                .recv(&mut octet)
                .expect("the other direction goes on");
            assert_eq!(octet, [number]);
        }
        // Both ways are at rest when they are asked; probes go on, but find room.
        let sum = || {
            let sockets = one.counters().total.sockets;
            let counted: u64 = sockets.iter().map(|socket| socket.receive_overflows).sum();
            counted
        };
        let counted = wait_until("every drop is counted, none twice", || {
            let dropped = lab.within(1, dropped_by_the_kernel);
            (dropped > 0 && sum() == dropped).then_some(dropped)
        });
        eprintln!("{counted:?} datagrams found no room");
        assert!(counted.is_some());
        assert_balanced(&one.counters().total);
        ping(&lab, 1, "10.244.2.1", 56);
        one.stop();
        two.stop();
    }
}

/// One echo at a time: of several, `ping` waits for the last only as long as the others took.
/// A worker's thread in `/proc`.
fn thread(node: &Node, number: u32) -> PathBuf {
    let folder = format!("/proc/{}/task", node.id());
    let mut tasks = fs::read_dir(folder)
        .unwrap()
        .map(|task| task.unwrap().path());
    let name = format!("worker-{number}\n");
    let task = tasks.find(|task| fs::read_to_string(task.join("comm")).unwrap() == name);
    task.expect("the node has this worker")
}

fn ping(lab: &Lab, node: u8, to: &str, octets: u32) {
    lab.ping(node, to, 1, octets);
}

/// What the sockets of the caller's namespace at flannel's VXLAN port dropped, by the kernel's list of them.
fn dropped_by_the_kernel() -> u64 {
    let list = fs::read_to_string("/proc/thread-self/net/udp").expect("a list of sockets");
    let sockets = list.lines().filter(|line| {
        let local = line.split_whitespace().nth(1);
        local.is_some_and(|local| local.ends_with(&format!(":{:04X}", 8472)))
    });
    let drops = sockets.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
    drops.sum()
}

/// Frames that were dropped because a send buffer was full.
fn full(total: &WorkerReport) -> u64 {
    let drops = total.sockets.iter().map(|socket| &socket.send_drops);
    drops.filter_map(|drops| drops.get("buffer_full")).sum()
}

/// Sends numbered datagrams from node 1 by many flows at once, and returns how many arrived at node
/// 2; those of a flow must arrive in their order, each at most once.
fn load(lab: &Lab, to: &str) -> u64 {
    let receiver = lab.within(2, || UdpSocket::bind((to, 0)).expect("a port"));
    receiver
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a timeout");
    let target: SocketAddr = receiver.local_addr().expect("it is bound");
    let senders: Vec<UdpSocket> = lab.within(1, || {
        let flows = (0..FLOWS).map(|_| UdpSocket::bind("10.244.1.1:0").expect("a port"));
        flows.collect()
    });
    std::thread::scope(|scope| {
        for senders in senders.chunks(senders.len() / 2) {
            scope.spawn(move || {
                let deadline = Instant::now() + LOAD;
                for number in 0_u64.. {
                    if Instant::now() > deadline {
                        break;
                    }
                    for (flow, sender) in senders.iter().enumerate() {
                        // Of different sizes, so that trains end anywhere.
                        let mut payload = [0; 600];
                        payload[..8].copy_from_slice(&number.to_be_bytes());
                        let size = 8 + usize::try_from(number * 7 % 592).expect("small").max(flow);
                        let _ = sender.send_to(&payload[..size], target);
                    }
                }
            });
        }
        let mut last = std::collections::HashMap::new();
        let (mut arrived, mut room) = (0, [0; 600]);
        while let Ok((octets, from)) = receiver.recv_from(&mut room) {
            assert!(octets >= 8);
            let number = u64::from_be_bytes(room[..8].try_into().expect("8 octets"));
            let before = last.insert(from, number);
            assert!(
                before.is_none_or(|before| before < number),
                "{from}: {number} after {before:?}"
            );
            arrived += 1;
        }
        assert_eq!(last.len(), senders.len(), "flows that arrived");
        arrived
    })
}

fn assert_balanced(report: &WorkerReport) {
    let Balance {
        received,
        left,
        dropped,
    } = report.balance();
    assert_eq!(received, left + dropped, "{report:#?}");
}

const FLOWS: u64 = 32;
const LOAD: Duration = Duration::from_secs(2);

/// More than two queues of 4000 packets hold.
const SENT_TO_A_STOPPED_NODE: u64 = 20_000;
