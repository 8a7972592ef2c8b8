//! Packets as a cable would have them: a splitter and a reader that share nothing with the library.
//!
//! What a capture shows of a packet depends on where the kernel stood with it: a super-packet is
//! whole, its checksum may be that of the pseudo-header alone. [`Captured::segments`] does what the
//! kernel would do later, by the text of the RFCs and of the virtio header, without any cleverness.

use std::net::IpAddr;

use crate::tap::Captured;

/// One IP packet that fits the MTU, complete with its checksums.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Segment(pub(crate) Vec<u8>);

/// Those packets whose order among each other is promised.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Flow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Zero where there are none: in fragments, all of which are one flow.
    pub(crate) ports: [u16; 2],
}

impl Captured {
    /// The packet of `at..`, cut to what a cable would carry.
    ///
    /// `at` is where the IP packet starts that is to be cut, which is behind an Ethernet header or
    /// at the front.
    pub(crate) fn segments(&self, at: usize) -> Vec<Segment> {
        let packet = &self.octets[at..];
        let transport = Segment::start_of_transport(packet);
        let word =
            |index: usize| u16::from_ne_bytes([self.offload[index], self.offload[index + 1]]);
        let (flags, kind, gso_octets) = (self.offload[0], self.offload[1] & !GSO_ECN, word(4));
        let unfilled = flags & NEEDS_CSUM != 0;
        if unfilled {
            assert_eq!(usize::from(word(6)), at + transport, "{self:x?}");
            assert_eq!(
                usize::from(word(8)),
                checksum_at(packet[protocol_at(packet)])
            );
            let field = transport + checksum_at(protocol_of(packet));
            let pseudo = fold(pseudo_header(packet, packet.len() - transport));
            assert_eq!(get(packet, field), pseudo, "the sum of the pseudo-header");
        }
        if kind == GSO_NONE {
            let mut segment = Segment(packet.to_vec());
            if unfilled {
                segment.fill();
            }
            return vec![segment.checked()];
        }
        assert!(unfilled, "a super-packet has its checksums filled in later");
        let header_octets = transport
            + match (kind, protocol_of(packet)) {
                (GSO_TCP4, TCP) if is_v4(packet) => usize::from(packet[transport + 12] >> 4) * 4,
                (GSO_TCP6, TCP) if !is_v4(packet) => usize::from(packet[transport + 12] >> 4) * 4,
                (GSO_UDP_L4, UDP) => 8,
                other => panic!("{other:?}: {self:x?}"),
            };
        let (header, payload) = packet.split_at(header_octets);
        assert!(
            payload.len() > usize::from(gso_octets),
            "there is something to cut"
        );
        let pieces = payload.chunks(gso_octets.into());
        let last = pieces.len() - 1;
        let cut = pieces.enumerate().map(|(index, piece)| {
            let mut octets = [header, piece].concat();
            let length = u16::try_from(octets.len()).expect("it is shorter");
            let number = u16::try_from(index).expect("few");
            if is_v4(packet) {
                put(&mut octets, 2, length);
                // RFC 6864 leaves it open for what is never a fragment; the kernel counts.
                put(&mut octets, 4, get(header, 4).wrapping_add(number));
            } else {
                put(&mut octets, 4, length - 40);
            }
            if protocol_of(packet) == UDP {
                put(
                    &mut octets,
                    transport + 4,
                    length - u16::try_from(transport).expect("small"),
                );
            } else {
                let sequence = u32::try_from(index * usize::from(gso_octets)).expect("small");
                let sequence = number32(header, transport + 4).wrapping_add(sequence);
                octets[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
                if index != last {
                    octets[transport + 13] &= !(FIN | PSH);
                }
                // RFC 3168 section 6.1.2: once is enough.
                if index != 0 {
                    octets[transport + 13] &= !CWR;
                }
            }
            let mut segment = Segment(octets);
            segment.fill();
            segment.checked()
        });
        cut.collect()
    }
}

impl Segment {
    /// Fills in its checksums.
    fn fill(&mut self) {
        let packet = &mut self.0;
        if is_v4(packet) {
            let header_octets = usize::from(packet[0] & 15) * 4;
            put(packet, 10, 0);
            let checksum = !fold(sum(&packet[..header_octets]));
            put(packet, 10, checksum);
        }
        let transport = Self::start_of_transport(packet);
        let protocol = protocol_of(packet);
        let field = transport + checksum_at(protocol);
        put(packet, field, 0);
        let all = pseudo_header(packet, packet.len() - transport) + sum(&packet[transport..]);
        let checksum = match !fold(all) {
            // RFC 768: zero says that there is none.
            0 if protocol == UDP => 0xffff,
            checksum => checksum,
        };
        put(packet, field, checksum);
    }

