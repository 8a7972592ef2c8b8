//! The splitter against one that builds every segment anew with etherparse.

use alloc::vec;
use alloc::vec::Vec;

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use proptest::prelude::*;

use super::*;

/// The reference: reads the super-packet, cuts its payload and writes each segment from nothing.
fn reference_tcp(packet: &[u8], segment_octets: usize) -> Vec<Vec<u8>> {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("not TCP")
    };
    let tcp: (TcpHeader, &[u8]) = (tcp.to_header(), tcp.payload());
    let parts: Vec<&[u8]> = if tcp.1.is_empty() {
        vec![&[]]
    } else {
        tcp.1.chunks(segment_octets).collect()
    };
    let last = parts.len() - 1;
    let mut sequence = tcp.0.sequence_number;
    let mut segments = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let mut header = tcp.0.clone();
        header.sequence_number = sequence;
        header.cwr &= index == 0;
        header.fin &= index == last;
        header.psh &= index == last;
        sequence = sequence.wrapping_add(u32::try_from(part.len()).unwrap());
        let mut bytes = Vec::new();
        match sliced.net.clone().unwrap() {
            NetSlice::Ipv4(ip) => {
                let mut ip = ip.header().to_header();
                ip.identification = ip
                    .identification
                    .wrapping_add(u16::try_from(index).unwrap());
                header.checksum = header.calc_checksum_ipv4(&ip, part).unwrap();
                ip.set_payload_len(header.header_len() + part.len())
                    .unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                ip.write(&mut bytes).unwrap();
            }
            NetSlice::Ipv6(ip) => {
                let mut ip = ip.header().to_header();
                ip.next_header = IpNumber::TCP;
                header.checksum = header.calc_checksum_ipv6(&ip, part).unwrap();
                ip.set_payload_length(header.header_len() + part.len())
                    .unwrap();
                ip.write(&mut bytes).unwrap();
            }
            NetSlice::Arp(_) => panic!("ARP"),
        }
        header.write(&mut bytes).unwrap();
        bytes.extend_from_slice(part);
        segments.push(bytes);
    }
    segments
}

pub(in crate::gso) fn split_all(
    packet: &[u8],
    kind: SegmentKind,
    segment_octets: u16,
) -> Vec<Vec<u8>> {
    let splitter = Splitter::new(packet, kind, segment_octets).unwrap();
    (0..splitter.count())
        .map(|index| {
            let mut segment = vec![0; splitter.header_octets()];
            splitter.write_header(index, &mut segment).unwrap();
            segment.extend_from_slice(&packet[splitter.payload(index)]);
            assert!(segment.len() <= splitter.largest_octets());
            segment
        })
        .collect()
}

fn tcp_packet(v6: bool, flags: u8, payload: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut header = TcpHeader::new(40000, 443, 0xffff_f000, 501);
    header.acknowledgment_number = 77;
    header.ack = true;
    header.fin = flags & 1 != 0;
    header.psh = flags & 2 != 0;
    header.cwr = flags & 4 != 0;
    header.ece = flags & 8 != 0;
    header.set_options_raw(options).unwrap();
    if v6 {
        PacketBuilder::ipv6([1; 16], [2; 16], 5)
            .tcp_header(header)
            .write(&mut bytes, payload)
            .unwrap();
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 5)
            .tcp_header(header)
            .write(&mut bytes, payload)
            .unwrap();
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn tcp_segments_equal_the_reference(
        v6: bool, flags in 0_u8..16, octets in 0_usize..9000, size in 1_u16..2000, option_words in 0_usize..=10,
    ) {
        let size = size.max(u16::try_from(octets / 200 + 1).unwrap());
        let payload: Vec<u8> = (0..octets).map(|n| (n * 31 + n / 256).to_le_bytes()[0]).collect();
        let packet = tcp_packet(v6, flags, &payload, &vec![1; option_words * 4]);
        prop_assert_eq!(split_all(&packet, SegmentKind::Tcp, size), reference_tcp(&packet, usize::from(size)));
    }

    #[test]
    fn udp_segments_are_datagrams_of_their_own(v6: bool, octets in 1_usize..5000, size in 40_u16..1500) {
        let payload: Vec<u8> = (0..octets).map(|n| (n * 7).to_le_bytes()[0]).collect();
        let build = |payload: &[u8], id: u16| {
            let mut bytes = Vec::new();
            if v6 {
                PacketBuilder::ipv6([1; 16], [2; 16], 5).udp(1, 2).write(&mut bytes, payload).unwrap();
            } else {
                let mut ip = etherparse::Ipv4Header::new(0, 5, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
                ip.identification = id;
                PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default())).udp(1, 2).write(&mut bytes, payload).unwrap();
            }
            bytes
        };
        let expected: Vec<Vec<u8>> = payload.chunks(usize::from(size)).zip(9_u16..).map(|(part, id)| build(part, id)).collect();
        prop_assert_eq!(split_all(&build(&payload, 9), SegmentKind::Udp, size), expected);
    }

    #[test]
    fn random_octets_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), udp: bool, size: u16, v6: bool, index in 0_usize..70_000) {
        if let Some(first) = bytes.first_mut() { *first = if v6 { 0x60 } else { 0x45 + (*first & 3) } }
        let kind = if udp { SegmentKind::Udp } else { SegmentKind::Tcp };
        if let Some(protocol) = bytes.get_mut(if v6 { 6 } else { 9 }) { *protocol = if udp { 17 } else { 6 } }
        if let Ok(splitter) = Splitter::new(&bytes, kind, size) {
            let mut header = [0; MAX_HEADER_OCTETS];
            let _ = splitter.write_header(index, &mut header);
            prop_assert!(splitter.payload(index).end <= bytes.len());
        }
    }
}

#[test]
fn extension_headers_stay_in_every_segment() {
    let inner = tcp_packet(true, 2, &[7; 100], &[]);
    let mut packet = inner[..40].to_vec();
    packet[6] = ip_protocol::DESTINATION_OPTIONS;
    packet[4..6].copy_from_slice(&u16::try_from(inner.len() - 40 + 8).unwrap().to_be_bytes());
    packet.extend([ip_protocol::TCP, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend(&inner[40..]);
    let segments = split_all(&packet, SegmentKind::Tcp, 60);
    assert_eq!(segments.len(), 2);
    for segment in segments {
        let read = Packet::parse(&segment).unwrap();
        assert_eq!(
            (read.total_octets, read.transport_offset),
            (segment.len(), 48)
        );
        let transport = &segment[48..];
        let length = u16::try_from(transport.len()).unwrap();
        assert!(
            Sum::ZERO
                .octets(&segment[8..40])
                .word(6)
                .word(length)
                .octets(transport)
                .is_valid()
        );
    }
}

#[test]
fn refuses_what_is_not_announced() {
    let packet = tcp_packet(false, 0, &[0; 10], &[]);
    assert_eq!(
        Splitter::new(&packet, SegmentKind::Udp, 5).unwrap_err(),
        SplitError::WrongKind
    );
    assert_eq!(
        Splitter::new(&packet, SegmentKind::Tcp, 0).unwrap_err(),
        SplitError::ZeroSize
    );
    assert_eq!(
        Splitter::new(&packet[..30], SegmentKind::Tcp, 5).unwrap_err(),
        SplitError::Malformed
    );
}
