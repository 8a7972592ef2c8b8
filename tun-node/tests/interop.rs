//! Interoperation with the Linux kernel's own VXLAN device, set up as flannel and as Calico do it.
//!
//! Each test builds two networks joined by a pair of interfaces, with our node in the first and the
//! kernel's device in the second; nothing leaves them. Pings of every size and TCP go both ways, in
//! both families, over both underlays; a dissector that is not ours reads captures of it.
//!
//! [`the_kernel_meets_itself`] runs the same proof between two kernel devices: it fails when the
//! proof is wrong, and passes when the node is.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic, and says what it measured"
)]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::agent::{self, lost_sizes, transfer};
use support::capture::{self, Capture, Dissected};
use support::kernel::{Node, Shape, configuration, set_up};
use support::netns::{Netns, Sandbox, veth};
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{Request, Response};

#[test]
fn agent() {
    agent::entry();
}

#[test]
fn the_kernel_meets_itself() {
    let Some(pair) = Pair::open(Shape::Flannel, Underlay::V4, capture::PROGRAMS) else {
        return;
    };
    set_up(&pair.a, pair.shape, "va", &pair.here, &pair.there);
    pair.prove();
    pair.without_offloads();
    pair.judge(&pair.capture());
}

#[test]
fn flannel_over_ipv4() {
    node_meets_kernel(Shape::Flannel, Underlay::V4);
}

#[test]
fn flannel_over_ipv6() {
    node_meets_kernel(Shape::Flannel, Underlay::V6);
}

#[test]
fn calico_over_ipv4() {
    node_meets_kernel(Shape::Calico, Underlay::V4);
}

#[test]
fn calico_over_ipv6() {
    node_meets_kernel(Shape::Calico, Underlay::V6);
}

#[test]
fn a_dissector_reads_flannel_over_ipv4_without_complaint() {
    dissector_reads(Shape::Flannel, Underlay::V4);
}

#[test]
fn a_dissector_reads_calico_over_ipv6_without_complaint() {
    dissector_reads(Shape::Calico, Underlay::V6);
}

fn node_meets_kernel(shape: Shape, underlay: Underlay) {
    let Some(pair) = Pair::open(shape, underlay, &[]) else {
        return;
    };
    let node = RunningNode::start(&pair);
    pair.prove();
    node.stop();
}

fn dissector_reads(shape: Shape, underlay: Underlay) {
    let Some(pair) = Pair::open(shape, underlay, capture::PROGRAMS) else {
        return;
    };
    pair.without_offloads();
    let node = RunningNode::start(&pair);
    let dissection = pair.capture();
    node.stop();
    pair.judge(&dissection);
    // RFC 7348 section 5: the source port comes from the dynamic range, and differs by flow.
    let ours = dissection
        .iter()
        .filter(|frame| pair.is_from(frame, &pair.here));
    let ports: BTreeSet<u16> = ours.map(|frame| frame.udp_sources[0]).collect();
    assert!(ports.len() > 1, "{ports:?}");
    assert!(ports.iter().all(|port| *port >= 49152), "{ports:?}");
}

/// The family of the underlay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Underlay {
    V4,
    V6,
}