    /// The same, whose lengths and checksums are right.
    ///
    /// A checksum of TCP that comes to zero may be written as both zeros of ones' complement, and the
    /// kernel itself does one or the other: here it is the one that UDP has to have.
    pub(crate) fn checked(mut self) -> Self {
        let packet = &mut self.0;
        let length = if is_v4(packet) {
            let header_octets = usize::from(packet[0] & 15) * 4;
            assert_eq!(fold(sum(&packet[..header_octets])), 0xffff, "{packet:x?}");
            usize::from(get(packet, 2))
        } else {
            40 + usize::from(get(packet, 4))
        };
        assert_eq!(length, packet.len(), "{packet:x?}");
        let protocol = protocol_of(packet);
        if is_fragment(packet) || ![TCP, UDP].contains(&protocol) {
            return self;
        }
        let transport = Self::start_of_transport(packet);
        if protocol == UDP {
            assert_eq!(
                usize::from(get(packet, transport + 4)),
                packet.len() - transport
            );
            assert_ne!(get(packet, transport + 6), 0, "a checksum");
        }
        let all = pseudo_header(packet, packet.len() - transport) + sum(&packet[transport..]);
        assert_eq!(fold(all), 0xffff, "{packet:x?}");
        if get(packet, transport + checksum_at(protocol)) == 0 {
            put(packet, transport + checksum_at(protocol), 0xffff);
        }
        self
    }

    /// The same packet behind a router.
    pub(crate) fn one_hop_on(mut self) -> Self {
        let packet = &mut self.0;
        if is_v4(packet) {
            packet[8] -= 1;
            let header_octets = usize::from(packet[0] & 15) * 4;
            put(packet, 10, 0);
            let checksum = !fold(sum(&packet[..header_octets]));
            put(packet, 10, checksum);
        } else {
            packet[7] -= 1;
        }
        self
    }

    /// To which flow it belongs.
    pub(crate) fn flow(&self) -> Flow {
        let packet = &self.0;
        let transport = Self::start_of_transport(packet);
        let protocol = protocol_of(packet);
        let has_ports = [TCP, UDP].contains(&protocol) && !is_fragment(packet);
        Flow {
            source: address(packet, 0),
            destination: address(packet, 1),
            protocol,
            ports: if has_ports {
                [get(packet, transport), get(packet, transport + 2)]
            } else {
                [0; 2]
            },
        }
    }

    /// The ECN field. RFC 3168 section 5, RFC 2460 section 7.
    pub(crate) fn ecn(&self) -> u8 {
        ecn(&self.0)
    }

    /// What it is as a segment of TCP.
    pub(crate) fn tcp(&self) -> Tcp<'_> {
        let packet = &self.0;
        let transport = &packet[Self::start_of_transport(packet)..];
        let (header, payload) = transport.split_at(usize::from(transport[12] >> 4) * 4);
        let mut tcp = Tcp {
            sequence: number32(header, 4),
            flags: header[13],
            timestamp: None,
            may_sack: false,
            sack_blocks: 0,
            payload,
        };
        let mut options = &header[20..];
        // RFC 9293 section 3.1: kinds 0 and 1 are one octet, others say their length.
        while let [kind, rest @ ..] = options {
            match kind {
                0 => break,
                1 => options = rest,
                _ => {
                    let (option, rest) = options.split_at(options[1].into());
                    match kind {
                        4 => tcp.may_sack = true,
                        5 => tcp.sack_blocks = (option.len() - 2) / 8,
                        8 => tcp.timestamp = Some(number32(option, 2)),
                        _ => (),
                    }
                    options = rest;
                }
            }
        }
        tcp
    }

