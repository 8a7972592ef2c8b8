//! The engine as a state machine: the octets of an input are a script of packets, changes of the
//! tables and time, played to an [`Engine`] and to a slow model of its rules.
//!
//! Packets that the script leaves as they were made must be treated exactly as the model says.
//! Packets that it damages may be refused for more reasons, but must not pass where the model
//! lets none through. Always: in = out + drops, each drop under its own reason; what is delivered
//! or transmitted is octet for octet the packet that entered; an ICMP error is well formed, goes to
//! the packet's source, and is no more frequent than its rate; an explanation is what happens.

mod model;
mod script;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use etherparse::{IpSlice, SlicedPacket, TransportSlice};
use warren_core::batch::FrameRef;
use warren_core::units::Time;
use warren_core::verdict::Counters;
use warren_core::{Batch, Direction, DropReason, Engine, EngineConfig, Link, Verdict};

use model::{Expected, Inner, Model, Reasons};
use script::{Arrival, Script, Step};
use world::World;

/// Plays the script in `bytes`.
pub fn engine(bytes: &[u8]) {
    let mut world = World::new();
    let config = EngineConfig {
        seed: 7,
        decrement_ttl: true,
        // It has twins of its own, in the library.
        clamp_mss: false,
        icmp_from_destination: false,
        icmp_per_second: ICMP_PER_SECOND,
        icmp_burst: ICMP_BURST,
        flows: 8,
        offer_after: 2,
    };
    let mut game = Game {
        engine: Engine::new(config, world.publish()),
        model: world.model().clone(),
        now: Time::ZERO,
        drops: [BTreeMap::new(), BTreeMap::new()],
        forwarded: [0; 2],
        replies: 0,
        fragments: 0,
        flows: BTreeMap::new(),
    };
    let mut batch = Batch::new(MAX_FRAMES, MAX_OCTETS);
    for step in Script::new(bytes).take(MAX_STEPS) {
        match step {
            Step::Insert { prefix, next_hop } => world.insert(prefix, next_hop),
            Step::Remove { prefix } => world.remove(prefix),
            Step::Publish => {
                game.engine.set_tables(world.publish());
                game.model = world.model().clone();
                game.flows.clear();
            }
            Step::Wait { milliseconds } => {
                let wait = Duration::from_millis(milliseconds.into());
                game.now = game.now.after(wait);
            }
            Step::Play {
                direction,
                arrivals,
            } => game.play(direction, &arrivals, &mut batch),
        }
    }
}

/// The engine, the model, and what happened so far.
struct Game {
    engine: Engine,
    model: Model,
    now: Time,
    drops: [BTreeMap<DropReason, u64>; 2],
    forwarded: [u64; 2],
    replies: u64,
    fragments: u64,
    /// The link that each flow took since the tables were published.
    flows: BTreeMap<warren_core::packet::FlowKey, Link>,
}

impl Game {
    fn play(&mut self, direction: Direction, arrivals: &[Arrival], batch: &mut Batch) {
        batch.clear();
        let mut played = Vec::new();
        for arrival in arrivals {
            if batch.push(&arrival.bytes, arrival.link).is_some() {
                played.push(arrival);
            }
        }
        let explained: Vec<Verdict> = played
            .iter()
            .map(|arrival| {
                let explanation = self
                    .engine
                    .explain(direction, &arrival.bytes, &arrival.link);
                explanation.verdict
            })
            .collect();
        match direction {
            Direction::Encap => self.engine.encap(batch, self.now),
            Direction::Decap => self.engine.decap(batch, self.now),
        }
        // Behind the frames that were played stand the fragments that some of them became.
        let mut fragments = batch.frames().skip(played.len());
        for ((arrival, frame), explained) in played.iter().zip(batch.frames()).zip(explained) {
            let same = explained == frame.verdict
                || matches!((explained, frame.verdict), (Verdict::Reply(a), Verdict::Drop(b)) if a == b)
                // The batch had no room for the fragments.
                || matches!(
                    (explained, frame.verdict),
                    (
                        Verdict::Transmit,
                        Verdict::Reply(DropReason::TooBig) | Verdict::Drop(DropReason::TooBig)
                    )
                );
            assert!(same, "explained {explained:?}, done {:?}", frame.verdict);
            self.count(direction, arrival, &frame);
            match direction {
                Direction::Encap => self.judge_encap(arrival, &frame, &mut fragments),
                Direction::Decap => self.judge_decap(arrival, &frame),
            }
        }
        assert_eq!(fragments.count(), 0, "fragments of nothing");
        self.check_counters(direction);
        // A frame that has its verdict is never looked at again: one decapsulation per packet.
        let before = *self.engine.counters(Direction::Decap);
        self.engine.decap(batch, self.now);
        assert_eq!(before, *self.engine.counters(Direction::Decap));
    }

