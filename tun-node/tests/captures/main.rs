//! Captures on both sides of a real transfer, compared packet by packet.
//!
//! ```text
//!  stack ─► TUN ─► node 1 ─► underlay ─► node 2 ─► TUN ─► stack
//!         sent             carried               arrived
//! ```
//!
//! The kernel says of each captured packet whether it is a super-packet and how it would cut it
//! (`tap.rs`). A splitter that shares nothing with the library (`cut.rs`) does so, for what the
//! sender's stack handed over, for what crossed the underlay and for what the receiver's stack was
//! given. Then the three captures have to be the same packets in the same order, octet for octet: the
//! first ones with a TTL that is lower by one, and all of them with checksums that are right. What a
//! full buffer of the kernel loses on the way may be missing at the end; nothing else may differ.
//!
//! Sequence numbers, acknowledgements, windows, SYN, FIN and PSH, timestamps, selective
//! acknowledgements, ECN, IPv4 identification and DF are among the octets that are compared.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "clippy spares test functions, not their helpers; what was compared is printed"
)]

#[path = "../common/mod.rs"]
mod common;

mod carriage;
mod cut;
mod load;
mod tap;

use std::collections::BTreeMap;
use std::net::IpAddr;

use carriage::Carriage;
use common::{Lab, Node, Underlay, wait_until};
use cut::{CWR, FIN, Flow, PSH, RST, SYN, Segment, TCP, UDP};
use load::{exchange_datagrams, stream, transfer};
use tap::{Captured, Point, Tap};

#[test]
fn what_arrives_is_what_was_sent_on_a_plain_wire() {
    compare(Wire::Plain, Underlay::V4, VXLAN, "", STREAM_OCTETS, ALL);
}

#[test]
fn what_arrives_is_what_was_sent_on_a_wire_without_offloads() {
    compare(Wire::Cut, Underlay::V4, VXLAN, "", STREAM_OCTETS, ALL);
}

#[test]
fn what_arrives_is_what_was_sent_over_ipv6_on_a_plain_wire() {
    compare(Wire::Plain, Underlay::V6, VXLAN, "", STREAM_OCTETS, ALL);
}

#[test]
fn what_arrives_is_what_was_sent_over_ipv6_on_a_wire_without_offloads() {
    compare(Wire::Cut, Underlay::V6, VXLAN, "", STREAM_OCTETS, ALL);
}

/// The captures show that each was obeyed, too: no packet is larger than it may then be.
#[test]
fn what_arrives_is_what_was_sent_with_each_fallback() {
    let none = Supers {
        sent: [false, false],
        carried: true,
        arrived: [false, false],
        ..ALL
    };
    for (options, supers) in [
        (
            "gso = false",
            Supers {
                carried: false,
                ..ALL
            },
        ),
        (
            "gro = false",
            Supers {
                arrived: [false, false],
                ..ALL
            },
        ),
        (
            "uso = false",
            // What arrives is joined in any case.
            Supers {
                sent: [true, false],
                ..ALL
            },
        ),
        ("vnet-header = false", none),
        (
            "gso = false\ngro = false\nuso = false\nvnet-header = false",
            Supers {
                carried: false,
                ..none
            },
        ),
        // One queue and one thread are what the other tests have.
        (
            "count = 2",
            Supers {
                ordered: false,
                ..ALL
            },
        ),
    ] {
        println!("{options}");
        compare(Wire::Plain, Underlay::V4, VXLAN, options, 500_000, supers);
    }
}

/// By IP-in-IP, TCP super-packets whole: cut by the kernel where they have to be.
///
/// Of those that it cuts the last segment still belongs to the socket that sent them (`skb_segment`),
/// which a veth hands on, and the GRO of the other side keeps segments of different sockets apart:
/// then the last one may come before the others. No cable has sockets.
#[test]
fn what_arrives_is_what_was_sent_by_ip_in_ip_with_offload() {
    for underlay in [Underlay::V4, Underlay::V6] {
        for wire in [Wire::Plain, Wire::Cut] {
            println!("{wire:?} {underlay:?}");
            let supers = Supers {
                ordered: wire == Wire::Plain,
                ..ALL
            };
            let options = "ipip-offload = true";
            compare(wire, underlay, Carriage::Ip, options, STREAM_OCTETS, supers);
        }
    }
}

/// By IP-in-IP, packet by packet.
#[test]
fn what_arrives_is_what_was_sent_by_ip_in_ip() {
    let supers = Supers {
        carried: false,
        ..ALL
    };
    for underlay in [Underlay::V4, Underlay::V6] {
        compare(Wire::Plain, underlay, Carriage::Ip, "", 500_000, supers);
    }
}

