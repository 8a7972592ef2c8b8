//! Fragments against a reassembler by the textbook, the clamp against etherparse.

use alloc::vec;
use alloc::vec::Vec;

use etherparse::{
    PacketBuilder, SlicedPacket, TcpHeader as BuiltTcp, TcpOptionElement, TransportSlice,
};
use proptest::prelude::*;

use super::*;

fn fragments(packet: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let fragmenter = Fragmenter::new(packet, Mtu::new(mtu)).unwrap();
    (0..fragmenter.count())
        .map(|index| {
            let mut bytes = vec![0; fragmenter.header_octets()];
            fragmenter.write_header(index, &mut bytes).unwrap();
            bytes.extend_from_slice(&packet[fragmenter.payload(index)]);
            bytes
        })
        .collect()
}

/// RFC 791 section 3.2, with holes as an error.
fn reassemble(parts: &[Vec<u8>]) -> (Vec<u8>, bool) {
    let mut payload = Vec::new();
    let mut more = true;
    let base = Ipv4Header::parse(&parts[0])
        .unwrap()
        .0
        .fragment_offset_octets();
    for part in parts {
        let (header, options, data) = Ipv4Header::parse(part).unwrap();
        assert!(header.has_valid_checksum(options));
        assert_eq!(
            usize::from(header.fragment_offset_octets() - base),
            payload.len()
        );
        assert!(more, "a fragment behind the last one");
        more = header.more_fragments();
        payload.extend_from_slice(data);
    }
    (payload, more)
}

proptest! {
    #[test]
    fn fragments_fit_and_reassemble(octets in 0_usize..9000, mtu in 68_u16..1500, more: bool, offset in 0_u16..100) {
        let payload: Vec<u8> = (0..octets).map(|n| (n * 7 + n / 256).to_le_bytes()[0]).collect();
        let mut packet = Vec::new();
        PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9).udp(1, 2).write(&mut packet, &payload).unwrap();
        let (header, _) = Ipv4Header::mut_from_prefix(&mut packet).unwrap();
        header.set_identification(0x1234);
        header.set_fragment_word(offset | if more { Ipv4Header::MORE_FRAGMENTS } else { 0 });
        let parts = fragments(&packet, mtu);
        for part in &parts {
            prop_assert!(part.len() <= usize::from(mtu));
            let (header, _, _) = Ipv4Header::parse(part).unwrap();
            prop_assert_eq!((header.identification(), header.ttl(), header.protocol()), (0x1234, 9, 17));
        }
        prop_assert_eq!(reassemble(&parts), (packet[20..].to_vec(), more));
    }

    #[test]
    fn the_clamp_keeps_the_checksum_right(mss in 1_u16.., mtu in 576_u16..9000, nops in 0_usize..3, v6: bool, partial: bool) {
        let mut options = vec![TcpOptionElement::Noop; nops];
        options.extend([TcpOptionElement::MaximumSegmentSize(mss), TcpOptionElement::SelectiveAcknowledgementPermitted]);
        let mut header = BuiltTcp::new(1, 2, 3, 4);
        header.syn = true;
        header.set_options(&options).unwrap();
        let mut packet = Vec::new();
        if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9).tcp_header(header).write(&mut packet, b"data").unwrap();
        } else {
            PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9).tcp_header(header).write(&mut packet, b"data").unwrap();
        }
        let before = packet.clone();
        let read = Packet::parse(&packet).unwrap();
        let changed = clamp_mss(&mut packet, &read, Mtu::new(mtu), partial);
        let largest = mss_of(read.family(), Mtu::new(mtu));
        prop_assert_eq!(changed, mss > largest);
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
        let seen = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        prop_assert_eq!(seen, Some(mss.min(largest)));
        if partial {
            prop_assert_eq!(&packet[read.transport_offset + 16..][..2], &before[read.transport_offset + 16..][..2]);
        } else {
            let expected = match sliced.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap(),
                etherparse::NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap(),
                etherparse::NetSlice::Arp(_) => panic!("ARP"),
            };
            prop_assert_eq!(tcp.checksum(), expected);
        }
    }

    #[test]
    fn random_octets_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), mtu: u16) {
        if let Some(first) = bytes.first_mut() { *first = 0x45 + (*first & 7) }
        if let Some(fragmenter) = Fragmenter::new(&bytes, Mtu::new(mtu)) {
            let mut header = [0; 60];
            for index in 0..fragmenter.count() + 1 { let _ = fragmenter.write_header(index, &mut header); }
        }
        if let Ok(read) = Packet::parse(&bytes.clone()) { clamp_mss(&mut bytes, &read, Mtu::new(mtu), false); }
    }
}

#[test]
fn options_without_the_copied_flag_stand_in_the_first_fragment_only() {
    let mut packet = Vec::new();
    let mut ip =
        etherparse::Ipv4Header::new(100, 9, etherparse::IpNumber::UDP, [1; 4], [2; 4]).unwrap();
    // Record route (7) is not copied, router alert (148) is.
    ip.options = [7, 4, 4, 0, 148, 4, 0, 0].as_slice().try_into().unwrap();
    ip.dont_fragment = false;
    ip.set_payload_len(100).unwrap();
    ip.write(&mut packet).unwrap();
    packet.extend([0xaa; 100]);
    let parts = fragments(&packet, 84);
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[0][20..28], [7, 4, 4, 0, 148, 4, 0, 0]);
    assert_eq!(parts[1][20..28], [1, 1, 1, 1, 148, 4, 0, 0]);
}

#[test]
fn dont_fragment_is_obeyed() {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9)
        .udp(1, 2)
        .write(&mut packet, &[0; 2000])
        .unwrap();
    Ipv4Header::mut_from_prefix(&mut packet)
        .unwrap()
        .0
        .set_fragment_word(Ipv4Header::DONT_FRAGMENT);
    assert!(Fragmenter::new(&packet, Mtu::ETHERNET).is_none());
}
