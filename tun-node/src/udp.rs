//! The underlay's UDP sockets: one type, one descriptor, batches of datagrams.
//!
//! A worker receives on a [`Udp`] bound to the encapsulation's port and sends
//! through a [`TransmitPool`]: sockets on different source ports, of which the
//! inner flow's hash picks one, so that routers and receive queues on the way
//! spread the flows (RFC 7348 section 5, RFC 6936). The batch forms are
//! [`Udp::recv_batch`] and [`Udp::send_batch`], over rings that the worker owns
//! ([`ReceiveRing`], [`SendRing`]); nothing is allocated or copied per datagram.
//!
//! What a datagram carries besides octets: the peer, the local address that it
//! hit (so that an answer leaves from there), the TOS octet both ways (ECN,
//! RFC 6040), and the segment size when the kernel cuts or joins trains
//! (`UDP_SEGMENT`, `UDP_GRO`).
//!
//! `SO_REUSEADDR` is set nowhere: for UDP it lets another process of the user
//! take over half of our datagrams. `SO_REUSEPORT` is for workers that share a
//! port by intent.
//!
//! An error that the network reports (ICMP) is queued and at once raised in the
//! next call of either direction, about no datagram of that call. The batch
//! forms count it and go on; [`Udp::next_error`] tells what it was.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys;
pub use crate::sys::address::Family;
pub use crate::sys::control::SendControl;
pub use crate::sys::errqueue::{Origin, QueuedError};
pub use crate::sys::mmsg::{
    Damage, Datagram, ReceiveCounters, ReceiveRing, ReceiveTurn, RingFull, SendRing, SendTurn,
    Transmit,
};
use crate::sys::sockopt::{self, IntOption};

pub mod share;

/// Who decides about the size of outer packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PathMtu {
    /// DF is set and what the kernel has learnt about the path is ignored: a
    /// packet that is too big is dropped on the way and reported
    /// (`IP_PMTUDISC_PROBE`). The engine decides about sizes.
    #[default]
    Probe,
    /// DF is set and the kernel refuses with `EMSGSIZE` what it knows to be too
    /// big for the path (`IP_PMTUDISC_DO`).
    Kernel,
    /// DF is clear: routers and this host fragment (`IP_PMTUDISC_DONT`).
    Fragment,
}

impl PathMtu {
    pub(crate) const fn value(self) -> i32 {
        match self {
            Self::Probe => libc::IP_PMTUDISC_PROBE,
            Self::Kernel => libc::IP_PMTUDISC_DO,
            Self::Fragment => libc::IP_PMTUDISC_DONT,
        }
    }
}

/// What a socket is to be like.
#[derive(Clone, Copy, Debug)]
pub struct UdpConfig {
    /// Address and port to receive on; port 0 for the kernel's choice.
    pub bind: SocketAddr,
    /// The only peer, when there is one: the kernel then looks up the route once.
    pub connect: Option<SocketAddr>,
    /// Wanted receive buffer, octets. The kernel accounts about twice a
    /// datagram's size.
    pub receive_buffer_octets: u32,
    /// Wanted send buffer, octets.
    pub send_buffer_octets: u32,
    /// DF policy.
    pub path_mtu: PathMtu,
    /// Whether datagrams of one flow arrive joined. Slices to receive into must
    /// then hold 64 KiB.
    pub gro: bool,
    /// Whether the UDP checksum is sent as zero and, over IPv6, taken as zero
    /// (RFC 6935, for tunnels only). Excludes [`SendControl::segment_octets`].
    pub zero_checksum: bool,
    /// Whether several sockets, one per worker, share the port.
    pub reuse_port: bool,
}

impl UdpConfig {
    /// Bound to `bind`, DF set, checksums on, 16 MiB of buffer to receive into, which is some 20 ms of
    /// packets of 1500 octets at 500,000 a second, and 4 to send from.
    #[must_use]
    pub const fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            connect: None,
            receive_buffer_octets: 16 << 20,
            send_buffer_octets: 4 << 20,
            path_mtu: PathMtu::Probe,
            gro: false,
            zero_checksum: false,
            reuse_port: false,
        }
    }
}

/// What became of datagrams to send, and what the network reported. Kept by the
/// worker, not by the socket: several sockets may share one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SocketCounters {
    /// Messages that the kernel took for sending; a train counts once.
    pub sent: u64,
    /// Messages given up because the send buffer was full.
    pub buffer_full: u64,
    /// Messages that the kernel refused as too big (`EMSGSIZE`).
    pub too_big: u64,
    /// Messages that the kernel refused for another reason.
    pub refused: u64,
    /// Errors that the network reported for earlier datagrams.
    pub reported: u64,
}