/// What is lost comes again, with selective acknowledgements: a receive buffer is too small.
#[test]
fn what_arrives_of_a_stream_with_losses_is_what_was_sent() {
    let Some(lab) = Lab::new() else { return };
    let small = worker("receive-buffer = 65536");
    let nodes = [
        lab.start(1, "vxlan", Underlay::V4, &worker("")),
        lab.start(2, "vxlan", Underlay::V4, &small),
    ];
    let mut taps = [1, 2].map(|node| Tap::open(&lab, node));
    let mut lost = 0;
    let mut sacks = 0;
    for _ in 0..20 {
        let address = "10.244.2.1".parse().expect("an address");
        transfer(&lab, 1, 2, address, STREAM_OCTETS);
        let ways = settled(&mut taps, Wire::Plain, Underlay::V4, VXLAN);
        lost = ways[0].judge();
        ways[1].judge();
        let acknowledgements = ways[1].arrived.values().flatten();
        let tcp = acknowledgements.filter(|segment| segment.flow().protocol == TCP);
        sacks = tcp.map(|segment| segment.tcp().sack_blocks).sum();
        if lost > 0 && sacks > 0 {
            break;
        }
    }
    println!("{lost} packets lost, {sacks} selective acknowledgements");
    assert!(lost > 0 && sacks > 0, "{lost} lost, {sacks} acknowledged");
    nodes.into_iter().for_each(Node::stop);
}

/// What the veth is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wire {
    /// As it is: super-packets cross it uncut, with checksums to be filled in.
    Plain,
    /// Every frame fits the MTU and is complete, as on a cable.
    Cut,
}

/// Where super-packets are seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Supers {
    /// Of TCP and of UDP, from the sender's stack.
    sent: [bool; 2],
    /// Datagrams on the underlay; on a wire that is cut there are none in any case.
    carried: bool,
    /// Of TCP and of UDP, to the receiver's stack.
    arrived: [bool; 2],
    /// Whether each flow stays in its order. With two workers the kernel gives a flow to the queue of
    /// the one that has written last for it, which once may be another one than before.
    ordered: bool,
}

/// With all offloads on.
const ALL: Supers = Supers {
    sent: [true, true],
    carried: true,
    arrived: [true, true],
    ordered: true,
};

/// The section of a worker. A thread that moves to another CPU may overtake its own packets on a veth.
fn worker(options: &str) -> String {
    format!("[worker]\npin = true\n{options}\n")
}

/// Streams of `octets` and datagrams, in both families and both ways.
fn compare(
    wire: Wire,
    underlay: Underlay,
    carriage: Carriage,
    options: &str,
    octets: usize,
    supers: Supers,
) {
    let Some(lab) = Lab::new() else { return };
    for node in [1, 2] {
        // Segments that say so, and a handshake with more flags than SYN.
        let ecn = lab.exec(node, &["sysctl", "-q", "-w", "net.ipv4.tcp_ecn=1"]);
        assert!(ecn.status.success(), "{ecn:?}");
        if wire == Wire::Cut {
            let mut off = vec!["ethtool", "-K", "wire"];
            off.extend("tx off tso off gso off gro on".split(' '));
            let output = lab.exec(node, &off);
            assert!(output.status.success(), "{output:?}");
        }
    }
    let nodes = [1, 2].map(|node| lab.start(node, carriage.name(), underlay, &worker(options)));
    let mut taps = [1, 2].map(|node| Tap::open(&lab, node));
    let before = nodes.each_ref().map(drops);
    // The tunnel's: the underlay's without its header and the encapsulation's.
    let header_octets = usize::try_from(underlay.header_octets()).expect("small");
    let mtu = MTU - header_octets - carriage.header_octets();
    for (from, to, address) in [
        (1, 2, "10.244.2.1"),
        (2, 1, "10.244.1.1"),
        (1, 2, "fd00:10:244:2::1"),
        (2, 1, "fd00:10:244:1::1"),
    ] {
        let address: IpAddr = address.parse().expect("an address");
        transfer(&lab, from, to, address, octets);
        exchange_datagrams(&lab, from, to, address, mtu);
    }
    for mut way in settled(&mut taps, wire, underlay, carriage) {
        if !supers.ordered {
            way.sort();
        }
        let lost = way.judge();
        if supers.ordered {
            way.has_streams(octets);
        }
        way.has_super_packets(wire, supers);
        println!(
            "{} flows, {} packets, {lost} of them lost on the wire",
            way.sent.len(),
            count(&way.sent)
        );
    }
    assert_eq!(
        nodes.each_ref().map(drops),
        before,
        "packets that were dropped"
    );
    nodes.into_iter().for_each(Node::stop);
}