/// Two joined networks: `b` has the kernel's device, `a` is for our node.
struct Pair {
    shape: Shape,
    here: Node,
    there: Node,
    a: Netns,
    b: Netns,
    folder: PathBuf,
    _folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Pair {
    fn open(shape: Shape, underlay: Underlay, programs: &[&str]) -> Option<Self> {
        let sandbox = Sandbox::open(programs)?;
        let (a, b) = (sandbox.netns(), sandbox.netns());
        veth((&a, "va"), (&b, "vb"));
        let addresses: [IpAddr; 2] = match underlay {
            Underlay::V4 => ["192.0.2.1", "192.0.2.2"],
            Underlay::V6 => ["2001:db8::1", "2001:db8::2"],
        }
        .map(|text| text.parse().expect("an address"));
        let (length, nodad) = match underlay {
            Underlay::V4 => (24, ""),
            Underlay::V6 => (64, "nodad"),
        };
        for (netns, interface, address) in [(&a, "va", addresses[0]), (&b, "vb", addresses[1])] {
            netns.ip(&[format!(
                "address add {address}/{length} dev {interface} {nodad}"
            )]);
        }
        let here = Node::new(shape, 1, addresses[0]);
        let there = Node::new(shape, 2, addresses[1]);
        set_up(&b, shape, "vb", &there, &here);
        let folder = tempfile::tempdir().expect("a place for temporary files");
        Some(Self {
            shape,
            here,
            there,
            a,
            b,
            folder: folder.path().to_owned(),
            _folder: folder,
            _sandbox: sandbox,
        })
    }

    /// The largest inner packet.
    fn mtu(&self) -> usize {
        if self.here.underlay.is_ipv4() {
            1450
        } else {
            1430
        }
    }

    fn prove(&self) {
        self.pings();
        self.tcp(16 << 20);
    }

    /// Pings of every size, both ways, both families; and from and to another block.
    fn pings(&self) {
        for [(from_netns, from), (_, to)] in self.ways() {
            for (from, to) in from.workload.into_iter().zip(to.workload) {
                let lost = lost_sizes(from_netns, from, to, 0, self.mtu());
                assert_eq!(lost, [0; 0], "sizes lost from {from} to {to}");
            }
            for (from, to) in from.far_workload().into_iter().zip(to.far_workload()) {
                let lost = lost_sizes(from_netns, from, to, 0, 100);
                assert_eq!(lost, [0; 0], "sizes lost from {from} to {to}");
            }
        }
    }

    fn tcp(&self, octets: u64) {
        for [(from_netns, from), (to_netns, to)] in self.ways() {
            for (from, to) in from.workload.into_iter().zip(to.workload) {
                let took = transfer((from_netns, from), (to_netns, to), octets);
                println!("{octets} octets from {from} to {to} in {took:?}");
            }
        }
    }

    /// From here on every checksum is on the wire, and every packet is one that fits the MTU.
    fn without_offloads(&self) {
        for (netns, interface) in [(&self.a, "va"), (&self.b, "vb")] {
            let off = format!("-K {interface} tx off gso off tso off gro off");
            netns.read("ethtool", &off);
        }
    }

    /// A capture of all the pings and some TCP.
    fn capture(&self) -> Vec<Dissected> {
        let file = self.folder.join("underlay.pcap");
        let capture = Capture::start(&self.b, "vb", &file);
        self.pings();
        self.tcp(CAPTURED_OCTETS.into());
        let (here, there) = (self.here.underlay, self.there.underlay);
        let mut frames = capture.stop((&self.a, here), there, self.shape.port());
        let before = frames.len();
        frames.retain(|frame| frame.vni.is_some());
        // The datagram that marks the end is the one that is not of the overlay.
        assert_eq!(before - frames.len(), 1);
        frames
    }

    /// The dissector has no complaint, and finds inside what was sent.
    fn judge(&self, dissection: &[Dissected]) {
        let complaints: Vec<&String> = dissection
            .iter()
            .filter(|frame| !self.is_zero_of_the_kernel(frame))
            .filter_map(|frame| frame.complaint.as_ref())
            .take(10)
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
        for (from, to) in [(&self.here, &self.there), (&self.there, &self.here)] {
            let sent: Vec<&Dissected> = dissection
                .iter()
                .filter(|frame| self.is_from(frame, from))
                .collect();
            for frame in &sent {
                assert_eq!(frame.vni, Some(self.shape.vni()), "{frame:?}");
                let inner = (frame.macs_from.get(1), frame.macs_to.get(1));
                assert_eq!(inner, (Some(&from.mac), Some(&to.mac)), "{frame:?}");
            }
            // Each size is a request and, as the answer to the other side's, a reply.
            let echoes = |kind: &dyn Fn(&Dissected) -> bool, smallest: usize| {
                let count = sent.iter().filter(|frame| kind(frame)).count();
                let sizes = self.mtu() + 1 - smallest;
                assert!(count >= sizes, "{count} echoes of {sizes} sizes");
            };
            echoes(&|frame| frame.icmp == Some(8), 28);
            echoes(&|frame| frame.icmp == Some(0), 28);
            echoes(&|frame| frame.icmpv6 == Some(128), 48);
            echoes(&|frame| frame.icmpv6 == Some(129), 48);
            // Each family of TCP carried its share as this side's data.
            for workload in from.workload.map(|address| address.to_string()) {
                let octets: u32 = sent
                    .iter()
                    .filter(|frame| frame.addresses_from.contains(&workload))
                    .filter_map(|frame| frame.tcp_octets)
                    .sum();
                assert!(octets >= CAPTURED_OCTETS, "{octets} octets from {workload}");
            }
        }
    }

    /// Whether all that is wrong with a frame is a checksum of zero that the kernel opposite has written as 0xffff,
    /// as it does in whatever protocol where it finishes one: once in some 65,536 packets.
    fn is_zero_of_the_kernel(&self, frame: &Dissected) -> bool {
        const ZERO: &str = "|TCP Checksum 0xffff instead of 0x0000 (see RFC 1624)|";
        let complaint = frame.complaint.as_ref();
        self.is_from(frame, &self.there) && complaint.is_some_and(|it| it.contains(ZERO))
    }

    /// Whether a frame was sent by this node.
    fn is_from(&self, frame: &Dissected, node: &Node) -> bool {
        frame.addresses_from.contains(&node.underlay.to_string())
    }

    /// Both directions: from where to where.
    fn ways(&self) -> [[(&Netns, &Node); 2]; 2] {
        let (a, b) = ((&self.a, &self.here), (&self.b, &self.there));
        [[a, b], [b, a]]
    }
}

/// Our node in the first network of a pair.
struct RunningNode<'a> {
    pair: &'a Pair,
    child: Child,
}

impl<'a> RunningNode<'a> {
    fn start(pair: &'a Pair) -> Self {
        let socket = pair.folder.join("control.sock");
        let text = configuration(
            pair.shape,
            &pair.here,
            &pair.there,
            socket.to_str().expect("a path of ours"),
        );
        let file = pair.folder.join("node.toml");
        std::fs::write(&file, text).expect("a folder of ours");
        let mut command: Command = pair.a.command(env!("CARGO_BIN_EXE_tun-node"));
        let mut child = command
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter is installed");
        // Ready is who has sent a packet through its own device and seen it: the device, its
        // routes and its sockets are there. The socket's file comes before all of them.
        let is_ready = || {
            let answer = Client::connect(&socket).and_then(|mut node| node.ask(&Request::Status));
            matches!(answer, Ok(Response::Status(status)) if status.ready)
        };
        let began = Instant::now();
        while !is_ready() {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                panic!("the node ended: {status}");
            }
            assert!(began.elapsed() < PATIENCE, "the node is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { pair, child }
    }

    /// Asks the node to end, which must be a clean one.
    fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM)
            .expect("a child of ours");
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "{status}");
        let links = self.pair.a.read("ip", "-brief link");
        assert!(!links.contains("warren0"), "{links}");
    }
}

impl Drop for RunningNode<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes over TCP in a capture, for each direction and family.
const CAPTURED_OCTETS: u32 = 1 << 20;
