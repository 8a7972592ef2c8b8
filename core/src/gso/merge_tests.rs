//! Merging against splitting: what is merged and split again is what it was.

use crate::gso::ChecksumState;
use alloc::vec;
use alloc::vec::Vec;

use etherparse::{PacketBuilder, TcpHeader as BuiltTcp};
use proptest::prelude::*;

use super::*;
use crate::gso::split::{Splitter, tests::split_all};
use crate::gso::{pending_checksum, transport_checksum};

#[derive(Clone, Debug)]
struct Segment {
    sequence: u32,
    payload: Vec<u8>,
    flags: u8,
    identification: u16,
    dont_fragment: bool,
    window: u16,
    acknowledgement: u32,
    options: Vec<u8>,
    tos: u8,
    port: u16,
    v6: bool,
}

impl Segment {
    fn bytes(&self) -> Vec<u8> {
        let mut tcp = BuiltTcp::new(self.port, 80, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgement;
        let flags = self.flags;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (
            flags & 1 != 0,
            flags & 2 != 0,
            flags & 4 != 0,
            flags & 8 != 0,
        );
        (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (
            flags & 16 != 0,
            flags & 32 != 0,
            flags & 64 != 0,
            flags & 128 != 0,
        );
        tcp.set_options_raw(&self.options).unwrap();
        let mut bytes = Vec::new();
        if self.v6 {
            let mut ip = etherparse::Ipv6Header {
                hop_limit: 9,
                source: [1; 16],
                destination: [2; 16],
                ..Default::default()
            };
            ip.traffic_class = self.tos;
            PacketBuilder::ip(etherparse::IpHeaders::Ipv6(ip, Default::default()))
                .tcp_header(tcp)
                .write(&mut bytes, &self.payload)
                .unwrap();
        } else {
            let mut ip = etherparse::Ipv4Header::new(
                0,
                9,
                etherparse::IpNumber::TCP,
                [10, 0, 0, 1],
                [10, 0, 0, 2],
            )
            .unwrap();
            ip.identification = self.identification;
            ip.dont_fragment = self.dont_fragment;
            ip.dscp = etherparse::IpDscp::try_new(self.tos >> 2).unwrap();
            ip.ecn = etherparse::IpEcn::try_new(self.tos & 3).unwrap();
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
                .tcp_header(tcp)
                .write(&mut bytes, &self.payload)
                .unwrap();
        }
        bytes
    }
}

fn plain(sequence: u32, octets: usize, identification: u16) -> Segment {
    Segment {
        sequence,
        payload: (0..octets).map(|n| (n * 13).to_le_bytes()[0]).collect(),
        flags: 16,
        identification,
        dont_fragment: false,
        window: 500,
        acknowledgement: 1,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        tos: 0,
        port: 4000,
        v6: false,
    }
}

/// Merges a row of packets; gives back every run with its super-packet.
fn merge_all(packets: &[Vec<u8>]) -> Vec<(usize, Vec<u8>, Offload)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut finished: Vec<Option<MergeRun>> = Vec::new();
    let mut merge = Merge::new();
    for (index, packet) in packets.iter().enumerate() {
        match merge.offer(packet) {
            Offer::Joined => runs.last_mut().unwrap().1 += 1,
            Offer::Began(done) => {
                finished.extend(done.map(Some));
                runs.push((index, 1));
            }
            Offer::Unmergeable(done) => {
                finished.extend(done.map(Some));
                runs.push((index, 1));
                finished.push(None);
            }
        }
    }
    finished.extend(merge.finish().map(Some));
    assert_eq!(runs.len(), finished.len());
    runs.into_iter()
        .zip(finished)
        .map(|((start, count), run)| {
            let Some(run) = run else {
                return (1, packets[start].clone(), Offload::NONE);
            };
            assert_eq!(run.count, count);
            let mut first = packets[start].clone();
            let offload = run.write_header(&mut first).unwrap();
            for next in &packets[start + 1..start + count] {
                first.extend_from_slice(&next[run.header_octets..]);
            }
            assert_eq!(first.len(), run.total_octets);
            (count, first, offload)
        })
        .collect()
}

/// What merging must keep: the super-packets, split again, are the packets.
fn assert_round_trip(packets: &[Vec<u8>]) -> Vec<usize> {
    let runs = merge_all(packets);
    let mut split = Vec::new();
    for (count, packet, offload) in &runs {
        match offload.segments {
            Some((kind, size)) => {
                let mut complete = packet.clone();
                assert!(
                    offload.partial_checksum.unwrap().complete(&mut complete),
                    "checksum in range"
                );
                let segments = split_all(&complete, kind, size);
                assert_eq!(segments.len(), *count);
                split.extend(segments);
            }
            None => split.push(packet.clone()),
        }
    }
    assert_eq!(split, packets);
    runs.into_iter().map(|(count, ..)| count).collect()
}

#[test]
fn a_row_of_full_segments_and_a_short_last_one_is_one_run() {
    let mut segments: Vec<Segment> = (0..5)
        .map(|n| plain(n * 100, 100, n.to_le_bytes()[0].into()))
        .collect();
    segments[4].payload.truncate(40);
    segments[4].flags |= 8;
    let packets: Vec<_> = segments.iter().map(Segment::bytes).collect();
    assert_eq!(assert_round_trip(&packets), [5]);
}

#[test]
fn ipv6_and_fixed_identification_merge_too() {
    let v6: Vec<_> = (0..3)
        .map(|n| {
            Segment {
                v6: true,
                ..plain(n * 100, 100, 0)
            }
            .bytes()
        })
        .collect();
    assert_eq!(assert_round_trip(&v6), [3]);
    let fixed: Vec<_> = (0..3)
        .map(|n| {
            Segment {
                dont_fragment: true,
                ..plain(n * 100, 100, 9)
            }
            .bytes()
        })
        .collect();
    assert_eq!(merge_all(&fixed).len(), 1);
    let without_df: Vec<_> = (0..3).map(|n| plain(n * 100, 100, 9).bytes()).collect();
    assert_eq!(merge_all(&without_df).len(), 3);
}

#[test]
fn each_difference_ends_a_run() {
    let first = plain(0, 100, 1);
    let second = plain(100, 100, 2);
    #[allow(clippy::type_complexity, reason = "a table of named changes")]
    let changes: [(&str, fn(&mut Segment)); 12] = [
        ("sequence", |s| s.sequence += 1),
        ("acknowledgement", |s| s.acknowledgement += 1),
        ("window", |s| s.window += 1),
        ("timestamp", |s| s.options[7] += 1),
        ("fewer options", |s| s.options.clear()),
        ("traffic class", |s| s.tos = 3),
        ("port", |s| s.port += 1),
        ("identification", |s| s.identification += 1),
        ("DF", |s| s.dont_fragment = true),
        ("ECE", |s| s.flags |= 64),
        ("longer", |s| s.payload.push(0)),
        ("no payload", |s| s.payload.clear()),
    ];
    for (what, change) in changes {
        let mut changed = second.clone();
        change(&mut changed);
        assert_eq!(
            assert_round_trip(&[first.bytes(), changed.bytes()]),
            [1, 1],
            "{what}"
        );
    }
    for flag in [2, 4, 32, 128] {
        let special = Segment {
            flags: 16 | flag,
            ..second.clone()
        };
        assert_eq!(
            assert_round_trip(&[first.bytes(), special.bytes(), plain(200, 100, 3).bytes()]),
            [1, 1, 1]
        );
    }
    let pushed = Segment {
        flags: 16 | 8,
        ..first
    };
    assert_eq!(
        assert_round_trip(&[pushed.bytes(), second.bytes()]),
        [1, 1],
        "PSH ends a run"
    );
}

#[test]
fn a_wrong_checksum_is_never_hidden() {
    let mut bad = plain(100, 100, 2).bytes();
    *bad.last_mut().unwrap() ^= 1;
    let packets = [plain(0, 100, 1).bytes(), bad, plain(200, 100, 3).bytes()];
    assert_eq!(assert_round_trip(&packets), [1, 1, 1]);
}

#[test]
fn a_run_ends_before_the_total_length_overflows() {
    let packets: Vec<_> = (0..60_u16)
        .map(|n| plain(u32::from(n) * 1400, 1400, n).bytes())
        .collect();
    let counts = assert_round_trip(&packets);
    assert_eq!(counts, [46, 14]);
    assert!(Splitter::new(&merge_all(&packets)[0].1, SegmentKind::Tcp, 1400).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_rows_survive_merge_and_split(
        steps in proptest::collection::vec((0_u8..12, 1_usize..4, any::<u8>()), 1..40), v6: bool, udp: bool,
    ) {
        let mut sequence = 0_u32;
        let mut identification = 100_u16;
        let mut packets = Vec::new();
        for (change, size, value) in steps {
            let octets = if change == 1 { size * 20 } else { 60 };
            if udp {
                let mut bytes = Vec::new();
                let payload = vec![value; octets];
                if v6 {
                    PacketBuilder::ipv6([1; 16], [2; 16], 5).udp(1, 2).write(&mut bytes, &payload).unwrap();
                } else {
                    let mut ip = etherparse::Ipv4Header::new(0, 9, etherparse::IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
                    ip.identification = identification;
                    PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default())).udp(1, if change == 2 { 3 } else { 2 }).write(&mut bytes, &payload).unwrap();
                }
                packets.push(bytes);
            } else {
                let mut segment = Segment { v6, ..plain(sequence, octets, identification) };
                match change {
                    2 => segment.flags |= 8,
                    3 => segment.flags = value | 16,
                    4 => segment.window ^= u16::from(value),
                    5 => segment.sequence ^= u32::from(value),
                    _ => {}
                }
                packets.push(segment.bytes());
            }
            sequence = sequence.wrapping_add(u32::try_from(octets).unwrap());
            identification = identification.wrapping_add(1);
        }
        assert_round_trip(&packets);
    }

    #[test]
    fn random_octets_never_panic(rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 0..6), udp: bool) {
        let mut merge = Merge::new();
        for mut row in rows {
            if let [first, ..] = row.as_mut_slice() { *first = 0x45 }
            if let Some(protocol) = row.get_mut(9) { *protocol = if udp { 17 } else { 6 } }
            let _ = merge.offer(&row);
        }
    }
}

