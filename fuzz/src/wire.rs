//! One target for each header: it never panics, what it reads is what etherparse reads, and what it
//! hands back are parts of what it was given.

use etherparse::{
    ArpPacketSlice, Ethernet2HeaderSlice, Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv4HeaderSlice,
    Ipv6ExtensionsSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice, TcpHeaderSlice, UdpSlice,
};
use warren_core::wire::icmpv6::NeighbourBody;
use warren_core::wire::ipv6::UpperLayer;
use warren_core::wire::{
    ArpPacket, EthernetHeader, GeneveHeader, GueHeader, IcmpHeader, Icmpv6Header, Ipv4Header,
    Ipv6Header, TcpHeader, UdpHeader, VlanTag, VxlanHeader, checksum, ether_type,
};
use zerocopy::IntoBytes;

/// Ethernet, any number of VLAN tags, ARP.
pub fn ethernet(bytes: &[u8]) {
    let oracle = Ethernet2HeaderSlice::from_slice(bytes);
    let Ok((header, mut rest)) = EthernetHeader::parse(bytes) else {
        assert!(oracle.is_err());
        return;
    };
    let oracle = oracle.expect("etherparse reads every header of 14 octets");
    assert_eq!(header.destination().octets(), oracle.destination());
    assert_eq!(header.source().octets(), oracle.source());
    assert_eq!(header.ether_type(), oracle.ether_type().0);
    assert_eq!(&bytes[14..], rest);
    let rebuilt = EthernetHeader::new(header.destination(), header.source(), header.ether_type());
    assert_eq!(rebuilt.as_bytes(), &bytes[..14]);

    let mut ether_type = header.ether_type();
    assert_eq!(
        header.is_tagged(),
        matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
    );
    while matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN) {
        let oracle = SingleVlanHeaderSlice::from_slice(rest);
        let Ok((tag, behind)) = VlanTag::parse(rest) else {
            assert!(oracle.is_err());
            return;
        };
        let oracle = oracle.expect("etherparse reads every tag of 4 octets");
        assert_eq!(tag.vlan(), oracle.vlan_identifier().value());
        assert_eq!(tag.priority(), oracle.priority_code_point().value());
        assert_eq!(tag.ether_type(), oracle.ether_type().0);
        (ether_type, rest) = (tag.ether_type(), behind);
    }
    if ether_type == ether_type::ARP {
        arp(rest);
    }
}

fn arp(bytes: &[u8]) {
    let Ok((packet, rest)) = ArpPacket::parse(bytes) else {
        return;
    };
    let oracle = ArpPacketSlice::from_slice(bytes).expect("etherparse reads what we read");
    assert_eq!(packet.operation(), oracle.operation().0);
    let sender = (packet.sender().0.octets(), packet.sender().1.octets());
    let target = (packet.target().0.octets(), packet.target().1.octets());
    assert_eq!(sender.0, oracle.sender_hw_addr());
    assert_eq!(sender.1, oracle.sender_protocol_addr());
    assert_eq!(target.0, oracle.target_hw_addr());
    assert_eq!(target.1, oracle.target_protocol_addr());
    assert_eq!(&bytes[28..], rest);
    let rebuilt = ArpPacket::new(packet.operation(), packet.sender(), packet.target());
    assert_eq!(rebuilt.as_bytes(), &bytes[..28]);
}

/// IPv4: the same headers are read as by etherparse, and total length is obeyed.
pub fn ipv4(bytes: &[u8]) {
    let oracle = Ipv4HeaderSlice::from_slice(bytes);
    let parsed = Ipv4Header::parse(bytes);
    let fits = |header: &Ipv4HeaderSlice<'_>| {
        let total = usize::from(header.total_len());
        total >= header.slice().len() && total <= bytes.len()
    };
    assert_eq!(
        parsed.is_ok(),
        oracle.as_ref().is_ok_and(fits),
        "{parsed:?} {oracle:?}"
    );
    let (Ok((header, options, payload)), Ok(oracle)) = (parsed, oracle) else {
        return;
    };
    assert_eq!(header.header_octets(), oracle.slice().len());
    assert_eq!(header.total_octets(), oracle.total_len());
    assert_eq!(
        header.tos(),
        oracle.dcp().value() << 2 | oracle.ecn().value()
    );
    assert_eq!(header.identification(), oracle.identification());
    assert_eq!(header.dont_fragment(), oracle.dont_fragment());
    assert_eq!(header.more_fragments(), oracle.more_fragments());
    assert_eq!(
        u32::from(header.fragment_offset_octets()),
        u32::from(oracle.fragments_offset().value()) * 8
    );
    assert_eq!(header.is_fragment(), oracle.is_fragmenting_payload());
    assert_eq!(header.ttl(), oracle.ttl());
    assert_eq!(header.protocol(), oracle.protocol().0);
    assert_eq!(header.checksum(), oracle.header_checksum());
    assert_eq!(header.source(), oracle.source_addr());
    assert_eq!(header.destination(), oracle.destination_addr());
    assert_eq!(options, oracle.options());
    let ends = header.header_octets()..usize::from(header.total_octets());
    assert_eq!(payload, &bytes[ends]);

    // etherparse's own sum forgets the reserved bit of the fragment word.
    let adds_up = textbook_checksum(&bytes[..header.header_octets()]) == 0;
    assert_eq!(header.has_valid_checksum(options), adds_up);
    let mut filled = *header;
    filled.fill_checksum(options);
    assert!(filled.has_valid_checksum(options));
    // RFC 1624: a changed word and an updated checksum still add up.
    let mut routed = filled;
    routed.set_ttl(header.ttl().wrapping_sub(1));
    assert_eq!(routed.ttl(), header.ttl().wrapping_sub(1));
    routed.set_tos(!header.tos());
    assert_eq!(routed.tos(), !header.tos());
    assert!(routed.has_valid_checksum(options));
}