    fn count(&mut self, direction: Direction, arrival: &Arrival, frame: &FrameRef<'_>) {
        let way = direction as usize;
        match frame.verdict {
            Verdict::Undecided => panic!("a frame without a verdict"),
            Verdict::Transmit | Verdict::Direct => {
                assert_eq!(direction, Direction::Encap);
                self.forwarded[way] += 1;
            }
            Verdict::Deliver | Verdict::Probe => {
                assert_eq!(direction, Direction::Decap);
                self.forwarded[way] += 1;
            }
            Verdict::Reply(reason) => {
                assert_eq!(direction, Direction::Encap);
                self.replies += 1;
                let earned = self.now.as_nanos() / 1_000_000_000 * u64::from(ICMP_PER_SECOND);
                let limit = u64::from(ICMP_BURST + ICMP_PER_SECOND) + earned;
                assert!(self.replies <= limit, "{} errors", self.replies);
                judge_reply(&arrival.bytes, reason, frame.bytes);
                *self.drops[way].entry(reason).or_default() += 1;
            }
            Verdict::Drop(reason) => *self.drops[way].entry(reason).or_default() += 1,
        }
    }

    fn check_counters(&self, direction: Direction) {
        let counters: &Counters = self.engine.counters(direction);
        let way = direction as usize;
        assert_eq!(
            counters.received.packets,
            counters.forwarded.packets + counters.dropped()
        );
        assert_eq!(counters.forwarded.packets, self.forwarded[way]);
        assert!(
            counters.drops_by_reason().eq(self.drops[way]
                .iter()
                .map(|(reason, count)| (*reason, *count)))
        );
        if direction == Direction::Encap {
            assert_eq!(counters.replies, self.replies);
            assert_eq!(counters.fragments, self.fragments);
        }
    }

