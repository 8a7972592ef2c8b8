//! Octets read as a script. Every string of octets is one; it ends where they end.

use std::net::IpAddr;

use warren_core::batch::Transport;
use warren_core::wire::checksum;
use warren_core::{Direction, Link};

use super::world::{ADDRESSES, FOU_PORT, GENEVE_PORT, OWN_MAC, UNDERLAY, VNI, VXLAN_PORT};

/// One thing that happens.
#[derive(Debug)]
pub(super) enum Step {
    /// A route is set.
    Insert { prefix: u8, next_hop: u8 },
    /// A route is removed.
    Remove { prefix: u8 },
    /// The engine gets the tables as they are.
    Publish,
    /// Time passes.
    Wait { milliseconds: u16 },
    /// Frames arrive together.
    Play {
        direction: Direction,
        arrivals: Vec<Arrival>,
    },
}

/// A frame that arrives.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) bytes: Vec<u8>,
    pub(super) link: Link,
    /// Whether octets were changed after it was made well.
    pub(super) damaged: bool,
}

/// The steps in a string of octets.
#[derive(Debug)]
pub(super) struct Script<'b> {
    rest: &'b [u8],
}

impl<'b> Script<'b> {
    pub(super) const fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next octet; zero behind the end.
    fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.octet()) % from.len()]
    }

    fn frames(&mut self, direction: Direction) -> Step {
        let count = self.octet();
        // Mostly a few, sometimes more than are looked up at once.
        let count = if count >= 250 { 70 } else { count % 4 + 1 };
        let mut arrivals = Vec::new();
        for _ in 0..count {
            arrivals.push(match direction {
                Direction::Encap => self.device_frame(),
                Direction::Decap => self.underlay_frame(),
            });
        }
        Step::Play {
            direction,
            arrivals,
        }
    }

    fn device_frame(&mut self) -> Arrival {
        let mut bytes = self.packet();
        let damaged = self.damage(&mut bytes);
        Arrival {
            bytes,
            link: Link::LOCAL,
            damaged,
        }
    }

    fn underlay_frame(&mut self) -> Arrival {
        let address = |text: &str| text.parse::<IpAddr>().expect("a constant");
        let remote = address(self.choose(&UNDERLAY));
        let local = address(UNDERLAY[if remote.is_ipv4() { 0 } else { 5 }]);
        let packet = self.packet();
        let (transport, mut bytes) = self.wrapped(&packet);
        let link = Link {
            local,
            remote,
            transport,
            traffic_class: self.octet(),
            hop_limit: 64,
            dont_fragment: true,
        };
        let damaged = self.damage(&mut bytes);
        Arrival {
            bytes,
            link,
            damaged,
        }
    }

    /// A packet without options, extensions and fragments, sound in itself.
    fn packet(&mut self) -> Vec<u8> {
        let family = usize::from(self.octet() & 1);
        let source = self.choose(&ADDRESSES[family]);
        let destination = self.choose(&ADDRESSES[family]);
        let hop_limit = self.choose(&[64, 255, 2, 1, 0, 64, 64, 64]);
        let class = self.octet();
        let (protocol, payload) = self.payload(family == 1);
        let octets = u16::try_from(payload.len()).expect("short");
        let address = |text: &str| text.parse::<IpAddr>().expect("a constant");
        match (address(source), address(destination)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [high, low] = (octets + 20).to_be_bytes();
                let mut header = vec![
                    0x45, class, high, low, 0, 1, 0x40, 0, hop_limit, protocol, 0, 0,
                ];
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum::of(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [header, payload].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [high, low] = octets.to_be_bytes();
                let mut header = vec![
                    0x60 | class >> 4,
                    class << 4,
                    0,
                    0,
                    high,
                    low,
                    protocol,
                    hop_limit,
                ];
                header.extend(source.octets());
                header.extend(destination.octets());
                [header, payload].concat()
            }
            (_, _) => unreachable!("both are of one family"),
        }
    }

    /// A protocol and what follows the IP header.
    fn payload(&mut self, v6: bool) -> (u8, Vec<u8>) {
        let choice = self.octet();
        let octets = match self.octet() {
            255 => usize::from(self.word() % 1900),
            // One octet around the MTU of a tunnel: see `World::tunnel`.
            254 => {
                let word = usize::from(self.word());
                let headers = if v6 { 40 + 8 } else { 20 + 8 };
                600 + word / 4 % 10 * 100 + word % 4 - 1 - headers
            }
            few => usize::from(few),
        };
        let data = vec![self.octet(); octets];
        match choice % 8 {
            0..=3 => {
                let ports = [5000, 53, VXLAN_PORT, GENEVE_PORT, FOU_PORT, 443];
                let from = self.choose(&ports);
                let to = self.choose(&ports);
                let length = u16::try_from(8 + data.len()).expect("short");
                let mut udp = Vec::new();
                for word in [from, to, length, 0] {
                    udp.extend(word.to_be_bytes());
                }
                udp.extend(data);
                (17, udp)
            }
            4 => {
                let mut tcp = vec![
                    0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
                ];
                tcp.extend(data);
                (6, tcp)
            }
            // An echo request, and an error that no error may answer.
            5 => {
                let kind = if v6 { 128 } else { 8 };
                (
                    if v6 { 58 } else { 1 },
                    [vec![kind, 0, 0, 0, 0, 7, 0, 1], data].concat(),
                )
            }
            6 => {
                let kind = if v6 { 1 } else { 3 };
                (
                    if v6 { 58 } else { 1 },
                    [vec![kind, 0, 0, 0, 0, 0, 0, 0], data].concat(),
                )
            }
            _ => (
                self.choose(&[4, 41, 47, 132, 59, 255]),
                [vec![0; 8], data].concat(),
            ),
        }
    }

    /// The packet behind a shim, and what carries it.
    fn wrapped(&mut self, packet: &[u8]) -> (Transport, Vec<u8>) {
        let v6 = packet[0] >> 4 == 6;
        let udp = |local_port| Transport::Udp {
            local_port,
            remote_port: 50000,
        };
        let ethernet = |to: u8, from: u8, tagged: bool| {
            let own = OWN_MAC.octets();
            let other = [2, 0, 0, 0, 0, 9];
            let to = [own, [0xff; 6], other][usize::from(to % 3)];
            let from = if from == 0 { own } else { other };
            let ether_type = match (tagged, v6) {
                (true, _) => [0x81, 0x00],
                (false, false) => [0x08, 0x00],
                (false, true) => [0x86, 0xdd],
            };
            [&to[..], &from, &ether_type].concat()
        };
        let protocol = if v6 { 41 } else { 4 };
        let [_, a, b, c] = VNI.to_be_bytes();
        match self.octet() % 8 {
            0..=2 => {
                let flags = self.octet();
                let vni = if flags & 0x40 == 0 { c } else { 9 };
                let reserved = flags & 0x20;
                let ethernet = ethernet(flags & 1, flags & 0x80 ^ 0x80, flags & 0x10 != 0);
                let header = vec![8 | reserved, 0, 0, 0, a, b, vni, 0];
                (
                    udp(VXLAN_PORT),
                    [header, ethernet, packet.to_vec()].concat(),
                )
            }
            3 => {
                let header = vec![0, 0, 0x65, 0x58, a, b, c, 0];
                let ethernet = ethernet(self.octet(), 1, false);
                (
                    udp(GENEVE_PORT),
                    [header, ethernet, packet.to_vec()].concat(),
                )
            }
            4 => (udp(FOU_PORT), packet.to_vec()),
            5 => (udp(FOU_PORT), [&[0, protocol, 0, 0], packet].concat()),
            6 => (Transport::Ip { protocol }, packet.to_vec()),
            _ => (udp(self.word()), packet.to_vec()),
        }
    }

    /// Changes octets, cuts or pads, and says whether it did.
    fn damage(&mut self, bytes: &mut Vec<u8>) -> bool {
        let kind = self.octet();
        match kind {
            0..128 => return false,
            128..160 => {
                let at = usize::from(self.word()) % (bytes.len() + 1);
                bytes.truncate(at);
            }
            160..192 => bytes.extend(vec![0xee; usize::from(self.octet() % 64)]),
            _ => {
                for _ in 0..=kind % 4 {
                    let at = usize::from(self.word()) % bytes.len().max(1);
                    let to = self.octet();
                    if let Some(octet) = bytes.get_mut(at) {
                        *octet = to;
                    }
                }
            }
        }
        if kind & 1 == 1 && bytes.first() == Some(&0x45) && bytes.len() >= 20 {
            bytes[10..12].fill(0);
            let sum = checksum::of(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        true
    }
}

impl Iterator for Script<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.rest.is_empty() {
            return None;
        }
        Some(match self.octet() % 16 {
            0 | 1 => Step::Insert {
                prefix: self.octet(),
                next_hop: self.octet(),
            },
            2 => Step::Remove {
                prefix: self.octet(),
            },
            3 | 4 => Step::Publish,
            5 => Step::Wait {
                milliseconds: self.word(),
            },
            6..=10 => self.frames(Direction::Encap),
            _ => self.frames(Direction::Decap),
        })
    }
}
