//! A million random and mutated frames through two engines: no panic, every frame accounted for,
//! nothing allocated, and nothing delivered that its sender does not own.
//!
//! `WARREN_MUTATE_FRAMES` changes the number of frames, `WARREN_MUTATE_SEED` the seed.
#![cfg(test)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{FAMILIES, Random, Setup, Udp, underlay};
use warren_core::batch::{Batch, Link, Transport};
use warren_core::encap::outer;
use warren_core::gso::{Offload, SegmentKind};
use warren_core::units::{Family, Time};
use warren_core::{Direction, Engine, Verdict};

const FRAMES: u64 = 1_000_000;
const BATCH: usize = 100;
const LARGEST: usize = 1600;

#[test]
fn a_million_mutated_frames_are_all_accounted_for() {
    assert_eq!(allocations_in(|| drop(std::hint::black_box(vec![0; 9]))), 1);
    let frames = number("WARREN_MUTATE_FRAMES", FRAMES);
    let mut random = Random(number("WARREN_MUTATE_SEED", 0x5eed));
    let setups: Vec<Setup> = Setup::all().collect();
    let mut engines = engines(&setups, &mut random);
    let seeds = Seeds::new(&setups);
    let mut sending = Batch::new(BATCH, LARGEST);
    let mut receiving = Batch::new(BATCH, LARGEST);
    let mut totals = Totals::default();
    let mut round = 0_u64;
    while totals.entered < frames {
        let engine_index = random.below(setups.len());
        let [one, two] = &mut engines[engine_index];
        let now = Time::from_nanos(round * 1_000_000);
        round += 1;

        // Node 1: what a device could give.
        sending.clear();
        while !sending.is_full() {
            seeds.push_inner(&mut sending, &mut random);
        }
        totals.entered += sending.len() as u64;
        // Behind these, fragments may follow.
        totals.allocated += allocations_in(|| one.encap(&mut sending, now));
        check(one, Direction::Encap, &sending);

        // Node 2: what node 1 sent, at times damaged, among what strangers send.
        receiving.clear();
        for frame in sending.frames() {
            if frame.verdict == Verdict::Transmit && random.once_in(2) {
                let mut octets = frame.bytes.to_vec();
                let mut link = frame.link.reversed();
                if !random.once_in(3) {
                    mutate(&mut octets, &mut random);
                }
                seeds.mutate_link(&mut link, &mut random);
                octets.truncate(LARGEST);
                receiving.push(&octets, link).unwrap();
            }
        }
        while !receiving.is_full() {
            seeds.push_outer(&mut receiving, &mut random);
        }
        totals.allocated += allocations_in(|| two.decap(&mut receiving, now));
        totals.entered += receiving.len() as u64;
        totals.delivered += check(two, Direction::Decap, &receiving);
    }

    // Whatever became of each frame, the books of all engines agree.
    let mut reasons = std::collections::BTreeSet::new();
    let mut received = 0;
    for engine in engines.iter().flatten() {
        for direction in [Direction::Encap, Direction::Decap] {
            let counters = engine.counters(direction);
            received += counters.received.packets;
            reasons.extend(counters.drops_by_reason().map(|(reason, _)| reason));
        }
    }
    assert_eq!(received, totals.entered, "in = out + drops, exactly");
    assert_eq!(totals.allocated, 0, "allocations in the packet path");
    assert!(totals.delivered > frames / 100, "{totals:?}");
    assert!(reasons.len() >= 24, "only {reasons:?} were met");
    eprintln!("{totals:?}, {} reasons", reasons.len());
}