    fn judge_encap<'b>(
        &mut self,
        arrival: &Arrival,
        frame: &FrameRef<'_>,
        fragments: &mut impl Iterator<Item = FrameRef<'b>>,
    ) {
        let Some(inner) = Inner::read(&arrival.bytes) else {
            assert_eq!(frame.verdict, Verdict::Drop(DropReason::MalformedPacket));
            return;
        };
        let mut packet = arrival.bytes[..inner.octets].to_vec();
        match (self.model.encap(&inner), frame.verdict) {
            (Expected::Direct(next, reasons), Verdict::Direct) => {
                assert_eq!(reasons, Reasons::new());
                assert_eq!(frame.link.remote, next);
                age(&mut packet);
                assert_eq!(frame.bytes, packet);
            }
            (Expected::Tunnels(ways), Verdict::Transmit) if is_cut(&packet, frame, &ways) => {
                let (tunnel, reasons) = ways
                    .iter()
                    .find(|(tunnel, _)| tunnel.remote == frame.link.remote)
                    .expect("the link of one of the tunnels");
                assert_eq!(*reasons, Reasons::from([DropReason::TooBig]));
                age(&mut packet);
                let shim = usize::from(tunnel.encapsulation.shim_octets());
                let mtu = usize::from(tunnel.mtu.octets());
                let header = usize::from(packet[0] & 15) * 4;
                let whole = fragment_word(&packet);
                let (mut at, mut part) = (header, *frame);
                // RFC 791 section 3.2, from the front.
                loop {
                    assert_eq!((part.link, part.verdict), (frame.link, Verdict::Transmit));
                    let bytes = &part.bytes[shim..];
                    let data = &bytes[header..];
                    assert!(bytes.len() <= mtu);
                    assert_eq!(*data, packet[at..at + data.len()]);
                    let offset = usize::from(whole & 0x1fff) + (at - header) / 8;
                    at += data.len();
                    let is_last = at == packet.len();
                    let more = !is_last || whole & 0x2000 != 0;
                    let word = fragment_word(bytes);
                    assert_eq!(usize::from(word & 0x1fff), offset);
                    assert_eq!(word & 0x2000 != 0, more);
                    if is_last {
                        break;
                    }
                    part = fragments.next().expect("the next fragment");
                    self.fragments += 1;
                }
                self.judge_flow(arrival, &inner, frame.link);
            }
            (Expected::Tunnels(ways), Verdict::Transmit) => {
                let way = ways.iter().find(|(tunnel, _)| {
                    tunnel.remote == frame.link.remote
                        && frame.bytes.len()
                            == packet.len() + usize::from(tunnel.encapsulation.shim_octets())
                });
                let (tunnel, reasons) = way.expect("the link of one of the tunnels");
                assert_eq!(*reasons, Reasons::new());
                assert_eq!(frame.link.local, tunnel.local);
                assert_eq!(frame.link.hop_limit, tunnel.hop_limit);
                assert_eq!(
                    frame.link.traffic_class,
                    model::outer_class(inner.traffic_class, tunnel)
                );
                let shim = model::shim(
                    tunnel.encapsulation,
                    self.model.local.vtep_mac,
                    inner.source.is_ipv6(),
                );
                age(&mut packet);
                assert_eq!(frame.bytes, [shim, packet].concat());
                self.judge_flow(arrival, &inner, frame.link);
            }
            (expected, Verdict::Reply(reason) | Verdict::Drop(reason)) => {
                let reasons = match expected {
                    Expected::Dropped(reasons) | Expected::Direct(_, reasons) => reasons,
                    Expected::Tunnels(ways) => {
                        ways.into_iter().flat_map(|(_, reasons)| reasons).collect()
                    }
                };
                assert!(
                    arrival.damaged || reasons.contains(&reason),
                    "dropped for {reason:?}, not for {reasons:?}"
                );
            }
            (expected, verdict) => panic!("{verdict:?} where the model says {expected:?}"),
        }
    }

    /// A flow keeps to its link while the tables stay, whatever the size and TTL of its packets.
    fn judge_flow(&mut self, arrival: &Arrival, inner: &Inner, link: &Link) {
        if let warren_core::batch::Transport::Udp { local_port, .. } = link.transport {
            assert!(local_port >= 49152, "source port {local_port}");
        }
        let Ok(packet) = warren_core::packet::Packet::parse(&arrival.bytes) else {
            panic!("a packet that can not be read was sent");
        };
        assert_eq!(packet.flow.source, inner.source);
        let known = self.flows.entry(packet.flow).or_insert(*link);
        assert_eq!(
            (known.remote, known.transport),
            (link.remote, link.transport)
        );
    }

    fn judge_decap(&self, arrival: &Arrival, frame: &FrameRef<'_>) {
        let (reasons, packet) = self.model.decap(&arrival.link, &arrival.bytes);
        match frame.verdict {
            Verdict::Deliver | Verdict::Probe => {
                assert_eq!(reasons, Reasons::new(), "delivered in spite of them");
                let packet = packet.expect("a packet without reasons against it");
                let inner = Inner::read(packet).expect("it was read before");
                let class = self
                    .model
                    .delivered_class(&arrival.link, inner.traffic_class)
                    .expect("a peer, and no forbidden combination");
                let mut packet = packet.to_vec();
                set_class(&mut packet, inner.traffic_class, class);
                assert_eq!(frame.bytes, packet);
            }
            Verdict::Drop(reason) => assert!(
                arrival.damaged || reasons.contains(&reason),
                "dropped for {reason:?}, not for {reasons:?}"
            ),
            Verdict::Undecided | Verdict::Transmit | Verdict::Direct | Verdict::Reply(_) => {
                panic!("{:?} is no verdict for decapsulation", frame.verdict)
            }
        }
    }
}

/// Whether the frame is the first fragment of a packet that may be cut and is too big.
fn is_cut(packet: &[u8], frame: &FrameRef<'_>, ways: &[(warren_core::Tunnel, Reasons)]) -> bool {
    packet[0] >> 4 == 4
        && packet[6] & 0x40 == 0
        && ways.iter().any(|(tunnel, reasons)| {
            tunnel.remote == frame.link.remote && reasons.contains(&DropReason::TooBig)
        })
        && frame.bytes.len() < packet.len()
}