/// IPv6 and the walk over its extension headers.
pub fn ipv6(bytes: &[u8]) {
    let oracle = Ipv6HeaderSlice::from_slice(bytes);
    let parsed = Ipv6Header::parse(bytes);
    let fits = |header: &Ipv6HeaderSlice<'_>| {
        usize::from(header.payload_length()) <= bytes.len().saturating_sub(40)
    };
    assert_eq!(parsed.is_ok(), oracle.as_ref().is_ok_and(fits));
    let (Ok((header, payload)), Ok(oracle)) = (parsed, oracle) else {
        return;
    };
    assert_eq!(header.traffic_class(), oracle.traffic_class());
    assert_eq!(header.flow_label(), oracle.flow_label().value());
    assert_eq!(header.payload_octets(), oracle.payload_length());
    assert_eq!(header.next_header(), oracle.next_header().0);
    assert_eq!(header.hop_limit(), oracle.hop_limit());
    assert_eq!(header.source(), oracle.source_addr());
    assert_eq!(header.destination(), oracle.destination_addr());
    assert_eq!(payload.len(), usize::from(header.payload_octets()));

    let oracle = Ipv6ExtensionsSlice::from_slice(IpNumber(header.next_header()), payload);
    let Ok(upper) = UpperLayer::walk(header.next_header(), payload) else {
        return;
    };
    assert!(upper.offset_octets <= payload.len());
    // Behind a later fragment's header there is data, which etherparse goes on to read as headers.
    let later = upper
        .fragment
        .is_some_and(|fragment| fragment.offset_octets() > 0);
    if let (Ok((extensions, protocol, rest)), false) = (oracle, later) {
        assert_eq!(upper.protocol, protocol.0);
        assert_eq!(upper.offset_octets, payload.len() - rest.len());
        let fragmented = upper
            .fragment
            .is_some_and(|fragment| fragment.more_fragments());
        assert_eq!(fragmented, extensions.is_fragmenting_payload());
    }
}

/// UDP.
pub fn udp(bytes: &[u8]) {
    let oracle = UdpSlice::from_slice(bytes);
    // Length zero means "to the end" in jumbograms only (RFC 2675), which are not read here.
    let oracle = oracle.ok().filter(|oracle| oracle.length() != 0);
    let parsed = UdpHeader::parse(bytes);
    assert_eq!(parsed.is_ok(), oracle.is_some());
    if let (Ok((header, data)), Some(oracle)) = (parsed, oracle) {
        assert_eq!(header.source_port(), oracle.source_port());
        assert_eq!(header.destination_port(), oracle.destination_port());
        assert_eq!(header.length_octets(), oracle.length());
        assert_eq!(header.checksum(), oracle.checksum());
        assert_eq!(data, oracle.payload());
    }
}

/// TCP.
pub fn tcp(bytes: &[u8]) {
    let oracle = TcpHeaderSlice::from_slice(bytes);
    let parsed = TcpHeader::parse(bytes);
    assert_eq!(parsed.is_ok(), oracle.is_ok());
    if let (Ok((header, options, data)), Ok(oracle)) = (parsed, oracle) {
        assert_eq!(header.source_port(), oracle.source_port());
        assert_eq!(header.destination_port(), oracle.destination_port());
        assert_eq!(header.sequence(), oracle.sequence_number());
        assert_eq!(header.acknowledgement(), oracle.acknowledgment_number());
        assert_eq!(header.header_octets(), oracle.slice().len());
        assert_eq!(header.flags(), bytes[13]);
        assert_eq!(header.window(), oracle.window_size());
        assert_eq!(header.checksum(), oracle.checksum());
        assert_eq!(header.urgent(), oracle.urgent_pointer());
        assert_eq!(options, oracle.options());
        assert_eq!(data, &bytes[header.header_octets()..]);
    }
}

