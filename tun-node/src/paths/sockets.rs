//! The sockets of the probes: to send by, to hear what the network says about it, and, where the
//! process may, to hear what it says about the data.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use warren_core::encap::Encapsulation;
use warren_core::units::Family;

use super::icmp::{self, IcmpError};
use crate::config::Config;
use crate::raw::{Inner, RawConfig, RawIp};
use crate::sys::sockopt::{self, IntOption};
use crate::udp::{self, TransmitPool, Udp, UdpConfig};

/// All sockets of the thread.
pub(super) struct Sockets {
    udp: Vec<TransmitPool>,
    raw: Vec<RawIp>,
    icmp: Vec<Socket>,
    buffer: Box<[u8]>,
}

impl Sockets {
    pub(super) fn open(config: &Config, seed: u64) -> io::Result<Self> {
        let mut sockets = Self {
            udp: Vec::new(),
            raw: Vec::new(),
            icmp: Vec::new(),
            buffer: vec![0; 2048].into_boxed_slice(),
        };
        // What is received may be sent, too: not only the file names peers.
        let uses_ipip = config.receive.ipip
            || config.peers.iter().any(|peer| {
                let mut all = std::iter::once(&peer.encapsulation).chain(&peer.alternatives);
                all.any(|way| *way == Encapsulation::Ipip)
            });
        for family in [Family::V4, Family::V6] {
            let Some(address) = config.node.underlay(family) else {
                continue;
            };
            // The send buffers have the usual size: what waits for the neighbour of a dead host fills
            // them for three seconds, and probes to all others leave by them, too.
            let udp = UdpConfig {
                receive_buffer_octets: 0,
                ..UdpConfig::new(SocketAddr::new(address, 0))
            };
            // From a port of the same range as data, which leads through the same middleboxes.
            let udp = TransmitPool::bind(&udp, 1, seed).map_err(io::Error::other)?;
            sockets.udp.push(udp);
            if uses_ipip {
                for inner in [Inner::Ipv4, Inner::Ipv6] {
                    let raw = RawConfig {
                        receive_buffer_octets: 0,
                        ..RawConfig::new(address, inner)
                    };
                    let raw = RawIp::open(&raw).map_err(io::Error::other)?;
                    sockopt::attach_drop_all(raw.as_fd())?;
                    sockets.raw.push(raw);
                }
            }
            // Without the capability the error queues are enough, a little later.
            sockets.icmp.extend(open_icmp(address).ok());
        }
        Ok(sockets)
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let udp = self.sockets().map(AsRawFd::as_raw_fd);
        let raw = self.raw.iter().map(AsRawFd::as_raw_fd);
        udp.chain(raw)
            .chain(self.icmp.iter().map(AsRawFd::as_raw_fd))
    }

    fn sockets(&self) -> impl Iterator<Item = &Udp> {
        self.udp.iter().flat_map(TransmitPool::sockets)
    }

    /// Sends `wrapped`, which holds the inner packet `inner`.
    ///
    /// All peers share a socket, and what the network said about one the kernel raises at whatever
    /// is sent next, in place of sending it: an error is the packet's own when it comes twice.
    pub(super) fn send(
        &self,
        inner: &[u8],
        wrapped: &[u8],
        encapsulation: Encapsulation,
        remote: IpAddr,
    ) -> io::Result<()> {
        match self.send_once(inner, wrapped, encapsulation, remote) {
            Err(error) if udp::is_from_network(&error) => {
                self.send_once(inner, wrapped, encapsulation, remote)
            }
            outcome => outcome,
        }
    }

    fn send_once(
        &self,
        inner: &[u8],
        wrapped: &[u8],
        encapsulation: Encapsulation,
        remote: IpAddr,
    ) -> io::Result<()> {
        let no_socket = || io::Error::from(ErrorKind::AddrNotAvailable);
        let port = match encapsulation {
            Encapsulation::Ipip => {
                let is_v6 = inner.first().is_some_and(|octet| octet >> 4 == 6);
                let kind = if is_v6 { Inner::Ipv6 } else { Inner::Ipv4 };
                let mut raw = self.raw.iter();
                let raw = raw
                    .find(|raw| {
                        raw.inner() == kind && raw.local_addr().is_ipv4() == remote.is_ipv4()
                    })
                    .ok_or_else(no_socket)?;
                return raw.send_to(wrapped, remote);
            }
            Encapsulation::Vxlan { port, .. }
            | Encapsulation::VxlanGpe { port, .. }
            | Encapsulation::Geneve { port, .. }
            | Encapsulation::Fou { port }
            | Encapsulation::Gue { port } => port,
        };
        let mut udp = self.sockets();
        let udp = udp
            .find(|udp| udp.local_addr().is_ipv4() == remote.is_ipv4())
            .ok_or_else(no_socket)?;
        udp.send_to(wrapped, SocketAddr::new(remote, port))
    }