#[test]
fn outer_headers_are_read_as_etherparse_reads_them() {
    let mut random = Random(number("WARREN_MUTATE_SEED", 0x5eed));
    let mut wires = Vec::new();
    for setup in Setup::all() {
        let mut one = setup.engine(1, 2);
        for family in FAMILIES {
            let packet = Udp::between(family, 1, 2).packet(b"some payload");
            wires.push(common::send(&mut one, &packet));
        }
    }
    let mut batch = Batch::new(1, LARGEST);
    let mut read = 0;
    for _ in 0..50_000 {
        let mut wire = wires[random.below(wires.len())].clone();
        mutate(&mut wire, &mut random);
        wire.truncate(LARGEST);
        batch.clear();
        let mut frame = batch.push(&wire, Link::LOCAL).unwrap();
        let result = outer::pull(&mut frame);
        if let Err(error) = result {
            assert_eq!(frame.bytes(), wire, "{error}");
            continue;
        }
        read += 1;
        let link = *frame.link();
        let sliced = etherparse::SlicedPacket::from_ip(&wire).unwrap();
        let (source, destination) = match sliced.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            etherparse::NetSlice::Ipv6(ip) => (
                std::net::IpAddr::from(ip.header().source_addr()),
                std::net::IpAddr::from(ip.header().destination_addr()),
            ),
            etherparse::NetSlice::Arp(_) => panic!("not ARP"),
        };
        assert_eq!((link.remote, link.local), (source, destination));
        if let Transport::Udp {
            local_port,
            remote_port,
        } = link.transport
        {
            let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
                panic!("no UDP for etherparse");
            };
            assert_eq!(
                (remote_port, local_port),
                (udp.source_port(), udp.destination_port())
            );
            assert_eq!(frame.bytes(), udp.payload());
        }
    }
    assert!(read > 5_000, "{read}");
}

#[derive(Debug, Default)]
struct Totals {
    entered: u64,
    delivered: u64,
    allocated: u64,
}

/// Checks the books, and that each frame has a verdict that its direction can give; gives the
/// number of frames delivered.
fn check(engine: &Engine, direction: Direction, batch: &Batch) -> u64 {
    let counters = engine.counters(direction);
    assert_eq!(
        counters.received.packets,
        counters.forwarded.packets + counters.dropped()
    );
    let mut delivered = 0;
    for frame in batch.frames() {
        match (direction, frame.verdict) {
            (_, Verdict::Drop(_))
            | (Direction::Encap, Verdict::Transmit | Verdict::Direct | Verdict::Reply(_)) => {}
            (Direction::Decap, Verdict::Deliver | Verdict::Probe) => {
                check_delivered(frame.bytes, frame.link);
                delivered += 1;
            }
            (_, verdict) => panic!("{direction:?} gave {verdict:?}"),
        }
    }
    delivered
}

/// To node 2 from an address of the peer that sent it, by the octets alone.
fn check_delivered(packet: &[u8], link: &Link) {
    let peer = match link.remote {
        std::net::IpAddr::V4(remote) => remote.octets()[3],
        std::net::IpAddr::V6(remote) => remote.octets()[15],
    };
    assert!(peer == 1 || peer == 3);
    match packet[0] >> 4 {
        4 => {
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            assert_eq!(total, packet.len(), "padding is cut off");
            assert_eq!(packet[12..15], [10, 42, peer]);
            assert_eq!(packet[16..19], [10, 42, 2]);
        }
        6 => {
            assert_eq!(packet[8..16], [0xfd, 0x42, 0, 0, 0, 0, 0, peer]);
            assert_eq!(packet[24..32], [0xfd, 0x42, 0, 0, 0, 0, 0, 2]);
        }
        version => panic!("version {version} delivered"),
    }
}

fn engines(setups: &[Setup], random: &mut Random) -> Vec<[Engine; 2]> {
    setups
        .iter()
        .map(|setup| {
            let mut writer = setup.writer(1, 3);
            for next_hop in [
                warren_core::NextHop::Prohibit,
                warren_core::NextHop::Blackhole,
                warren_core::NextHop::Direct { gateway: None },
            ] {
                let id = writer.next_hop(next_hop).unwrap();
                for _ in 0..3 {
                    let prefix = format!("10.42.{}.0/26", 8 + random.below(8));
                    writer.insert(prefix.parse().unwrap(), id).unwrap();
                }
            }
            let one = Engine::new(Default::default(), writer.publish());
            [one, setup.engine(2, 3)]
        })
        .collect()
}

/// Good packets to start from.
struct Seeds {
    inner: Vec<Vec<u8>>,
    outer: Vec<(Vec<u8>, Link)>,
}