/// One complete checksum of 65,536 looks as if it were pending; to complete it changes nothing.
#[test]
fn a_complete_checksum_that_looks_pending_is_completed_to_itself() {
    let mut found = 0;
    for payload in 0..=u16::MAX {
        let mut packet = Segment {
            v6: false,
            ..plain(0, 100, 1)
        }
        .bytes();
        let read = Packet::parse(&packet).unwrap();
        // Another payload, and the sum that is right for it.
        let at = read.transport_offset + 16;
        packet[60..62].copy_from_slice(&payload.to_be_bytes());
        let length = u16::try_from(packet.len() - read.transport_offset).unwrap();
        let pseudo = Sum::ZERO.octets(&packet[12..20]).word(6).word(length);
        packet[at..at + 2].fill(0);
        let sum = pseudo.octets(&packet[read.transport_offset..]).finish_udp();
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(transport_checksum(&packet, &read), ChecksumState::Complete);
        if let Some(pending) = pending_checksum(&packet, &read) {
            found += 1;
            let before = packet.clone();
            assert!(pending.complete(&mut packet));
            assert_eq!(packet, before);
        }
    }
    assert!(found > 0);
}

#[test]
fn tells_complete_partial_and_wrong_checksums_apart() {
    for v6 in [false, true] {
        let mut packet = Segment {
            v6,
            ..plain(0, 100, 1)
        }
        .bytes();
        let read = Packet::parse(&packet).unwrap();
        assert_eq!(transport_checksum(&packet, &read), ChecksumState::Complete);
        let at = read.transport_offset + 16;
        let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
        let length = u16::try_from(packet.len() - read.transport_offset).unwrap();
        let pseudo = Sum::ZERO.octets(addresses).word(6).word(length).partial();
        let complete = packet.clone();
        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let ChecksumState::Partial(partial) = transport_checksum(&packet, &read) else {
            panic!("not seen as partial")
        };
        assert_eq!(pending_checksum(&packet, &read), Some(partial));
        assert!(partial.complete(&mut packet));
        assert_eq!(packet, complete);
        assert_eq!(pending_checksum(&packet, &read), None);
        packet[at] ^= 1;
        assert_eq!(transport_checksum(&packet, &read), ChecksumState::Wrong);
        assert_eq!(pending_checksum(&packet, &read), None);
    }
}