/// A nonblocking UDP socket of the underlay.
#[derive(Debug)]
pub struct Udp {
    socket: Socket,
    family: Family,
    local: SocketAddr,
}

impl Udp {
    /// Opens and binds a socket. An IPv6 socket is for IPv6 only.
    ///
    /// # Errors
    ///
    /// [`UdpError`] with the option or the address that failed; see
    /// [`UdpError::is_port_in_use`].
    pub fn bind(config: &UdpConfig) -> Result<Self, UdpError> {
        let family = Family::of(config.bind.ip());
        let failed = |what| {
            move |source| UdpError {
                bind: config.bind,
                what,
                source,
            }
        };
        let domain = match family {
            Family::Ipv4 => Domain::IPV4,
            Family::Ipv6 => Domain::IPV6,
        };
        let kind = Type::DGRAM.nonblocking();
        let socket = Socket::new(domain, kind, Some(Protocol::UDP)).map_err(failed("socket"))?;
        if family == Family::Ipv6 {
            socket.set_only_v6(true).map_err(failed("IPV6_V6ONLY"))?;
        }
        for (what, option, value) in options(family, config) {
            sockopt::set(socket.as_fd(), option, value).map_err(failed(what))?;
        }
        grow_buffers(
            &socket,
            config.receive_buffer_octets,
            config.send_buffer_octets,
        )
        .map_err(failed("buffer size"))?;
        socket
            .bind(&SockAddr::from(config.bind))
            .map_err(failed("bind"))?;
        if let Some(peer) = config.connect {
            socket
                .connect(&SockAddr::from(peer))
                .map_err(failed("connect"))?;
        }
        let local = socket
            .local_addr()
            .map(|local| local.as_socket().unwrap_or(config.bind))
            .map_err(failed("local address"))?;
        Ok(Self {
            socket,
            family,
            local,
        })
    }