impl Seeds {
    fn new(setups: &[Setup]) -> Self {
        let mut inner = Vec::new();
        for family in FAMILIES {
            for to in [1, 2, 3, 9, 12] {
                for octets in [0, 1, 8, 100, 1300, 1500] {
                    inner.push(Udp::between(family, 1, to).packet(&vec![0x42; octets]));
                }
            }
        }
        inner.extend(special_packets());
        let mut outer = Vec::new();
        for setup in setups {
            let mut one = setup.engine(1, 3);
            for packet in &inner {
                let (verdict, link, octets) = common::encap(&mut one, packet);
                if verdict == Verdict::Transmit {
                    outer.push((octets, link.reversed()));
                }
            }
        }
        assert!(outer.len() > 100);
        Self { inner, outer }
    }

    fn push_inner(&self, batch: &mut Batch, random: &mut Random) {
        let mut octets = self.inner[random.below(self.inner.len())].clone();
        match random.below(8) {
            0 | 1 => {}
            2 => octets = noise(random),
            _ => mutate(&mut octets, random),
        }
        octets.truncate(LARGEST);
        let mut frame = batch.push(&octets, Link::LOCAL).unwrap();
        if random.once_in(20) {
            frame.set_offload(Offload {
                partial_checksum: None,
                segments: Some((
                    [SegmentKind::Tcp, SegmentKind::Udp][random.below(2)],
                    u16::try_from(random.below(2000)).unwrap(),
                )),
            });
        }
    }

    fn push_outer(&self, batch: &mut Batch, random: &mut Random) {
        let (octets, link) = &self.outer[random.below(self.outer.len())];
        let (mut octets, mut link) = (octets.clone(), *link);
        match random.below(8) {
            0 => {}
            1 => octets = noise(random),
            2 => {
                // A tunnel in a tunnel.
                let (more, _) = &self.outer[random.below(self.outer.len())];
                octets.extend_from_slice(more);
            }
            _ => mutate(&mut octets, random),
        }
        self.mutate_link(&mut link, random);
        octets.truncate(LARGEST);
        batch.push(&octets, link).unwrap();
    }

    fn mutate_link(&self, link: &mut Link, random: &mut Random) {
        if random.once_in(2) {
            link.traffic_class = random.octet();
        }
        if random.once_in(10) {
            let node = u8::try_from(random.below(6)).unwrap();
            link.remote = underlay(FAMILIES[random.below(2)], node);
        }
        if random.once_in(10) {
            link.transport = self.outer[random.below(self.outer.len())].1.transport;
        }
        if random.once_in(100) {
            link.transport = match random.below(2) {
                0 => Transport::Udp {
                    local_port: random.word(),
                    remote_port: random.word(),
                },
                _ => Transport::Ip {
                    protocol: random.octet(),
                },
            };
        }
    }
}

