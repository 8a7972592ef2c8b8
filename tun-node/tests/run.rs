//! Two nodes in two namespaces: every encapsulation, a clean end, an unclean end, faults,
//! reloads.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends where its own assumption is wrong"
)]

mod common;
#[path = "run/reload.rs"]
mod reload;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use common::{Lab, Underlay, tun_node, wait_until};
use nix::sys::signal::Signal;
use tun_node::counters::{Balance, WorkerReport};
use tun_node::ctl::message::{Fault, Request};
use tun_node::node::EXIT_INTERNAL;

/// Encapsulation and the octets it adds besides the outer IP header.
const ENCAPS: [(&str, u32); 5] = [
    ("vxlan", 8 + 8 + 14),
    ("geneve", 8 + 8 + 14),
    ("fou", 8),
    ("gue", 8 + 4),
    ("ipip", 0),
];

#[test]
fn pings_cross_every_encapsulation_over_both_families_up_to_the_mtu() {
    let Some(lab) = Lab::new() else { return };
    let before = [lab.traces(1), lab.traces(2)];
    for (encap, shim) in ENCAPS {
        for underlay in Underlay::BOTH {
            let nodes = [1, 2].map(|node| lab.start(node, encap, underlay, ""));
            let mtu = 1500 - underlay.header_octets() - shim;
            assert_eq!(
                nodes[0].status().map(|status| u32::from(status.device.mtu)),
                Some(mtu),
                "{encap} over {underlay:?}"
            );
            for size in [0, 56, mtu - 28] {
                lab.ping(1, "10.244.2.1", 3, size);
                lab.ping(2, "10.244.1.1", 3, size);
            }
            for size in [0, 56, mtu - 48] {
                lab.ping(1, "fd00:10:244:2::1", 3, size);
                lab.ping(2, "fd00:10:244:1::1", 3, size);
            }
            for node in &nodes {
                let total = node.counters().total;
                assert_balanced(&total);
                assert!(total.device.written.packets >= 36, "{total:?}");
                assert_eq!(total.decap.dropped, 0, "{encap} {underlay:?}: {total:?}");
                let [peer] = total.peers.as_slice() else {
                    panic!("one peer: {total:?}");
                };
                let by = peer.by_encapsulation.keys().collect::<Vec<_>>();
                assert_eq!(by, [encap]);
            }
            for node in nodes {
                node.stop();
            }
            assert_eq!(
                [lab.traces(1), lab.traces(2)],
                before,
                "{encap} {underlay:?}"
            );
        }
    }
}

#[test]
fn a_packet_too_large_is_answered_and_tcp_crosses_both_ways() {
    let Some(lab) = Lab::new() else { return };
    let nodes = [1, 2].map(|node| lab.start(node, "vxlan", Underlay::V4, ""));
    let text = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    // The device's MTU lets it pass; the engine knows better when it is raised.
    lab.ip(1, "link set warren0 mtu 1500");
    lab.ip(1, "route replace 10.244.2.0/24 dev warren0 mtu 1500");
    let ping = [
        "ping",
        "-n",
        "-c",
        "1",
        "-W",
        "2",
        "-M",
        "do",
        "-s",
        "1450",
        "10.244.2.1",
    ];
    let answer = text(lab.exec(1, &ping));
    assert!(
        answer.contains("mtu=1450") || answer.contains("mtu = 1450"),
        "{answer}"
    );
    lab.ip(1, "link set warren0 mtu 1450");
    for (from, to) in [(1, 2), (2, 1)] {
        for address in [format!("10.244.{to}.1"), format!("fd00:10:244:{to}::1")] {
            assert_eq!(transfer(&lab, from, to, &address), TRANSFER_OCTETS);
        }
    }
    for node in &nodes {
        assert_balanced(&node.counters().total);
    }
}

