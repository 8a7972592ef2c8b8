//! Raw IP sockets for IP-in-IP: protocol 4 (RFC 2003, RFC 2473) and protocol 41
//! (RFC 4213, RFC 2473), over an IPv4 or an IPv6 underlay.
//!
//! A [`RawIp`] carries inner packets without a UDP header between: the kernel
//! writes and reads the outer IP header, we see the inner packet from its first
//! octet on. It works like [`crate::udp::Udp`], over the same rings, with port 0
//! in every address.
//!
//! Over IPv4 the kernel hands the outer header along with each packet; it lands
//! in the ring, not in the caller's slice. Over IPv6 it keeps the header to
//! itself and tells what was in it by control messages. Both ways the caller gets
//! source, destination, TOS and TTL.
//!
//! The kernel reassembles outer fragments before we see them, and may join
//! consecutive TCP packets of an inner flow: slices of 64 KiB take whatever comes.
//!
//! Opening a raw socket needs `CAP_NET_RAW` over the network namespace's owner.
//! Where that is missing, FOU carries the same inner packets in UDP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub mod offload;
pub mod rows;

use crate::sys;
use crate::sys::sockopt::{self, IntOption};
use crate::udp::{
    self, Damage, Family, PathMtu, QueuedError, ReceiveRing, SendRing, SendTurn, SocketCounters,
};

/// What is inside, which is the outer header's protocol number.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Inner {
    /// IPv4 packets, protocol 4.
    Ipv4,
    /// IPv6 packets, protocol 41.
    Ipv6,
}

impl Inner {
    /// The protocol number.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 41,
        }
    }
}

/// What a socket is to be like.
#[derive(Clone, Copy, Debug)]
pub struct RawConfig {
    /// Underlay address to receive on and send from; unspecified for all of the
    /// family.
    pub bind: IpAddr,
    /// What it carries.
    pub inner: Inner,
    /// Wanted receive buffer, octets.
    pub receive_buffer_octets: u32,
    /// Wanted send buffer, octets.
    pub send_buffer_octets: u32,
    /// DF policy.
    pub path_mtu: PathMtu,
}

impl RawConfig {
    /// Bound to `bind`, DF set, 16 MiB of buffer to receive into and 4 to send from.
    #[must_use]
    pub const fn new(bind: IpAddr, inner: Inner) -> Self {
        Self {
            bind,
            inner,
            receive_buffer_octets: 16 << 20,
            send_buffer_octets: SEND_BUFFER_OCTETS,
            path_mtu: PathMtu::Probe,
        }
    }
}

/// A nonblocking raw socket of the underlay.
#[derive(Debug)]
pub struct RawIp {
    socket: Socket,
    family: Family,
    inner: Inner,
    bind: IpAddr,
}