    /// Where the TCP or UDP header starts. Of extension headers these tests see only that of a
    /// fragment.
    fn start_of_transport(packet: &[u8]) -> usize {
        if is_v4(packet) {
            usize::from(packet[0] & 15) * 4
        } else if packet[6] == FRAGMENT {
            48
        } else {
            40
        }
    }
}

/// A segment of TCP.
#[derive(Debug)]
pub(crate) struct Tcp<'a> {
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// The sender's clock. RFC 7323 section 3.2.
    pub(crate) timestamp: Option<u32>,
    /// Whether selective acknowledgements are welcome. RFC 2018 section 2.
    pub(crate) may_sack: bool,
    /// Selective acknowledgements in it.
    pub(crate) sack_blocks: usize,
    pub(crate) payload: &'a [u8],
}

/// The datagrams of an outer UDP packet, which may be a super-packet: their octets behind the UDP
/// header, and the ports.
pub(crate) fn datagrams(segments: &[Segment]) -> Vec<([u16; 2], &[u8])> {
    let parts = segments.iter().map(|segment| {
        let packet = &segment.0;
        let transport = Segment::start_of_transport(packet);
        let ports = [get(packet, transport), get(packet, transport + 2)];
        (ports, &packet[transport + 8..])
    });
    parts.collect()
}

/// The ECN field of an IP packet.
fn ecn(packet: &[u8]) -> u8 {
    if is_v4(packet) {
        packet[1] & 3
    } else {
        packet[1] >> 4 & 3
    }
}

/// Whether it is a part of a datagram.
fn is_fragment(packet: &[u8]) -> bool {
    if is_v4(packet) {
        get(packet, 6) & 0x3fff != 0
    } else {
        packet[6] == FRAGMENT
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

fn protocol_at(packet: &[u8]) -> usize {
    match (is_v4(packet), packet[6]) {
        (true, _) => 9,
        (false, FRAGMENT) => 40,
        (false, _) => 6,
    }
}

fn protocol_of(packet: &[u8]) -> u8 {
    packet[protocol_at(packet)]
}

/// The source (0) or the destination (1).
fn address(packet: &[u8], which: usize) -> IpAddr {
    if is_v4(packet) {
        let octets: [u8; 4] = packet[12 + 4 * which..][..4].try_into().expect("four");
        octets.into()
    } else {
        let octets: [u8; 16] = packet[8 + 16 * which..][..16].try_into().expect("sixteen");
        octets.into()
    }
}

/// The sum over the pseudo-header. RFC 9293 section 3.1, RFC 8200 section 8.1.
fn pseudo_header(packet: &[u8], octets: usize) -> u64 {
    let addresses = if is_v4(packet) {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    sum(addresses) + u64::from(protocol_of(packet)) + octets as u64
}

/// RFC 1071, two words at a time (section 2, C).
fn sum(octets: &[u8]) -> u64 {
    let (words, rest) = octets.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let mut sum = u64::from(u32::from_be_bytes(last));
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("it was folded")
}

/// Where the checksum is in the header of a protocol.
fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        other => panic!("protocol {other} has no checksum to fill in"),
    }
}

fn get(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

fn put(octets: &mut [u8], at: usize, value: u16) {
    octets[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn number32(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(octets[at..at + 4].try_into().expect("four"))
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const FRAGMENT: u8 = 44;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;

// The virtio header: flags, type of the super-packet, length of the headers, octets of payload in a
// segment, start and offset of the checksum. Virtual I/O Device, version 1.2, section 5.1.6.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