#[test]
fn after_sigterm_and_after_sigkill_and_a_new_start_all_is_as_before() {
    let Some(lab) = Lab::new() else { return };
    let before = [lab.traces(1), lab.traces(2)];
    let extra = "[[routes]]\nprefix = \"10.245.0.0/16\"\naction = \"blackhole\"\n\
                 [metrics]\nlisten = \"127.0.0.1:9472\"\n";
    // UDP sockets, and raw ones.
    for encap in ["vxlan", "ipip"] {
        let mut running = None;
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut node = lab.start(1, encap, Underlay::V4, extra);
            let routes = lab.ip(1, "route show dev warren0");
            assert!(
                routes.contains("10.244.2.0/24") && routes.contains("10.245.0.0/16"),
                "{routes}"
            );
            let first = running.get_or_insert_with(|| while_it_runs(&lab));
            assert_eq!(
                *first,
                while_it_runs(&lab),
                "{encap}: every start gives the same"
            );
            node.signal(signal);
            let (status, _) = node.wait();
            assert!(status.success(), "{status}: {}", node.log());
            assert_clean(&lab, &before[0]);
        }
        let mut node = lab.start(1, encap, Underlay::V4, extra);
        node.signal(Signal::SIGKILL);
        let (status, _) = node.wait();
        assert_eq!(status.signal(), Some(9));
        assert!(lab.socket(1).exists(), "nobody was left to remove it");
        // The kernel takes the device, its routes and the sockets with the process.
        let gone = wait_until("the kernel has cleaned up", || {
            (lab.traces(1) == before[0]).then_some(())
        });
        assert!(gone.is_some(), "{encap}: {}", lab.traces(1));
        // A new start finds nothing in its way, runs like the first and ends like it.
        let node = lab.start(1, encap, Underlay::V4, extra);
        assert_eq!(
            Some(while_it_runs(&lab)),
            running,
            "{encap}: as the first start"
        );
        node.stop();
        assert_clean(&lab, &before[0]);
    }
    assert_eq!(
        lab.traces(2),
        before[1],
        "the other namespace was never touched"
    );
}

#[test]
fn a_device_that_stays_is_left_as_it_was_found() {
    let Some(lab) = Lab::new() else { return };
    lab.ip(1, "tuntap add dev warren0 mode tun");
    lab.ip(1, "link set warren0 addrgenmode none up");
    lab.ip(1, "addr add 192.168.77.1/24 dev warren0");
    let set = |mode: &str| {
        let path = lab.config(1, "fou", Underlay::V4, "");
        let text = fs::read_to_string(&path).expect("it was written");
        let text = text.replace("[device]", &format!("[device]\nmode = \"{mode}\""));
        fs::write(&path, text).expect("it can be written again");
        path
    };
    let before = lab.ip(1, "-o addr show dev warren0") + &lab.ip(1, "route show table all");
    for mode in ["attach", "persistent"] {
        let mut node = lab.spawn(1, &set(mode));
        node.wait_ready();
        node.signal(Signal::SIGKILL);
        node.wait();
        let left = lab.ip(1, "route show table all");
        assert!(left.contains("10.244.2.0/24"), "{mode}: {left}");
        let node = lab.spawn(1, &set(mode));
        node.wait_ready();
        node.stop();
        let after = lab.ip(1, "-o addr show dev warren0") + &lab.ip(1, "route show table all");
        assert_eq!(stable(&after), stable(&before), "{mode}");
    }
    lab.ip(1, "link del warren0");
    let node = lab.spawn(1, &set("persistent"));
    node.wait_ready();
    node.stop();
    let link = lab.ip(1, "-o link show dev warren0");
    assert!(
        link.contains("warren0"),
        "a persistent device stays: {link}"
    );
}

#[test]
fn a_worker_that_hangs_or_panics_ends_the_node_within_two_seconds() {
    let Some(lab) = Lab::new() else { return };
    let before = lab.traces(1);
    for (fault, sentence) in [
        (Fault::Hang, "has not answered"),
        (Fault::Panic, "panicked"),
    ] {
        let mut node = lab.start(1, "vxlan", Underlay::V4, "");
        let answer = node.ask(&Request::Fault(fault));
        if answer.is_none() {
            eprintln!("skipped: this build has no fault injection");
            return;
        }
        let (status, took) = node.wait();
        assert!(took < Duration::from_secs(2), "{fault:?} took {took:?}");
        assert_eq!(
            status.code(),
            Some(i32::from(EXIT_INTERNAL)),
            "{}",
            node.log()
        );
        let log = node.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("tun-node: ") && last.contains(sentence),
            "{log}"
        );
        assert_clean(&lab, &before);
    }
}