/// Packets that a node has dropped itself; a probe that came before it knew its peer may be one.
fn drops(node: &Node) -> u64 {
    let total = node.counters().total;
    let refused = total.sockets.iter().map(|socket| &socket.send_drops);
    let refused = refused.chain([&total.device.write_drops]);
    let refused: u64 = refused.flat_map(|drops| drops.values()).sum();
    refused + total.encap.dropped + total.decap.dropped
}

/// Packets by flow, each in its order.
type Flows = BTreeMap<Flow, Vec<Segment>>;

/// One direction, at three points.
struct Way {
    /// One hop on.
    sent: Flows,
    carried: Flows,
    arrived: Flows,
    /// The largest packets of each protocol as they were captured, before they were cut: of those
    /// sent, and of those that arrived.
    largest: BTreeMap<u8, [usize; 2]>,
    /// And of the frames on the underlay.
    largest_carried: usize,
}

/// Both directions, when all that the nodes have read has left them again.
fn settled(taps: &mut [Tap; 2], wire: Wire, underlay: Underlay, carriage: Carriage) -> [Way; 2] {
    let all = wait_until("the underlay has all packets of both devices", || {
        let ways = ways(taps, wire, underlay, carriage);
        let has_all = |way: &Way| count(&way.sent) == count(&way.carried);
        ways.iter().all(has_all).then_some(ways)
    });
    // Where they have not, what is missing is named when they are judged.
    all.unwrap_or_else(|| ways(taps, wire, underlay, carriage))
}

/// Both directions: node 1 sends, node 2 sends.
fn ways(taps: &mut [Tap; 2], wire: Wire, underlay: Underlay, carriage: Carriage) -> [Way; 2] {
    // Until nothing new came: then no capture has the end of a way whose start the other lacks.
    let mut seen = [usize::MAX; 2];
    loop {
        let now = taps.each_mut().map(Tap::drain);
        if now == seen {
            break;
        }
        seen = now;
    }
    let [one, two] = taps.each_ref().map(Tap::packets);
    // And what node 2 sends, node 1 is the end of.
    [(1, one, two), (2, two, one)]
        .map(|(from, here, there)| Way::read(from, here, there, wire, underlay, carriage))
}

impl Way {
    fn read(
        from: u8,
        here: &[Captured],
        there: &[Captured],
        wire: Wire,
        underlay: Underlay,
        carriage: Carriage,
    ) -> Self {
        let is_ours = |segment: &Segment| {
            let flow = segment.flow();
            // The nodes' own probes are others.
            [TCP, UDP].contains(&flow.protocol)
                && workload(from).contains(&flow.source)
                && workload(3 - from).contains(&flow.destination)
        };
        let mut way = Self {
            sent: Flows::new(),
            carried: Flows::new(),
            arrived: Flows::new(),
            largest: BTreeMap::new(),
            largest_carried: 0,
        };
        for (side, packets, outgoing) in [(0, here, true), (1, there, false)] {
            let at_device = packets
                .iter()
                .filter(|packet| packet.point == Point::Device);
            for packet in at_device.filter(|packet| packet.outgoing == outgoing) {
                if !is_ours(&Segment(packet.octets.clone())) {
                    continue;
                }
                let segments = packet.segments(0);
                let protocol = segments[0].flow().protocol;
                let largest = way.largest.entry(protocol).or_default();
                largest[side] = largest[side].max(packet.octets.len());
                if side == 0 {
                    // The sender's node is a router.
                    let routed = segments.into_iter().map(Segment::one_hop_on).collect();
                    add(&mut way.sent, routed);
                } else {
                    add(&mut way.arrived, segments);
                }
            }
        }
        let on_wire = here.iter().filter(|packet| packet.point == Point::Wire);
        for packet in on_wire.filter(|packet| packet.outgoing) {
            let inner = carriage.inner(packet, wire, underlay);
            if !inner.is_empty() {
                way.largest_carried = way.largest_carried.max(packet.octets.len());
            }
            for inner in inner {
                if is_ours(&inner) {
                    add(&mut way.carried, vec![inner]);
                }
            }
        }
        way
    }

    /// Makes the order of no account.
    fn sort(&mut self) {
        for flows in [&mut self.sent, &mut self.carried, &mut self.arrived] {
            flows.values_mut().for_each(|segments| segments.sort());
        }
    }

    /// The three captures agree. Returns how many packets were lost between the nodes.
    fn judge(&self) -> usize {
        assert!(self.carried.keys().eq(self.sent.keys()), "the same flows");
        for (flow, sent) in &self.sent {
            let carried = self.carried.get(flow).map_or(&[][..], Vec::as_slice);
            // Each one, and no other.
            assert_subsequence(flow, "carried", carried, "sent", sent);
            assert_eq!(carried.len(), sent.len(), "{flow:?}: carried, sent");
        }
        let mut lost = 0;
        for (flow, arrived) in &self.arrived {
            let carried = self.carried.get(flow).map_or(&[][..], Vec::as_slice);
            assert_subsequence(flow, "arrived", arrived, "carried", carried);
            lost += carried.len() - arrived.len();
        }
        lost
    }