/// ICMP, and the checksum over any octets against the textbook loop.
pub fn icmp(bytes: &[u8]) {
    assert_eq!(checksum::of(bytes), textbook_checksum(bytes));
    let Ok((header, rest)) = IcmpHeader::parse(bytes) else {
        assert!(Icmpv4Slice::from_slice(bytes).is_err());
        return;
    };
    let [_, _, _, _, a, b, c, d, ..] = bytes else {
        unreachable!("a header has 8 octets")
    };
    assert_eq!(header.rest(), [*a, *b, *c, *d]);
    assert_eq!(header.mtu(), u16::from_be_bytes([*c, *d]));
    assert_eq!(rest, &bytes[8..]);
    let mut rebuilt = IcmpHeader::new(header.kind(), header.code(), header.rest());
    rebuilt.set_checksum(header.checksum());
    assert_eq!(rebuilt.as_bytes(), &bytes[..8]);
    if let Ok(oracle) = Icmpv4Slice::from_slice(bytes) {
        assert_eq!(header.kind(), oracle.type_u8());
        assert_eq!(header.code(), oracle.code_u8());
        assert_eq!(header.checksum(), oracle.checksum());
    }
}

/// ICMPv6 and the body of neighbour discovery.
pub fn icmpv6(bytes: &[u8]) {
    let oracle = Icmpv6Slice::from_slice(bytes);
    let Ok((header, rest)) = Icmpv6Header::parse(bytes) else {
        assert!(oracle.is_err());
        return;
    };
    assert_eq!(rest, &bytes[8..]);
    let mut rebuilt = Icmpv6Header::new(header.kind(), header.code(), header.rest());
    rebuilt.set_checksum(header.checksum());
    assert_eq!(rebuilt.as_bytes(), &bytes[..8]);
    if let Ok(oracle) = oracle {
        assert_eq!(header.kind(), oracle.type_u8());
        assert_eq!(header.code(), oracle.code_u8());
        assert_eq!(header.checksum(), oracle.checksum());
    }
    if let Ok((body, options)) = NeighbourBody::parse(&bytes[4..]) {
        assert_eq!(
            NeighbourBody::new(body.flags(), body.target()).as_bytes(),
            &bytes[4..24]
        );
        assert_eq!(options, &bytes[24..]);
    }
}

/// VXLAN: what is read when strict is read when not, and is all zero where it is reserved.
pub fn vxlan(bytes: &[u8]) {
    let parsed = VxlanHeader::parse(bytes);
    let expected = bytes.len() >= 8 && bytes[0] & 0x08 != 0;
    assert_eq!(parsed.is_ok(), expected);
    let strict = VxlanHeader::parse_strict(bytes);
    let Ok((header, rest)) = parsed else {
        assert!(strict.is_err());
        return;
    };
    assert_eq!(header.vni().octets(), bytes[4..7]);
    assert_eq!(rest, &bytes[8..]);
    let canonical = VxlanHeader::new(header.vni());
    assert_eq!(strict.is_ok(), canonical.as_bytes() == &bytes[..8]);
}

/// GUE: what is handed back lies behind the header length that the first octet gives.
pub fn gue(bytes: &[u8]) {
    if let Ok((header, rest)) = GueHeader::parse(bytes) {
        assert_eq!(bytes[0] & 0xe0, 0);
        assert_eq!(bytes[2..4], [0, 0]);
        assert_eq!(header.protocol(), bytes[1]);
        assert_eq!(rest, &bytes[4 + usize::from(bytes[0] & 0x1f) * 4..]);
    }
}

/// Geneve: no control packet and no critical option gets through.
pub fn geneve(bytes: &[u8]) {
    let Ok((header, rest)) = GeneveHeader::parse(bytes) else {
        return;
    };
    assert_eq!(bytes[0] >> 6, 0);
    assert_eq!(bytes[1] & 0xc0, 0);
    assert_eq!(header.vni().octets(), bytes[4..7]);
    assert_eq!(header.protocol_type().to_be_bytes(), bytes[2..4]);
    let end = 8 + usize::from(bytes[0] & 0x3f) * 4;
    assert_eq!(rest, &bytes[end..]);
    let mut at = 8;
    while at < end {
        assert_eq!(bytes[at + 2] & 0x80, 0, "a critical option");
        at += 4 + usize::from(bytes[at + 3] & 0x1f) * 4;
    }
    assert_eq!(at, end, "options that do not add up");
}

/// RFC 1071 section 4.1, word by word.
fn textbook_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded after every addition")
}
