//! A port that several workers receive on, each by a socket of its own (`SO_REUSEPORT`).
//!
//! Which socket a datagram goes to follows from its source address and source port alone, by a
//! program in the kernel that [`worker_of`] repeats. The source port is the flow's (RFC 7348
//! section 5), so a flow stays with one worker. And a worker can know in advance where what it
//! sends to its own node arrives, which its probes need; the kernel's own choice is keyed with a
//! secret.
//!
//! The first worker binds the port for itself and then opens it for the others, in their order. So
//! a port that another node or tunnel holds is found out, though the sockets of the others would
//! bind to it.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use libc::sock_filter;

use super::{Udp, UdpConfig, UdpError};
use crate::sys::address::Family;
use crate::sys::sockopt::{self, IntOption};

/// One of the workers that share the node's ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// Its number, from 0.
    pub number: u16,
    /// How many there are.
    pub workers: u16,
}

impl Share {
    /// The only worker: it shares nothing.
    pub const ALONE: Self = Self {
        number: 0,
        workers: 1,
    };

    /// Binds the socket of this worker. They have to be called in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [`UdpError`], as [`Udp::bind`]; for the first worker also when the port is taken by anybody.
    pub fn bind(self, config: &UdpConfig) -> Result<Udp, UdpError> {
        let socket = Udp::bind(&UdpConfig {
            reuse_port: self.number > 0,
            ..*config
        })?;
        let failed = |what| {
            move |source| UdpError {
                bind: config.bind,
                what,
                source,
            }
        };
        if self.number == 0 && self.workers > 1 {
            sockopt::set(socket.as_fd(), IntOption::REUSE_PORT, 1)
                .map_err(failed("SO_REUSEPORT"))?;
        }
        if self.number == 1 {
            // The first two make the group that the program belongs to.
            attach_choice(&socket, self.workers).map_err(failed("SO_ATTACH_REUSEPORT_CBPF"))?;
        }
        Ok(socket)
    }

    /// Whether this worker gets what is sent to a shared port from there.
    #[must_use]
    pub fn receives_from(self, source: IpAddr, port: u16) -> bool {
        worker_of(source, port, self.workers) == self.number
    }
}

/// The number of the worker that receives what comes from there.
#[must_use]
pub fn worker_of(source: IpAddr, port: u16, workers: u16) -> u16 {
    let low = match source {
        IpAddr::V4(source) => source.to_bits(),
        IpAddr::V6(source) => {
            let [.., a, b, c, d] = source.octets();
            u32::from_be_bytes([a, b, c, d])
        }
    };
    let mixed = (low ^ u32::from(port)).wrapping_mul(MULTIPLIER) >> MIXED_SHIFT;
    u16::try_from(mixed % u32::from(workers.max(1))).unwrap_or(0)
}

fn attach_choice(socket: &Udp, workers: u16) -> io::Result<()> {
    let [first, second] = match socket.family() {
        // The source port lies behind a header whose length is in its first octet.
        Family::Ipv4 => [
            statement(LOAD_HEADER_LENGTH, NETWORK),
            statement(LOAD_HALF_INDEXED, NETWORK),
        ],
        Family::Ipv6 => [
            statement(LOAD_HALF, NETWORK + IPV6_HEADER_OCTETS),
            // Nothing, to make the two programs of one length.
            statement(XOR_CONSTANT, 0),
        ],
    };
    let source = match socket.family() {
        Family::Ipv4 => IPV4_SOURCE,
        Family::Ipv6 => IPV6_SOURCE_LOW,
    };
    let mut program = [
        first,
        second,
        statement(TO_INDEX, 0),
        statement(LOAD_WORD, NETWORK + source),
        statement(XOR_INDEX, 0),
        statement(MULTIPLY, MULTIPLIER),
        statement(SHIFT_RIGHT, MIXED_SHIFT),
        statement(MODULO, u32::from(workers)),
        statement(RETURN, 0),
    ];
    sockopt::attach_reuseport_choice(socket.as_fd(), &mut program)
}

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// An odd number without a pattern: 2^32 divided by the golden ratio.
const MULTIPLIER: u32 = 0x9e37_79b1;
/// The upper bits of the product depend on all bits of the factor.
const MIXED_SHIFT: u32 = 16;