/// Flags and offset of an IPv4 header.
fn fragment_word(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[6], packet[7]])
}

/// An ICMP error: readable by etherparse with right checksums, short enough, to the source of the
/// packet that it quotes, and not about an ICMP error.
fn judge_reply(packet: &[u8], reason: DropReason, reply: &[u8]) {
    let about = Inner::read(packet).expect("no error about what can not be read");
    let answer = SlicedPacket::from_ip(reply).expect("an error that etherparse reads");
    let header = Inner::read(reply).expect("it was read");
    assert_eq!(header.octets, reply.len());
    assert_eq!(header.destination, about.source);
    assert_ne!(header.source, header.destination);
    let quoted = match (about.source, &answer.transport) {
        (IpAddr::V4(_), Some(TransportSlice::Icmpv4(icmp))) => {
            assert!(reply.len() <= 576);
            let expected = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), expected);
            let says = (icmp.type_u8(), icmp.code_u8());
            assert_eq!(says == (11, 0), reason == DropReason::TtlExpired);
            assert_eq!(says == (3, 4), reason == DropReason::TooBig);
            assert!(matches!(says.0, 3 | 11));
            let IpSlice::Ipv4(ip) = IpSlice::from_slice(reply).expect("it was read") else {
                panic!("IPv4 answers IPv4");
            };
            let checksum = ip.header().to_header().calc_header_checksum();
            assert_eq!(ip.header().header_checksum(), checksum);
            assert!(packet[9] != 1 || ![3, 4, 5, 11, 12].contains(&packet[header_octets(packet)]));
            icmp.payload().to_vec()
        }
        (IpAddr::V6(from), Some(TransportSlice::Icmpv6(icmp))) => {
            assert!(reply.len() <= 1280);
            let IpAddr::V6(by) = header.source else {
                panic!("IPv6 answers IPv6");
            };
            let expected = icmp
                .icmp_type()
                .calc_checksum(by.octets(), from.octets(), icmp.payload())
                .expect("short enough");
            assert_eq!(icmp.checksum(), expected);
            let says = (icmp.type_u8(), icmp.code_u8());
            assert_eq!(says == (3, 0), reason == DropReason::TtlExpired);
            assert_eq!(says == (2, 0), reason == DropReason::TooBig);
            assert!(matches!(says.0, 1..=3));
            icmp.payload().to_vec()
        }
        (_, transport) => panic!("not an ICMP error: {transport:?}"),
    };
    assert!(packet[..about.octets].starts_with(&quoted));
    assert!(!quoted.is_empty());
}

fn header_octets(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0x0f) * 4
}

/// One hop: the TTL sinks, the header checksum is mended (RFC 1624).
fn age(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let protocol = packet[9];
        let old = u16::from_be_bytes([packet[8], protocol]);
        packet[8] -= 1;
        mend(packet, old, u16::from_be_bytes([packet[8], protocol]));
    } else {
        packet[7] -= 1;
    }
}

fn set_class(packet: &mut [u8], old: u8, class: u8) {
    if packet[0] >> 4 == 4 {
        let first = packet[0];
        packet[1] = class;
        if old != class {
            mend(
                packet,
                u16::from_be_bytes([first, old]),
                u16::from_be_bytes([first, class]),
            );
        }
    } else {
        packet[0] = packet[0] & 0xf0 | class >> 4;
        packet[1] = packet[1] & 0x0f | class << 4;
    }
}

fn mend(packet: &mut [u8], old: u16, new: u16) {
    let field = u16::from_be_bytes([packet[10], packet[11]]);
    let mut sum = u32::from(!field) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let field = !u16::try_from(sum).expect("folded");
    packet[10..12].copy_from_slice(&field.to_be_bytes());
}

const ICMP_PER_SECOND: u32 = 10;
const ICMP_BURST: u32 = 5;
const MAX_STEPS: usize = 64;
/// More than the engine looks up at once.
const MAX_FRAMES: usize = 80;
const MAX_OCTETS: usize = 2048;