    /// Receives up to a ring of datagrams into `slices`, one each, without
    /// waiting; [`ReceiveRing::received`] has them. Returns 0 when nothing is
    /// queued: the event loop may then wait.
    ///
    /// # Errors
    ///
    /// Only those that make the socket useless (`EBADF`, `ENOMEM`); what the
    /// network reported is counted and passed over.
    pub fn recv_batch<'b>(
        &self,
        ring: &mut ReceiveRing,
        slices: impl IntoIterator<Item = &'b mut [u8]>,
        counters: &mut SocketCounters,
    ) -> io::Result<usize> {
        receive(self.socket.as_fd(), ring.turn(slices), counters)
    }

    /// Begins to gather datagrams to send through this socket, or through
    /// another one of its family.
    pub fn turn<'r, 'b>(&self, ring: &'r mut SendRing) -> SendTurn<'r, 'b> {
        ring.turn(self.family)
    }

    /// Sends what the turn has gathered, without waiting, in as few calls as
    /// possible. Afterwards nothing is pending: a datagram that could not leave
    /// is counted, and `refused` hears its index in the turn and why.
    pub fn send_batch(
        &self,
        turn: &mut SendTurn<'_, '_>,
        counters: &mut SocketCounters,
        refused: impl FnMut(usize, &io::Error),
    ) {
        send(self.socket.as_fd(), turn, counters, refused);
    }

    /// Sends one datagram: `sendmsg` without a ring, for probes and tests.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn send_to(&self, payload: &[u8], peer: SocketAddr) -> io::Result<()> {
        self.socket
            .send_to(payload, &SockAddr::from(peer))
            .map(drop)
    }

    /// Takes the oldest entry off the error queue, with the front of the payload
    /// concerned in `quoted`; `None` when it is empty.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn next_error(&self, quoted: &mut [u8]) -> io::Result<Option<QueuedError>> {
        sys::errqueue::receive(self.socket.as_fd(), quoted)
    }

    /// The address and port that it is bound to.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The receive buffer as the kernel accounts it, octets: twice what was asked
    /// for, or less where `net.core.rmem_max` is in the way.
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

    /// Whether the kernel cuts trains for us (`UDP_SEGMENT`, kernel 4.18).
    #[must_use]
    pub fn has_segmentation(&self) -> bool {
        sockopt::get(self.socket.as_fd(), IntOption::UDP_SEGMENT).is_ok()
    }

    /// Turns the joining of arriving datagrams on or off.
    ///
    /// # Errors
    ///
    /// `ENOPROTOOPT` before kernel 5.0.
    pub fn set_gro(&self, on: bool) -> io::Result<()> {
        sockopt::set(self.socket.as_fd(), IntOption::UDP_GRO, i32::from(on))
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Udp {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Sockets that only send, each from another port of the dynamic range
/// 49152..=65535, so that the outer source port tells flows apart.
///
/// What arrives on their ports is dropped before it is queued; network errors
/// still reach their error queues, which the owner empties with
/// [`TransmitPool::sockets`].
#[derive(Debug)]
pub struct TransmitPool {
    sockets: Vec<Udp>,
}

impl TransmitPool {
    /// Binds `count` sockets (1 to 4096) as `config` says, but to ports that
    /// `seed` spreads over the range. A port in use is passed over.
    ///
    /// `config.bind` is the source address; its port, `gro` and `reuse_port` are
    /// not used.
    ///
    /// # Errors
    ///
    /// [`UdpError`] when a socket cannot be made for another reason, or no port
    /// is left.
    pub fn bind(config: &UdpConfig, count: usize, seed: u64) -> Result<Self, UdpError> {
        Self::bind_first(config, count, seed, |_| true)
    }

    /// As [`bind`](Self::bind), with a first socket whose port `may_be_first`.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub fn bind_first(
        config: &UdpConfig,
        count: usize,
        seed: u64,
        may_be_first: impl Fn(u16) -> bool,
    ) -> Result<Self, UdpError> {
        let count = count.clamp(1, POOL_MAX);
        let mut sockets = Vec::with_capacity(count);
        let mut last = None;
        for port in port_order(seed) {
            if sockets.len() == count {
                break;
            }
            if sockets.is_empty() && !may_be_first(port) {
                continue;
            }
            let bind = SocketAddr::new(config.bind.ip(), port);
            let config = UdpConfig {
                bind,
                receive_buffer_octets: 0,
                gro: false,
                reuse_port: false,
                ..*config
            };
            match Udp::bind(&config) {
                Ok(socket) => {
                    sockopt::attach_drop_all(socket.as_fd()).map_err(|source| UdpError {
                        bind,
                        what: "SO_ATTACH_FILTER",
                        source,
                    })?;
                    sockets.push(socket);
                }
                Err(error) if error.is_port_in_use() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        match last {
            Some(error) if sockets.len() < count => Err(error),
            _ => Ok(Self { sockets }),
        }
    }

    /// The index of the socket for a flow: the same for the same hash, and all
    /// sockets equally often.
    #[must_use]
    pub fn index(&self, flow_hash: u32) -> usize {
        let scaled = (u64::from(flow_hash) * self.sockets.len() as u64) >> 32;
        usize::try_from(scaled).unwrap_or(0)
    }

    /// The socket that stands for `port`, a source port of the dynamic range that
    /// was made of a flow's hash.
    #[must_use]
    pub fn pick_by_port(&self, port: u16) -> &Udp {
        let offset = u32::from(port & !FIRST_PORT);
        // The 14 bits that count, moved to the top of the 32.
        self.pick(offset << 18)
    }

    /// The socket for a flow.
    #[must_use]
    pub fn pick(&self, flow_hash: u32) -> &Udp {
        self.sockets.get(self.index(flow_hash)).expect(
            "a 32-bit hash times the length, over 2^32, is below the length, which is not 0",
        )
    }

    /// All sockets, in the order of [`Self::index`].
    #[must_use]
    pub fn sockets(&self) -> &[Udp] {
        &self.sockets
    }
}

/// A socket could not be made: which option or step, on which address.
#[derive(Debug, thiserror::Error)]
#[error("UDP socket on {bind}: {what}")]
pub struct UdpError {
    bind: SocketAddr,
    what: &'static str,
    source: io::Error,
}

impl UdpError {
    /// Another socket holds the port.
    #[must_use]
    pub fn is_port_in_use(&self) -> bool {
        self.source.kind() == ErrorKind::AddrInUse
    }

    /// The host does not have the address.
    #[must_use]
    pub fn is_foreign_address(&self) -> bool {
        self.source.kind() == ErrorKind::AddrNotAvailable
    }
}

/// Receives, passing over what the network reported about earlier datagrams.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    mut turn: ReceiveTurn<'_, '_>,
    counters: &mut SocketCounters,
) -> io::Result<usize> {
    loop {
        match turn.receive(socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if is_from_network(&error) => counters.reported += 1,
            outcome => return outcome,
        }
    }
}

/// Sends all that is pending, counting what cannot leave.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    turn: &mut SendTurn<'_, '_>,
    counters: &mut SocketCounters,
    mut refused: impl FnMut(usize, &io::Error),
) {
    // The message that failed last and how: an error that strikes it a second time
    // is its own, one that does not was raised for an earlier message.
    let mut suspect: Option<(usize, Option<i32>)> = None;
    // sendmmsg that stops at a message which is not its first leaves that
    // message's error pending on the socket, so it is raised once more later.
    let mut echo = None;
    while turn.pending() > 0 {
        let error = match turn.send(socket) {
            Ok(sent) => {
                counters.sent += sent as u64;
                if let Some((_, errno)) = suspect.take()
                    && echo.take() != Some(errno)
                {
                    counters.reported += 1;
                }
                continue;
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::WouldBlock {
            counters.buffer_full += turn.pending() as u64;
            while turn.pending() > 0 {
                refused(turn.next(), &error);
                turn.skip();
            }
            return;
        }
        let errno = error.raw_os_error();
        if is_from_network(&error) && suspect != Some((turn.next(), errno)) {
            suspect = Some((turn.next(), errno));
            continue;
        }
        match errno {
            Some(libc::EMSGSIZE) => counters.too_big += 1,
            Some(libc::ENOBUFS) => counters.buffer_full += 1,
            _ => counters.refused += 1,
        }
        refused(turn.next(), &error);
        turn.skip();
        suspect = None;
        echo = Some(errno);
    }
}

/// Sets the buffers beyond the administrator's limit where that is allowed, up
/// to it otherwise.
pub(crate) fn grow_buffers(socket: &Socket, receive: u32, send: u32) -> io::Result<()> {
    let wanted = [
        (
            receive,
            IntOption::RECEIVE_BUFFER_FORCE,
            IntOption::RECEIVE_BUFFER,
        ),
        (send, IntOption::SEND_BUFFER_FORCE, IntOption::SEND_BUFFER),
    ];
    for (octets, force, plain) in wanted {
        let octets = i32::try_from(octets).unwrap_or(i32::MAX);
        if sockopt::set(socket.as_fd(), force, octets).is_err() {
            sockopt::set(socket.as_fd(), plain, octets)?;
        }
    }
    Ok(())
}

/// Whether an error is what the kernel makes of an ICMP message (`icmp_err_convert`
/// and its IPv6 twin), and so may be about an earlier datagram.
pub(crate) fn is_from_network(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENOPROTOOPT
                | libc::ECONNREFUSED
                | libc::EMSGSIZE
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EACCES
                | libc::EPROTO
        )
    )
}

/// The options of a socket, in the order in which they are set.
fn options(
    family: Family,
    config: &UdpConfig,
) -> impl Iterator<Item = (&'static str, IntOption, i32)> {
    let zero = config.zero_checksum;
    let (ipv4, ipv6) = (family == Family::Ipv4, family == Family::Ipv6);
    [
        (true, "IP_RECVTOS", IntOption::receive_tos(family), 1),
        (
            true,
            "IP_PKTINFO",
            IntOption::receive_packet_info(family),
            1,
        ),
        (true, "IP_RECVERR", IntOption::receive_errors(family), 1),
        (
            true,
            "IP_MTU_DISCOVER",
            IntOption::mtu_discover(family),
            config.path_mtu.value(),
        ),
        (config.gro, "UDP_GRO", IntOption::UDP_GRO, 1),
        (config.reuse_port, "SO_REUSEPORT", IntOption::REUSE_PORT, 1),
        (zero && ipv4, "SO_NO_CHECK", IntOption::NO_CHECKSUM_IPV4, 1),
        (
            zero && ipv6,
            "UDP_NO_CHECK6_TX",
            IntOption::NO_CHECKSUM_IPV6_SEND,
            1,
        ),
        (
            zero && ipv6,
            "UDP_NO_CHECK6_RX",
            IntOption::NO_CHECKSUM_IPV6_RECEIVE,
            1,
        ),
    ]
    .into_iter()
    .filter(|(wanted, ..)| *wanted)
    .map(|(_, what, option, value)| (what, option, value))
}

/// Every port of the dynamic range once, in an order that `seed` chooses.
fn port_order(seed: u64) -> impl Iterator<Item = u16> {
    // The range has 2^14 ports, so a step that is odd visits all of them.
    let start = seed & PORT_MASK;
    let step = ((seed >> 14) & PORT_MASK) | 1;
    (0..=PORT_MASK).map(move |i| {
        let offset = start.wrapping_add(i.wrapping_mul(step)) & PORT_MASK;
        u16::try_from(offset).map_or(FIRST_PORT, |offset| FIRST_PORT | offset)
    })
}

/// The first port of the dynamic range, RFC 6335 section 6.
const FIRST_PORT: u16 = 49152;

/// Bits that count within the dynamic range: 49152 is 0xc000.
const PORT_MASK: u64 = 0x3fff;

/// The most sockets of a pool: a quarter of the range.
const POOL_MAX: usize = 4096;

#[cfg(test)]
mod tests;