/// Where loads from the network header begin, `SKF_NET_OFF`; the program's own data begins behind
/// the UDP header.
const NETWORK: u32 = 0xfff0_0000;
const IPV4_SOURCE: u32 = 12;
/// The last four octets of the source address.
const IPV6_SOURCE_LOW: u32 = 8 + 12;
const IPV6_HEADER_OCTETS: u32 = 40;

// linux/bpf_common.h: class, size or operation, mode or source.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_HALF_INDEXED: u16 = 0x48;
/// The index becomes four times the low four bits of the octet.
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const TO_INDEX: u16 = 0x07;
const XOR_INDEX: u16 = 0xac;
const XOR_CONSTANT: u16 = 0xa4;
const MULTIPLY: u16 = 0x24;
const SHIFT_RIGHT: u16 = 0x74;
const MODULO: u16 = 0x94;
const RETURN: u16 = 0x16;

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::udp::{ReceiveRing, SocketCounters};

    const WORKERS: u16 = 3;

    #[test]
    fn a_datagram_reaches_the_worker_that_its_source_says() {
        for local in ["127.0.0.1", "::1"] {
            let local: IpAddr = local.parse().unwrap();
            let first = share(0)
                .bind(&UdpConfig::new(SocketAddr::new(local, 0)))
                .unwrap();
            let bind = first.local_addr();
            let mut sockets = vec![first];
            for number in 1..WORKERS {
                sockets.push(share(number).bind(&UdpConfig::new(bind)).unwrap());
            }
            let mut expected = [0; WORKERS as usize];
            for _ in 0..64 {
                let sender = UdpSocket::bind((local, 0)).unwrap();
                let port = sender.local_addr().unwrap().port();
                let worker = worker_of(local, port, WORKERS);
                assert!(share(worker).receives_from(local, port));
                expected[usize::from(worker)] += 1;
                sender
                    .send_to(&[u8::try_from(worker).unwrap()], bind)
                    .unwrap();
            }
            assert!(expected.iter().all(|count| *count > 0), "{expected:?}");
            for (number, socket) in sockets.iter().enumerate() {
                let arrived = receive(socket, expected[number]);
                let own = u8::try_from(number).unwrap();
                assert_eq!(arrived, vec![own; expected[number]], "{local}");
            }
        }
    }

    #[test]
    fn a_port_that_is_taken_is_found_out_though_it_is_shared() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = share(0).bind(&UdpConfig::new(any)).unwrap();
        let bind = UdpConfig::new(first.local_addr());
        let _second = share(1).bind(&bind).unwrap();
        assert!(share(0).bind(&bind).unwrap_err().is_port_in_use());
        assert!(Share::ALONE.bind(&bind).unwrap_err().is_port_in_use());
        let alone = Share::ALONE.bind(&UdpConfig::new(any)).unwrap();
        let taken = share(1).bind(&UdpConfig::new(alone.local_addr()));
        assert!(taken.unwrap_err().is_port_in_use());
    }

    const fn share(number: u16) -> Share {
        Share {
            number,
            workers: WORKERS,
        }
    }

    /// The first octets of `count` datagrams.
    fn receive(socket: &Udp, count: usize) -> Vec<u8> {
        let (mut ring, mut counters) = (ReceiveRing::new(4), SocketCounters::default());
        let mut rooms = [[0; 16]; 4];
        let mut arrived = Vec::new();
        let started = Instant::now();
        while arrived.len() < count && started.elapsed() < Duration::from_secs(10) {
            let slices = rooms.iter_mut().map(<[u8; 16]>::as_mut_slice);
            let received = socket.recv_batch(&mut ring, slices, &mut counters).unwrap();
            arrived.extend(rooms.iter().take(received).map(|room| room[0]));
        }
        arrived
    }
}
