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
use crate::udp::{TransmitPool, Udp, UdpConfig};

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
    pub(super) fn send(
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

    /// The next thing that the network said.
    pub(super) fn next_error(&mut self) -> Option<IcmpError> {
        for socket in &self.icmp {
            while let Some(octets) = read(socket, &mut self.buffer) {
                let message = self.buffer.get(..octets).unwrap_or_default();
                let is_v4 = socket.domain().is_ok_and(|domain| domain == Domain::IPV4);
                let family = if is_v4 { Family::V4 } else { Family::V6 };
                if let Some(error) = icmp::parse(family, message) {
                    return Some(error);
                }
            }
        }
        for index in 0..self.udp.len() + self.raw.len() {
            let queued = match self.udp.get(index).and_then(|pool| pool.sockets().first()) {
                Some(udp) => udp.next_error(&mut self.buffer),
                None => match self.raw.get(index - self.udp.len()) {
                    Some(raw) => raw.next_error(&mut self.buffer),
                    None => continue,
                },
            };
            if let Ok(Some(queued)) = queued
                && let Some(error) = icmp::queued(&queued, &self.buffer)
            {
                return Some(error);
            }
        }
        None
    }
}

fn read(mut socket: &Socket, buffer: &mut [u8]) -> Option<usize> {
    socket.read(buffer).ok()
}

/// A raw socket that hears the errors of one underlay address, and nothing else where the kernel
/// can tell (IPv4).
fn open_icmp(address: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    if address.is_ipv4() {
        let wanted = [3, 4, 5, 11, 12]
            .into_iter()
            .fold(0, |bits, kind| bits | 1 << kind);
        sockopt::set(socket.as_fd(), IntOption::ICMP_FILTER, !wanted)?;
    }
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    Ok(socket)
}
