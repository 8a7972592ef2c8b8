//! Probes inside a tunnel: "does this way carry so many octets, and how long does it take?"
//!
//! A probe is an ordinary inner packet, wrapped as any other: UDP from an address of the sender's
//! own prefixes to an address of the peer's, to [`PORT`], with a [`Message`] as its payload, filled
//! up with zeros to the size in question. So it takes the path of the tunnel's packets through
//! every middlebox, and at the other end it passes the same checks: a peer that may not send from
//! that address is refused. The answer is small, so that it does not measure the way back.
//!
//! A foreign peer knows nothing of this. Through it, an ICMP echo with [`ECHO_IDENTIFIER`] does the
//! same work, if an address behind it answers.
//!
//! [`is_probe`] recognises both in what the engine has admitted; it becomes
//! [`Verdict::Probe`](crate::Verdict::Probe) in place of being delivered.

use crate::packet::{Fragment, Packet};
use crate::wire::ip_protocol;

/// The UDP port of probes: the last of the registered ones, reserved by IANA and assigned to
/// nobody.
pub const PORT: u16 = 49_151;

/// The identifier of the ICMP echo of probes through foreign peers.
pub const ECHO_IDENTIFIER: u16 = 0x5752;

/// What is asked or answered; the payload of a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// Question or answer.
    pub kind: Kind,
    /// The number of the encapsulation that the question took
    /// ([`EncapsulationKind`](crate::encap::EncapsulationKind)), told back.
    pub encapsulation: u8,
    /// Octets of the outer packet that the question was in, told back.
    pub octets: u16,
    /// Random; whoever tells it back has seen the question.
    pub token: u64,
    /// In an answer: whether who sends it takes, in IP-in-IP over IPv4, datagrams of a flow that come as one
    /// super-packet, because nothing on the way has cut it. False in a question.
    pub takes_rows: bool,
}

/// Question or answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Answer this.
    Question,
    /// It arrived.
    Answer,
}

impl Message {
    /// Octets of a message without filling.
    ///
    /// | octet | 0..4   | 4                      | 5             | 6..8   | 8..16 | 16             |
    /// |-------|--------|------------------------|---------------|--------|-------|----------------|
    /// | field | `WRNP` | 1 question, 2 answer   | encapsulation | octets | token | 1: takes rows  |
    ///
    /// The last one may be missing, and then is 0.
    pub const OCTETS: usize = 17;

    /// Octets that a message has at least.
    pub const LEAST_OCTETS: usize = 16;

    /// The message as octets.
    #[must_use]
    pub const fn to_octets(self) -> [u8; Self::OCTETS] {
        let [a, b, c, d] = MAGIC;
        let [high, low] = self.octets.to_be_bytes();
        let kind = match self.kind {
            Kind::Question => 1,
            Kind::Answer => 2,
        };
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.token.to_be_bytes();
        [
            a,
            b,
            c,
            d,
            kind,
            self.encapsulation,
            high,
            low,
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            self.takes_rows as u8,
        ]
    }

    /// Reads a message from the front of a payload; `None` when it is none.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [a, b, c, d, kind, encapsulation, high, low, token @ ..] =
            payload.first_chunk::<{ Self::LEAST_OCTETS }>()?;
        if [*a, *b, *c, *d] != MAGIC {
            return None;
        }
        Some(Self {
            kind: match kind {
                1 => Kind::Question,
                2 => Kind::Answer,
                _ => return None,
            },
            encapsulation: *encapsulation,
            octets: u16::from_be_bytes([*high, *low]),
            token: u64::from_be_bytes(*token),
            takes_rows: payload.get(Self::LEAST_OCTETS) == Some(&1),
        })
    }
}

/// Whether the inner packet at `bytes`, read as `packet`, is a probe: a [`Message`] to [`PORT`], or
/// in the answer to an echo with [`ECHO_IDENTIFIER`]. The identifier alone says nothing: anybody's
/// `ping` may have it.
#[must_use]
pub fn is_probe(packet: &Packet, bytes: &[u8]) -> bool {
    if packet.fragment != Fragment::Whole {
        return false;
    }
    let flow = &packet.flow;
    let may_be = match flow.protocol {
        ip_protocol::UDP => flow.destination_port == PORT,
        ip_protocol::ICMP if flow.source_port == ECHO_IDENTIFIER => {
            bytes.get(packet.transport_offset) == Some(&ECHO_REPLY_V4)
        }
        ip_protocol::ICMPV6 if flow.source_port == ECHO_IDENTIFIER => {
            bytes.get(packet.transport_offset) == Some(&ECHO_REPLY_V6)
        }
        _ => false,
    };
    // The headers of UDP and of an echo are of one length.
    may_be
        && bytes
            .get(packet.transport_offset + 8..packet.total_octets)
            .is_some_and(|payload| Message::parse(payload).is_some())
}

const MAGIC: [u8; 4] = *b"WRNP";
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use etherparse::PacketBuilder;

    #[test]
    fn a_message_reads_what_it_writes() {
        for kind in [Kind::Question, Kind::Answer] {
            let message = Message {
                kind,
                encapsulation: 3,
                octets: 1400,
                token: 0x0102_0304_0506_0708,
                takes_rows: kind == Kind::Answer,
            };
            let octets = message.to_octets();
            assert_eq!(Message::parse(&octets), Some(message));
            let shorter = Message {
                takes_rows: false,
                ..message
            };
            assert_eq!(Message::parse(&octets[..16]), Some(shorter));
            assert_eq!(Message::parse(&octets[..15]), None);
            let mut other = octets;
            other[4] = 7;
            assert_eq!(Message::parse(&other), None);
        }
    }

    #[test]
    fn only_probes_are_probes() {
        let message = Message {
            kind: Kind::Question,
            encapsulation: 0,
            octets: 100,
            token: 1,
            takes_rows: false,
        };
        let is = |port: u16, payload: &[u8]| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
                .udp(PORT, port)
                .write(&mut bytes, payload)
                .unwrap();
            is_probe(&Packet::parse(&bytes).unwrap(), &bytes)
        };
        assert!(is(PORT, &message.to_octets()));
        assert!(!is(53, &message.to_octets()));
        assert!(!is(PORT, b"somebody else's"));
        let ours: &[u8] = &message.to_octets();
        for (identifier, payload, expected) in [
            (ECHO_IDENTIFIER, ours, true),
            (1, ours, false),
            // Of somebody's `ping -e 22354`.
            (ECHO_IDENTIFIER, b"\x10\x11\x12\x13\x14\x15\x16\x17", false),
            (ECHO_IDENTIFIER, &ours[..15], false),
        ] {
            let [mut v4, mut v6] = [Vec::new(), Vec::new()];
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
                .icmpv4_echo_reply(identifier, 0)
                .write(&mut v4, payload)
                .unwrap();
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
                .icmpv6_echo_reply(identifier, 0)
                .write(&mut v6, payload)
                .unwrap();
            for (mut reply, kind_at, question) in [(v4, 20, 8), (v6, 40, 128)] {
                assert_eq!(is_probe(&Packet::parse(&reply).unwrap(), &reply), expected);
                reply[kind_at] = question;
                assert!(
                    !is_probe(&Packet::parse(&reply).unwrap(), &reply),
                    "a question"
                );
            }
        }
    }
}