    /// Whether all that the network says is heard, so that the error queues say nothing new.
    pub(super) const fn hear_all(&self) -> bool {
        !self.icmp.is_empty()
    }

    /// Takes what the network said, up to `most` messages of each socket, into `errors`; whether
    /// there may be more.
    pub(super) fn take_errors(&mut self, most: usize, errors: &mut Vec<IcmpError>) -> bool {
        let buffer = &mut self.buffer;
        let mut is_more = false;
        for socket in &self.icmp {
            let is_v4 = socket.domain().is_ok_and(|domain| domain == Domain::IPV4);
            let family = if is_v4 { Family::V4 } else { Family::V6 };
            is_more |= repeat(most, || {
                let octets = read(socket, buffer)?;
                let message = buffer.get(..octets).unwrap_or_default();
                errors.extend(icmp::parse(family, message));
                Some(())
            });
        }
        for udp in self.udp.iter().flat_map(TransmitPool::sockets) {
            is_more |= repeat(most, || {
                let queued = udp.next_error(buffer).ok()??;
                errors.extend(icmp::queued(&queued, buffer));
                Some(())
            });
        }
        for raw in &self.raw {
            is_more |= repeat(most, || {
                let queued = raw.next_error(buffer).ok()??;
                errors.extend(icmp::queued(&queued, buffer));
                Some(())
            });
        }
        is_more
    }
}

/// Does it until there is nothing to do; whether it was done `most` times without coming to that.
fn repeat(most: usize, mut act: impl FnMut() -> Option<()>) -> bool {
    (0..most).all(|_| act().is_some())
}

fn read(mut socket: &Socket, buffer: &mut [u8]) -> Option<usize> {
    socket.read(buffer).ok()
}

/// A raw socket that hears the errors of one underlay address, and nothing else: neither echoes nor
/// neighbour discovery.
fn open_icmp(address: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    match address {
        IpAddr::V4(_) => {
            let wanted = [3, 4, 5, 11, 12]
                .into_iter()
                .fold(0, |bits, kind| bits | 1 << kind);
            sockopt::set(socket.as_fd(), IntOption::ICMP_FILTER, !wanted)?;
        }
        IpAddr::V6(_) => sockopt::pass_icmpv6(socket.as_fd(), &[1, 2, 3, 4])?,
    }
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::*;
    use crate::sys::process::{Capability, has_capability};

    #[test]
    fn what_the_network_says_about_one_peer_does_not_cost_another_its_probe() {
        let (one, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
        let receiver = UdpSocket::bind((other, 0)).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let own = UdpConfig::new(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        let sockets = Sockets {
            udp: vec![TransmitPool::bind(&own, 1, 7).unwrap()],
            raw: Vec::new(),
            icmp: Vec::new(),
            buffer: Box::default(),
        };
        let send = |to: Ipv4Addr| sockets.send(&[], b"x", Encapsulation::Fou { port }, to.into());
        // Nobody has the port there, which loopback says at once, and the kernel at the next call.
        send(one).unwrap();
        send(other).unwrap();
        assert_eq!(receiver.recv(&mut [0; 4]).unwrap(), 1);
    }

    #[test]
    fn an_icmpv6_socket_hears_errors_and_no_echoes_and_a_part_of_them_at_a_time() {
        if !has_capability(Capability::NetRaw) {
            eprintln!("skipped: raw sockets need CAP_NET_RAW");
            return;
        }
        let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let icmp = open_icmp(loopback).unwrap();
        let pinger = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        let to = SockAddr::from(SocketAddr::new(loopback, 0));
        pinger.send_to(&[128, 0, 0, 0, 1, 2, 0, 1], &to).unwrap();
        // Nobody has that port: three errors, behind the echo and its answer.
        let sender = UdpSocket::bind((loopback, 0)).unwrap();
        for _ in 0..3 {
            sender.send_to(b"x", (loopback, 4)).unwrap();
        }
        let mut sockets = Sockets {
            udp: Vec::new(),
            raw: Vec::new(),
            icmp: vec![icmp],
            buffer: vec![0; 2048].into_boxed_slice(),
        };
        let mut heard = Vec::new();
        assert!(sockets.take_errors(2, &mut heard));
        assert_eq!(heard.len(), 2, "no read went to an echo");
        assert!(!sockets.take_errors(2, &mut heard));
        assert_eq!(heard.len(), 3);
        for error in &heard {
            assert_eq!(error.to_string(), "port unreachable");
        }
    }
}
