//! The walk over a whole IP packet.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use warren_core::packet::{Fragment, Packet};
use warren_core::wire::{Ipv4Header, Ipv6Header, ip_protocol};

/// [`Packet::parse`] stays within the packet and sees the flow that etherparse sees.
pub fn packet(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    assert!(packet.total_octets <= bytes.len());
    assert!(packet.transport_offset <= packet.total_octets);
    // Link padding changes nothing.
    assert_eq!(Packet::parse(&bytes[..packet.total_octets]), Ok(packet));

    let mut back = packet.flow;
    (back.source, back.destination) = (packet.flow.destination, packet.flow.source);
    (back.source_port, back.destination_port) =
        (packet.flow.destination_port, packet.flow.source_port);
    assert_eq!(packet.flow.symmetric_hash(7), back.symmetric_hash(7));
    assert!(packet.flow.entropy_port(7) >= 49152);

    if packet.fragment != Fragment::Whole {
        assert_eq!(
            (packet.flow.source_port, packet.flow.destination_port),
            (0, 0)
        );
    }
    if let Ok(oracle) = SlicedPacket::from_ip(&bytes[..packet.total_octets]) {
        agrees(bytes, &packet, &oracle);
    }
}

fn agrees(bytes: &[u8], packet: &Packet, oracle: &SlicedPacket<'_>) {
    match oracle.net.as_ref().expect("a packet was read") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(packet.flow.source, header.source_addr());
            assert_eq!(packet.flow.destination, header.destination_addr());
            assert_eq!(packet.hop_limit, header.ttl());
            assert_eq!(packet.dont_fragment, header.dont_fragment());
            assert_eq!(
                packet.fragment != Fragment::Whole,
                header.is_fragmenting_payload()
            );
            // etherparse walks over an authentication header in IPv4 too.
            if packet.flow.protocol != ip_protocol::AUTHENTICATION {
                assert_eq!(packet.flow.protocol, ip.payload_ip_number().0);
            }
            assert!(Ipv4Header::parse(bytes).is_ok());
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!(packet.flow.source, header.source_addr());
            assert_eq!(packet.flow.destination, header.destination_addr());
            assert_eq!(packet.hop_limit, header.hop_limit());
            assert_eq!(packet.traffic_class, header.traffic_class());
            let later = packet.fragment == Fragment::Later;
            // A zero length is "to the end" for etherparse (a jumbogram) and no payload for us.
            if !later && header.payload_length() != 0 {
                assert_eq!(packet.flow.protocol, ip.payload().ip_number.0);
            }
            assert!(Ipv6Header::parse(bytes).is_ok());
        }
        NetSlice::Arp(_) => unreachable!("ARP is not IP"),
    }
    if packet.fragment == Fragment::Whole {
        let ports = (packet.flow.source_port, packet.flow.destination_port);
        match (&oracle.transport, packet.flow.protocol) {
            (Some(TransportSlice::Udp(udp)), ip_protocol::UDP) => {
                assert_eq!(ports, (udp.source_port(), udp.destination_port()));
            }
            (Some(TransportSlice::Tcp(tcp)), ip_protocol::TCP) => {
                assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
            }
            (_, _) => {}
        }
    }
}