impl RawIp {
    /// Opens and binds a socket.
    ///
    /// # Errors
    ///
    /// [`RawError::NotPermitted`] without `CAP_NET_RAW`; [`RawError::Option`] with
    /// the option or step that failed.
    pub fn open(config: &RawConfig) -> Result<Self, RawError> {
        let RawConfig { bind, inner, .. } = *config;
        let family = Family::of(bind);
        let failed = |what| {
            move |source| RawError::Option {
                protocol: inner.protocol(),
                bind,
                what,
                source,
            }
        };
        let domain = match family {
            Family::Ipv4 => Domain::IPV4,
            Family::Ipv6 => Domain::IPV6,
        };
        let protocol = Protocol::from(i32::from(inner.protocol()));
        let socket =
            Socket::new(domain, Type::RAW.nonblocking(), Some(protocol)).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => RawError::NotPermitted {
                        protocol: inner.protocol(),
                    },
                    _ => failed("socket")(source),
                }
            })?;
        let mut options = vec![("IP_RECVERR", IntOption::receive_errors(family), 1)];
        if family == Family::Ipv6 {
            // Of IPv4 the outer header says all that, and each costs something with every packet.
            options.extend([
                ("IPV6_RECVTCLASS", IntOption::receive_tos(family), 1),
                (
                    "IPV6_RECVPKTINFO",
                    IntOption::receive_packet_info(family),
                    1,
                ),
                ("IPV6_RECVHOPLIMIT", IntOption::receive_ttl(family), 1),
            ]);
        }
        let path_mtu = config.path_mtu.value();
        options.push(("IP_MTU_DISCOVER", IntOption::mtu_discover(family), path_mtu));
        for (what, option, value) in options {
            sockopt::set(socket.as_fd(), option, value).map_err(failed(what))?;
        }
        let (receive, send) = (config.receive_buffer_octets, config.send_buffer_octets);
        udp::grow_buffers(&socket, receive, send).map_err(failed("buffer size"))?;
        let address = SockAddr::from(SocketAddr::new(bind, 0));
        socket.bind(&address).map_err(failed("bind"))?;
        Ok(Self {
            socket,
            family,
            inner,
            bind,
        })
    }

    /// Receives up to a ring of packets into `slices`, one each, without waiting;
    /// [`ReceiveRing::received`] has them, their ranges covering the inner packet.
    /// Returns 0 when nothing is queued: the event loop may then wait.
    ///
    /// # Errors
    ///
    /// As [`crate::udp::Udp::recv_batch`].
    pub fn recv_batch<'b>(
        &self,
        ring: &mut ReceiveRing,
        slices: impl IntoIterator<Item = &'b mut [u8]>,
        counters: &mut SocketCounters,
    ) -> io::Result<usize> {
        let turn = ring.turn(slices);
        match self.family {
            Family::Ipv4 => {
                let received = udp::receive(self.socket.as_fd(), turn.prefixed(), counters)?;
                strip_options(ring);
                Ok(received)
            }
            Family::Ipv6 => udp::receive(self.socket.as_fd(), turn, counters),
        }
    }

    /// Sends one inner packet without a ring, for probes.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn send_to(&self, packet: &[u8], peer: IpAddr) -> io::Result<()> {
        let peer = SockAddr::from(SocketAddr::new(peer, 0));
        self.socket.send_to(packet, &peer).map(drop)
    }

    /// Begins to gather packets to send through this socket.
    pub fn turn<'r, 'b>(&self, ring: &'r mut SendRing) -> SendTurn<'r, 'b> {
        ring.turn(self.family)
    }

    /// Sends what the turn has gathered, each message an inner packet, as
    /// [`crate::udp::Udp::send_batch`] does.
    pub fn send_batch(
        &self,
        turn: &mut SendTurn<'_, '_>,
        counters: &mut SocketCounters,
        refused: impl FnMut(usize, &io::Error),
    ) {
        udp::send(self.socket.as_fd(), turn, counters, refused);
    }

    /// Takes the oldest entry off the error queue, with the front of the packet
    /// concerned in `quoted`; `None` when it is empty.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn next_error(&self, quoted: &mut [u8]) -> io::Result<Option<QueuedError>> {
        sys::errqueue::receive(self.socket.as_fd(), quoted)
    }

    /// Makes a socket that only sends: what arrives for its protocol is not delivered to it, nor
    /// what the network reports, which a socket that receives hears of.
    ///
    /// Connected to this host's own address, it is none for a packet of anybody else; a filter
    /// alone comes too late, after the kernel has made a copy of each packet for the socket.
    ///
    /// # Errors
    ///
    /// [`RawError::Option`].
    pub fn receive_nothing(&self) -> Result<(), RawError> {
        let failed = |what| {
            move |source| RawError::Option {
                protocol: self.inner.protocol(),
                bind: self.bind,
                what,
                source,
            }
        };
        // For packets from the own address, and where the socket is bound to all of them.
        sockopt::attach_drop_all(self.socket.as_fd()).map_err(failed("SO_ATTACH_FILTER"))?;
        if self.bind.is_unspecified() {
            return Ok(());
        }
        let own = SockAddr::from(SocketAddr::new(self.bind, 0));
        self.socket.connect(&own).map_err(failed("connect"))
    }

    /// The receive buffer as the kernel accounts it, octets.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn receive_buffer_octets(&self) -> io::Result<usize> {
        self.socket.recv_buffer_size()
    }

    /// The send buffer as the kernel accounts it, octets.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn send_buffer_octets(&self) -> io::Result<usize> {
        self.socket.send_buffer_size()
    }

    /// The underlay address that it is bound to.
    #[must_use]
    pub const fn local_addr(&self) -> IpAddr {
        self.bind
    }

    /// The underlay's family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// What it carries.
    #[must_use]
    pub const fn inner(&self) -> Inner {
        self.inner
    }
}

impl AsFd for RawIp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for RawIp {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Why there is no raw socket.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The process may not open raw sockets.
    #[error(
        "raw IP-in-IP (protocol {protocol}) needs the capability CAP_NET_RAW, which this process \
         does not have: grant it (`setcap cap_net_raw+ep`), or use the encapsulation `fou`, which \
         carries the same packets in UDP and needs no capability"
    )]
    NotPermitted {
        /// The protocol number.
        protocol: u8,
    },
    /// An option or step failed.
    #[error("raw socket for protocol {protocol} on {bind}: {what}")]
    Option {
        /// The protocol number.
        protocol: u8,
        /// The address.
        bind: IpAddr,
        /// The option or step.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The send buffer that is asked for, octets, where nobody says otherwise.
pub const SEND_BUFFER_OCTETS: u32 = 4 << 20;

/// Moves each range past the options of the outer IPv4 header, which follow the
/// 20 octets that the ring has kept, and takes TOS, TTL and destination from the header.
fn strip_options(ring: &mut ReceiveRing) {
    for (outcome, header) in ring.received_prefixed() {
        let Ok(datagram) = outcome else {
            continue;
        };
        let options = usize::from(header[0] & 0x0f)
            .saturating_mul(4)
            .saturating_sub(header.len());
        if options > datagram.range.end {
            *outcome = Err(Damage::Truncated);
            continue;
        }
        datagram.range.start = options;
        datagram.segment_octets = rows::segment_octets(header);
        datagram.tos = header[1];
        datagram.ttl = Some(header[8]);
        datagram.local = header
            .last_chunk::<4>()
            .map(|&destination| destination.into());
    }
}

#[cfg(test)]
mod tests;