#[test]
fn a_deleted_device_ends_the_node_with_one_clear_line() {
    let Some(lab) = Lab::new() else { return };
    let mut node = lab.start(1, "vxlan", Underlay::V4, "");
    lab.ip(1, "link del warren0");
    let (status, took) = node.wait();
    assert_eq!(status.code(), Some(i32::from(EXIT_INTERNAL)));
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(node.log().contains("the device is gone"), "{}", node.log());
}

#[test]
fn what_keeps_a_node_from_starting_is_said_in_one_sentence() {
    let Some(lab) = Lab::new() else { return };
    let before = lab.traces(1);
    let refused = |lab: &Lab, config: &std::path::Path, expected: &str| {
        let mut node = lab.spawn(1, config);
        let (status, _) = node.wait();
        assert_eq!(status.code(), Some(2), "{}", node.log());
        let log = node.log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|l| l.starts_with("tun-node: "))
            .collect();
        assert!(
            lines.len() == 1 && lines[0].contains(expected),
            "{expected}: {log}"
        );
    };
    let config = lab.config(1, "vxlan", Underlay::V4, "");
    let text = fs::read_to_string(&config).expect("it was written");
    fs::write(&config, text.replace("192.0.2.1", "192.0.2.77")).expect("written");
    refused(
        &lab,
        &config,
        "does not have the underlay address 192.0.2.77",
    );
    let config = lab.config(1, "vxlan", Underlay::V4, "");
    lab.ip(1, "route add 10.244.2.0/24 dev wire");
    refused(&lab, &config, "route to 10.244.2.0/24 already (dev wire)");
    lab.ip(1, "route del 10.244.2.0/24 dev wire");
    let running = lab.spawn(1, &config);
    running.wait_ready();
    refused(&lab, &config, "a node listens at");
    running.stop();
    assert_clean(&lab, &before);
    let output = tun_node(&["run", "--config", "/nonexistent.toml"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn two_rootless_nodes_reach_each_other_and_end_with_their_command() {
    let directory = tempfile::tempdir().expect("a directory");
    // Loopback is the whole host's: another run of these tests has addresses of its own.
    let own = std::process::id().to_be_bytes();
    let net = format!("127.{}.{}", own[2], own[3]);
    let config = |node: u8| {
        let peer = 3 - node;
        let path = directory.path().join(format!("{node}.toml"));
        let text = format!(
            "[node]\nname = \"r{node}\"\nunderlay = [\"{net}.{node}\"]\n\
             prefixes = [\"10.77.{node}.0/24\"]\nallow-loopback-underlay = true\n\
             [device]\naddresses = [\"10.77.{node}.1/24\"]\n\
             [control]\nsocket = \"{directory}/{node}.sock\"\n\
             [[peers]]\nname = \"r{peer}\"\naddress = \"{net}.{peer}\"\nencap = \"fou\"\n\
             prefixes = [\"10.77.{peer}.0/24\"]\n",
            directory = directory.path().display(),
        );
        fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let socket = directory.path().join("1.sock");
    let mut holder = std::process::Command::new(common::PROGRAM)
        .args(["run", "--rootless", "--config", &config(1)])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let ready = wait_until("the first node is ready or gone", || {
        let gone = holder.try_wait().expect("it is our child").is_some();
        let up = tun_node::ctl::client::Client::connect(&socket)
            .and_then(|mut client| client.ask(&Request::Status))
            .is_ok_and(
                |answer| matches!(answer, tun_node::ctl::message::Response::Status(s) if s.ready),
            );
        (gone || up).then_some(up)
    });
    if ready == Some(false) {
        let output = holder.wait_with_output().expect("it has ended");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = ["user namespaces", "/dev/net/tun", "namespace"];
        assert!(expected.iter().any(|text| said.contains(text)), "{said}");
        eprintln!("skipped: {said}");
        return;
    }
    // COMMAND asks its own node without being told where it is.
    let script = format!(
        "ping -n -c 3 -i 0.1 -W 2 10.77.1.1 && {} status | grep -w r2 && exit 7",
        common::PROGRAM
    );
    let output = tun_node(&[
        "run",
        "--rootless",
        "--config",
        &config(2),
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let output = tun_node(&["run", "--rootless", "--config", &config(2), "/nonexistent"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    let pid = i32::try_from(holder.id()).expect("a process id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    let status = holder.wait().expect("it is our child");
    assert!(status.success(), "{status}");
    let left: Vec<_> = fs::read_dir(directory.path())
        .expect("it is there")
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
        .filter(|name| name.to_string_lossy().ends_with(".sock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

const TRANSFER_OCTETS: u64 = 4_000_000;

/// Sends octets by TCP from one node's side to the other's and returns how many arrived.
fn transfer(lab: &Lab, from: u8, to: u8, address: &str) -> u64 {
    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpListener, TcpStream};
    let address: IpAddr = address.parse().expect("an address");
    let listener = lab.within(to, || TcpListener::bind((address, 0)).expect("a port"));
    let target = listener.local_addr().expect("it is bound");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .expect("a timeout");
            let mut octets = Vec::new();
            stream.read_to_end(&mut octets).expect("the octets");
            assert!(
                octets
                    .iter()
                    .enumerate()
                    .all(|(i, octet)| *octet == pattern(i))
            );
            octets.len() as u64
        });
        lab.within(from, || {
            let mut stream =
                TcpStream::connect_timeout(&target, Duration::from_secs(10)).expect("connected");
            let octets: Vec<u8> = (0..4_000_000).map(pattern).collect();
            stream.write_all(&octets).expect("sent");
        });
        receiver.join().expect("received")
    })
}

fn pattern(index: usize) -> u8 {
    u8::try_from(index % 251).unwrap_or(0)
}

fn assert_balanced(report: &WorkerReport) {
    let Balance {
        received,
        left,
        dropped,
    } = report.balance();
    assert_eq!(received, left + dropped, "{report:#?}");
    let encap = &report.encap;
    assert_eq!(encap.received.packets, report.device.read.packets);
    assert_eq!(
        encap.received.packets,
        encap.forwarded.packets + encap.dropped
    );
    let decap = &report.decap;
    assert_eq!(
        decap.received.packets,
        decap.forwarded.packets + decap.dropped
    );
}

/// Links, addresses, routes and sockets while node 1 runs, without the numbers that the kernel
/// gives anew each time: of interfaces, and of ports and slots of sockets that asked for any port.
fn while_it_runs(lab: &Lab) -> Vec<String> {
    let mut traces: Vec<String> = lab
        .traces(1)
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [table, slot, local, remote, state] if slot.ends_with(':') => {
                    let (address, port) = local.split_once(':').unwrap_or((local, ""));
                    let is_any = u16::from_str_radix(port, 16).is_ok_and(|port| port >= 32_768);
                    let port = if is_any { "any" } else { port };
                    format!("{table} {address}:{port} {remote} {state}")
                }
                [number, rest @ ..] if number.ends_with(':') => rest.join(" "),
                all => all.join(" "),
            }
        })
        .collect();
    traces.sort();
    traces
}

/// The namespace is as it was, and no file of the node is left.
fn assert_clean(lab: &Lab, before: &str) {
    // Closed raw and UDP sockets leave the tables of /proc a moment later.
    let clean = wait_until("the namespace is as before", || {
        (lab.traces(1) == before).then_some(())
    });
    assert!(
        clean.is_some(),
        "before:\n{before}\nafter:\n{}",
        lab.traces(1)
    );
    let directory = lab.socket(1).parent().map(|d| d.to_owned());
    assert!(directory.is_some_and(|directory| !directory.exists()));
}

/// Addresses and routes without what the kernel changes by itself when a device gets a carrier.
fn stable(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("multicast"));
    let mut lines: Vec<String> = lines
        .map(|line| line.replace(" linkdown", "").trim_end().to_owned())
        .collect();
    lines.sort();
    lines
}