/// Fragments, extension headers, options, ICMP, TCP.
fn special_packets() -> Vec<Vec<u8>> {
    use etherparse::PacketBuilder;
    let mut packets = Vec::new();
    let (source, destination) = ([10, 42, 1, 7], [10, 42, 2, 9]);
    let mut v6 = [[0; 16]; 2];
    for (node, address) in (1_u8..).zip(&mut v6) {
        if let std::net::IpAddr::V6(host) = common::host(Family::V6, node, 7) {
            *address = host.octets();
        }
    }
    let [source_v6, destination_v6] = v6;
    let mut build = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = Vec::new();
        write(&mut packet);
        packets.push(packet);
    };
    build(&|packet| {
        PacketBuilder::ipv4(source, destination, 64)
            .tcp(1, 2, 3, 4)
            .write(packet, &[1; 333])
            .unwrap();
    });
    build(&|packet| {
        PacketBuilder::ipv4(source, destination, 1)
            .icmpv4_echo_request(1, 2)
            .write(packet, &[1; 56])
            .unwrap();
    });
    build(&|packet| {
        PacketBuilder::ipv6(source_v6, destination_v6, 64)
            .icmpv6_echo_request(1, 2)
            .write(packet, &[1; 56])
            .unwrap();
    });
    let udp = Udp::between(Family::V4, 1, 2).packet(&[9; 64]);
    for (more, offset) in [(true, 0), (true, 3), (false, 5)] {
        packets.push(common::rewrite(
            &udp,
            |v4| {
                v4.dont_fragment = false;
                v4.more_fragments = more;
                v4.fragment_offset = offset.try_into().unwrap();
            },
            |_| (),
        ));
    }
    packets.push(common::rewrite(
        &udp,
        |v4| {
            v4.options = [1, 131, 7, 4, 10, 0, 0, 1].into();
            v4.total_len += 8;
        },
        |_| (),
    ));
    let udp = Udp::between(Family::V6, 1, 2).packet(&[9; 64]);
    for (kind, header) in [
        (0, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        (43, vec![17, 0, 0, 1, 0, 0, 0, 0]),
        (44, vec![17, 0, 0, 1, 0, 0, 0, 7]),
        (44, vec![17, 0, 0, 0x18, 0, 0, 0, 7]),
        (60, vec![43, 0, 1, 4, 0, 0, 0, 0, 17, 0, 4, 0, 0, 0, 0, 0]),
        (
            51,
            vec![
                17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
    ] {
        let mut packet = common::rewrite(
            &udp,
            |_| (),
            |v6| {
                v6.next_header = kind.into();
                v6.payload_length += u16::try_from(header.len()).unwrap();
            },
        );
        packet.splice(40..40, header);
        packets.push(packet);
    }
    // To the tunnel's own port, and IP in IP.
    packets.push(
        Udp {
            ports: (50000, common::VXLAN_PORT),
            ..Udp::between(Family::V4, 1, 2)
        }
        .packet(&[8, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
    );
    packets.push(common::rewrite(
        &Udp::between(Family::V4, 1, 2).packet(&[0x45; 40]),
        |v4| v4.protocol = 4.into(),
        |_| (),
    ));
    packets
}

/// One to four changes of the kinds that break parsers.
fn mutate(octets: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        // Headers are where it hurts.
        let reach = if random.once_in(4) { octets.len() } else { 80 };
        let at = random.below(octets.len().min(reach));
        match random.below(8) {
            0 => octets.truncate(at),
            1 => octets.insert(at, random.octet()),
            2 if !octets.is_empty() => {
                octets.remove(at);
            }
            3 if at + 2 <= octets.len() => {
                let edge = [0, 1, 20, 40, 0x7fff, 0x8000, 0xfff8, 0xffff][random.below(8)];
                octets[at..at + 2].copy_from_slice(&u16::to_be_bytes(edge));
            }
            4 if at < octets.len() => {
                octets[at] = [0, 1, 4, 6, 41, 43, 44, 0x45, 0x60, 0x7f, 0xff][random.below(11)];
            }
            5 => octets.extend_from_slice(&[0xee; 20][..random.below(20)]),
            _ if at < octets.len() => octets[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    // A wrong checksum would hide all other changes: mend it most of the time.
    for start in [0, 4, 22] {
        if !random.once_in(4) && octets.get(start).is_some_and(|octet| octet >> 4 == 4) {
            mend(&mut octets[start..]);
        }
    }
}

fn mend(packet: &mut [u8]) {
    let octets = usize::from(packet[0] & 0x0f) * 4;
    if let Some(header) = packet.get_mut(..octets).filter(|_| octets >= 20) {
        header[10..12].fill(0);
        let sum = warren_core::wire::checksum::of(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn noise(random: &mut Random) -> Vec<u8> {
    let mut octets: Vec<u8> = (0..random.below(200)).map(|_| random.octet()).collect();
    if let Some(first) = octets.first_mut() {
        *first = [*first, 0x45, 0x4f, 0x60, 0x08][random.below(5)];
    }
    octets
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Allocations of this thread while `work` runs.
fn allocations_in(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local
// integer without a destructor, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout, by the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as for `alloc` and `dealloc`.
        unsafe { System.realloc(pointer, layout, octets) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