    /// The TCP streams that arrived are whole, with all that belongs to one.
    fn has_streams(&self, sent: usize) {
        let flows = self.arrived.iter().filter(|(flow, _)| flow.protocol == TCP);
        let mut streams = 0;
        for (flow, segments) in flows {
            let all = || segments.iter().map(Segment::tcp);
            let has = |flag: u8| all().filter(|tcp| tcp.flags & flag != 0).count();
            assert!(has(SYN) > 0 && has(FIN) > 0 && has(PSH) > 0, "{flow:?}");
            let first = all().next().expect("a segment");
            assert!(first.flags & SYN != 0 && first.may_sack, "{first:?}");
            // RFC 7323 section 3.2: all but a reset have it.
            let without = all().find(|tcp| tcp.timestamp.is_none() && tcp.flags & RST == 0);
            assert!(without.is_none(), "{flow:?}: {without:?}");
            let times: Vec<u32> = all().filter_map(|tcp| tcp.timestamp).collect();
            let steps = times.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
            assert!(steps.into_iter().all(|step| step < 1 << 31), "{flow:?}");
            let octets = assemble(first.sequence.wrapping_add(1), segments);
            // A source asks, who listens agrees: RFC 3168 section 6.1.1.
            if first.flags & CWR != 0 {
                assert!(octets == stream(sent), "{} octets", octets.len());
                let marked = segments.iter().filter(|segment| segment.ecn() == 2).count();
                assert!(marked > sent / MTU, "{marked} segments with ECT(0)");
                streams += 1;
            }
        }
        assert_eq!(streams, 2, "one in each family");
    }

    /// Super-packets were seen where they are expected, so that all this was about them, and nowhere
    /// else.
    fn has_super_packets(&self, wire: Wire, supers: Supers) {
        for (index, protocol) in [TCP, UDP].into_iter().enumerate() {
            let [sent, arrived] = self.largest[&protocol];
            println!("protocol {protocol}: up to {sent} octets sent, {arrived} arrived");
            let seen = [sent, arrived].map(|octets| octets > MTU);
            let expected = [supers.sent[index], supers.arrived[index]];
            assert_eq!(seen, expected, "protocol {protocol}: {sent}, {arrived}");
        }
        let carried = self.largest_carried;
        println!("underlay: up to {carried} octets");
        let expected = supers.carried && wire == Wire::Plain;
        assert_eq!(carried > 14 + MTU, expected, "{carried}");
    }
}

/// The octets of a stream from the segments of one flow.
fn assemble(first: u32, segments: &[Segment]) -> Vec<u8> {
    let mut octets = Vec::new();
    for segment in segments {
        let tcp = segment.tcp();
        if tcp.flags & SYN != 0 || tcp.payload.is_empty() {
            continue;
        }
        let at = usize::try_from(tcp.sequence.wrapping_sub(first)).expect("64 bits");
        let end = at + tcp.payload.len();
        if octets.len() < end {
            octets.resize(end, 0);
        }
        octets[at..end].copy_from_slice(tcp.payload);
    }
    octets
}

/// Each of `some` is among `all`, in the same order.
fn assert_subsequence(
    flow: &Flow,
    some_are: &str,
    some: &[Segment],
    all_are: &str,
    all: &[Segment],
) {
    let mut rest = all.iter();
    for (index, segment) in some.iter().enumerate() {
        let from = all.len() - rest.len();
        if !rest.any(|one| one == segment) {
            panic!(
                "{flow:?}: packet {index} that was {some_are} is not among those {all_are} from {from} on\n\
                 {segment:x?}\n{:x?}",
                all.get(from)
            );
        }
    }
}

fn add(flows: &mut Flows, segments: Vec<Segment>) {
    for segment in segments {
        flows.entry(segment.flow()).or_default().push(segment);
    }
}

fn count(flows: &Flows) -> usize {
    flows.values().map(Vec::len).sum()
}

/// The addresses behind a node.
fn workload(node: u8) -> [IpAddr; 2] {
    let v6 = format!("fd00:10:244:{node}::1");
    [[10, 244, node, 1].into(), v6.parse().expect("an address")]
}

const VXLAN: Carriage = Carriage::Vxlan;

/// Of the underlay, octets. What is larger was not cut.
const MTU: usize = 1500;

/// Of a stream.
const STREAM_OCTETS: usize = 3_000_000;
