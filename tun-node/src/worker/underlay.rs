//! The underlay sockets of a worker: which there are, reading them into a batch, sending a batch by
//! its verdicts.
//!
//! Receiving: one UDP socket for each underlay address and encapsulation port, and one raw socket for
//! each underlay address and protocol (4 and 41) where IP in IP is received or sent. Of several
//! workers each has sockets of its own on the same UDP ports ([`share`](crate::udp::share)); the raw
//! sockets of all but the first only send, for the kernel would give each a copy. A worker that
//! carries one direction has what that needs: none to receive, or one of the pool, for probes. Sending: the
//! raw sockets, and for UDP a pool of sockets for each underlay address, each on a source port of
//! its own, because the kernel writes the source port and the port is what spreads flows. Which one
//! is decided by the port that the engine computed from the flow.
//!
//! Whether the outer packet may be fragmented is a matter of the socket, not of the message: what
//! may be leaves by sockets of its own, one message each (segments of a train never are fragmented).
//!
//! What the network reports (ICMP) is counted, and the error queues are emptied at once: they are
//! charged to the socket's buffer.
//!
//! Frames that leave by the same socket leave together, in their order ([`train`](crate::datapath::train)
//! says how); so the frames of a flow are never reordered. What the kernel does not take is dropped and counted; nobody waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use tracing::info;
use warren_core::batch::{Batch, Link, Transport};
use warren_core::gso::{Offload, SegmentKind};
use warren_core::units::Family;
use warren_core::verdict::{DropReason, Verdict};
use warren_core::wire::ip_protocol;

use crate::config::Config;
use crate::counters::{SocketReport, UnderlayCounters};
use crate::raw::offload::{self, RawOffload};
use crate::raw::rows::Rows;
use crate::raw::{Inner, RawIp, SEND_BUFFER_OCTETS};
use crate::sys::sockopt;
use crate::udp::share::Share;
use crate::udp::{ReceiveRing, SocketCounters, TransmitPool, Udp};
use crate::worker::Duty;

mod error;
mod follow;
mod sender;
mod wanted;
mod ways;

pub use error::UnderlayError;
use sender::Sender;
use wanted::{raw_config, sends_by_udp, udp_config, udp_ports};
use ways::Ways;

/// All underlay sockets of one worker.
#[derive(Debug)]
pub(super) struct Underlay {
    receivers: Vec<Receiver>,
    ways: Ways,
    share: Share,
    duty: Duty,
    receive_ring: ReceiveRing,
    send: Sender,
    rows: Arc<Rows>,
    counters: CountersByKind,
}

impl Underlay {
    /// Opens the sockets that `config` asks for. `seed` spreads the source ports of the pools.
    /// To be called by the workers in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [`UnderlayError`]: an address is not this host's, a port is taken, a capability is missing.
    pub(super) fn open(
        config: &Config,
        share: Share,
        duty: Duty,
        seed: u64,
        rows: Arc<Rows>,
    ) -> Result<Self, UnderlayError> {
        let frames = usize::from(config.worker.batch);
        let mut underlay = Self {
            receivers: Vec::new(),
            ways: Ways::default(),
            share,
            duty,
            receive_ring: ReceiveRing::new(RAW_RECEIVES.min(frames)),
            send: Sender::new(frames, false),
            rows,
            counters: CountersByKind::default(),
        };
        underlay.extend(config, seed)?;
        // One answer for all sockets: segmentation is a matter of the kernel, not of the socket.
        let pools = underlay.ways.pools.iter().flatten();
        let segmentation = config.worker.gso
            && pools
                .flat_map(TransmitPool::sockets)
                .all(Udp::has_segmentation);
        underlay.send = Sender::new(frames, segmentation);
        Ok(underlay)
    }

    /// Opens those sockets that `config` asks for and that are not open. None is closed: what the
    /// tables do not name is not taken from it. Every one is tried, whatever became of the others.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), of all that failed; those that were opened stay.
    pub(super) fn extend(&mut self, config: &Config, seed: u64) -> Result<(), UnderlayError> {
        let mut failed = Vec::new();
        for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let Some(address) = config.node.underlay(family) else {
                continue;
            };
            for port in self.received_ports(config) {
                let bind = SocketAddr::new(address, port);
                if self.receivers.iter().any(|there| there.is_udp_at(bind)) {
                    continue;
                }
                let socket = self.share.bind(&udp_config(config, bind));
                match socket.map_err(UnderlayError::udp(bind)) {
                    Ok(socket) => self.receivers.push(Receiver::new(Socket::Udp(socket))),
                    Err(error) => failed.push(error),
                }
            }
            if sends_by_udp(config)
                && let Some(pool @ None) = self.ways.pools.get_mut(index)
            {
                let bind = SocketAddr::new(address, 0);
                let count = match self.duty {
                    Duty::Both | Duty::Encap => usize::from(config.worker.source_ports),
                    // For probes.
                    Duty::Decap => 1,
                };
                // Probes leave by the first, and are to come back to this worker.
                let opened =
                    TransmitPool::bind_first(&udp_config(config, bind), count, seed, |port| {
                        self.share.receives_from(address, port)
                    });
                match opened.map_err(UnderlayError::udp(bind)) {
                    Ok(opened) => *pool = Some(opened),
                    Err(error) => failed.push(error),
                }
            }
            let has_raw = self.receivers.iter().any(|there| there.is_raw_at(address));
            if config.uses_ipip() && !has_raw {
                match self.open_raw(config, address) {
                    Ok(raws) => self.receivers.extend(raws),
                    Err(error) => failed.push(error),
                }
            }
        }
        failed.extend(self.ways.open_fragmenting(config, seed));
        UnderlayError::all(failed)
    }

    /// Opens the raw sockets of an address: both or none.
    fn open_raw(&self, config: &Config, address: IpAddr) -> Result<[Receiver; 2], UnderlayError> {
        let open = |inner| {
            let mut raw = raw_config(config, address, inner);
            if !self.receives_raw() {
                raw.receive_buffer_octets = 0;
            }
            let raw = RawIp::open(&raw)?;
            if !self.receives_raw() {
                raw.receive_nothing()?;
            }
            Ok::<_, UnderlayError>(Receiver::new(Socket::Raw(raw)))
        };
        Ok([open(Inner::Ipv4)?, open(Inner::Ipv6)?])
    }

    /// Lets the kernel cut what leaves in IP, where raw sockets are open, `config` wants it and the
    /// kernel can: through the device named `device`. `seed` makes the mark of such packets.
    pub(super) fn offload_raw(&mut self, config: &Config, device: &str, seed: u64) {
        let has_raw = self.has(Kind::Ip4) || self.has(Kind::Ip6);
        let wanted = config.worker.offloads_ipip() && self.duty.encaps();
        if !wanted || !has_raw || self.send.offload.is_some() {
            return;
        }
        let octets = config.worker.send_buffer_octets;
        let octets = octets.unwrap_or(SEND_BUFFER_OCTETS);
        let rows = Arc::clone(&self.rows);
        match RawOffload::open(device, offload::mark(seed), octets, rows) {
            Ok(offload) => self.send.offload = Some(offload),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                info!(error, "IP-in-IP leaves packet by packet");
            }
        }
    }

    /// The receiving sockets' descriptors; their order is that of [`Self::set_readable`].
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.receivers.iter().map(Receiver::descriptor)
    }

    /// Notes that the event loop found socket `index` readable.
    pub(super) fn set_readable(&mut self, index: usize) {
        if let Some(receiver) = self.receivers.get_mut(index) {
            receiver.readable = true;
        }
    }

    /// Whether some socket may have datagrams.
    #[must_use]
    pub(super) fn is_readable(&self) -> bool {
        self.receivers.iter().any(|receiver| receiver.readable)
    }

    /// The most messages that one call of [`receive`](Self::receive) takes, each of up to 64 KiB:
    /// what its batch must have room for.
    #[must_use]
    pub(super) fn receives(&self) -> usize {
        let most = self.receivers.iter().map(Receiver::receives).max();
        most.unwrap_or(RECEIVES)
    }

    /// How many receiving sockets there are.
    #[must_use]
    pub(super) const fn sockets(&self) -> usize {
        self.receivers.len()
    }

    /// Reads socket `index` into `batch`, whose frames are forgotten, as much as fits, if it is
    /// readable.
    ///
    /// `is_probe` sees each datagram; those that it takes get a verdict at once, so that the
    /// engine passes them over, and are not counted as received.
    pub(super) fn receive(
        &mut self,
        index: usize,
        batch: &mut Batch,
        mut is_probe: impl FnMut(&[u8], &Link) -> bool,
    ) {
        batch.clear();
        let receives_raw = self.receives_raw();
        let Some(receiver) = self.receivers.get_mut(index).filter(|r| r.readable) else {
            return;
        };
        // One that only sends is never read: who carries one direction has no room to read into.
        if !receives_raw && matches!(receiver.socket, Socket::Raw(_)) {
            receiver.readable = false;
            return;
        }
        let counters = self.counters.of(receiver.kind);
        let ring = &mut self.receive_ring;
        let wanted = receiver.receives().min(ring.capacity());
        let slices = batch.vacancies(wanted);
        let mut network = SocketCounters::default();
        let outcome = match &receiver.socket {
            Socket::Udp(socket) => socket.recv_batch(ring, slices, &mut network),
            Socket::Raw(socket) => socket.recv_batch(ring, slices, &mut network),
        };
        counters.network_errors += network.reported;
        if network.reported > 0 {
            receiver.socket.forget_errors();
        }
        let received = match outcome {
            Ok(received) => received,
            Err(error) => {
                counters.receive_errors.count(&error, 1);
                0
            }
        };
        // Fewer than asked for: the queue was seen empty, and what comes later is a new event.
        receiver.readable = received >= wanted;
        if received == 0 {
            return;
        }
        for (index, outcome) in ring.received().iter().enumerate() {
            let Ok(datagram) = outcome else {
                counters.receive_damaged += 1;
                continue;
            };
            let link = Link {
                local: datagram.local.unwrap_or_else(|| receiver.local.ip()),
                remote: datagram.peer.ip(),
                transport: receiver.transport(datagram.peer.port()),
                traffic_class: datagram.tos,
                hop_limit: datagram.ttl.unwrap_or_default(),
                dont_fragment: false,
            };
            let before = batch.len();
            let octets = datagram.range.len();
            // Trains are of UDP; what a raw socket has is one packet, however it is to be cut.
            let is_raw = matches!(receiver.socket, Socket::Raw(_));
            let train = datagram.segment_octets.filter(|_| !is_raw);
            if batch.commit_vacancy(index, datagram.range.clone(), train, link) == 0 {
                counters.receive_damaged += 1;
                continue;
            }
            let may_be_uncut = if is_raw {
                self.rows.are_taken()
            } else {
                batch.len() > before + 1
            };
            if let Some(size) = datagram.segment_octets.filter(|_| may_be_uncut)
                && let Some(kind) = uncut_packet(first_octets(batch, before), octets, is_raw)
            {
                // It was sent uncut; not a train.
                if !is_raw {
                    batch.truncate(before);
                    batch.commit_vacancy(index, datagram.range.clone(), None, link);
                }
                if let Some(mut frame) = batch.frame_mut(before) {
                    frame.set_offload(Offload {
                        partial_checksum: None,
                        segments: Some((kind, size.get())),
                    });
                }
            }
            let frames = batch.len() - before;
            if let Some(mut frame) = batch.frame_mut(before).filter(|_| frames == 1)
                && is_probe(frame.bytes(), &link)
            {
                frame.set_verdict(Verdict::Drop(DropReason::UnknownPeer));
            } else {
                counters.received.packets += frames as u64;
                counters.received.octets += octets as u64;
            }
        }
    }

    /// Sends every frame of `batch` whose verdict is [`Verdict::Transmit`].
    pub(super) fn transmit(&mut self, batch: &Batch) {
        self.send.pending.clear();
        for (index, frame) in batch.frames().enumerate() {
            if frame.verdict != Verdict::Transmit {
                continue;
            }
            match self.ways.find(&self.receivers, frame.link) {
                Some(way) => self.send.pending.push((way, index)),
                None => self.counters.of(Kind::of(frame.link)).no_socket += 1,
            }
        }
        while let Some((way, _)) = self.send.pending.first().copied() {
            let counters = self.counters.of(way.kind);
            self.send
                .all_of(way, batch, &self.receivers, &self.ways, counters);
        }
    }

    /// The port of the UDP socket that a frame with this link leaves by.
    pub(super) fn source_port(&self, link: &Link) -> Option<u16> {
        let way = self.ways.find(&self.receivers, link)?;
        let (udp, _) = self.ways.sockets(way, &self.receivers);
        udp.map(|udp| udp.local_addr().port())
    }

    /// Sends a probe, which is not counted as sent.
    pub(super) fn transmit_probe(&mut self, probe: &Batch) {
        self.send.pending.clear();
        let Some(frame) = probe.frame(0).filter(|f| f.verdict == Verdict::Transmit) else {
            return;
        };
        let Some(mut way) = self.ways.find(&self.receivers, frame.link) else {
            return;
        };
        if matches!(way.kind, Kind::Udp4 | Kind::Udp6) {
            way.index = 0;
        }
        self.send.pending.push((way, 0));
        let mut uncounted = UnderlayCounters::default();
        self.send
            .all_of(way, probe, &self.receivers, &self.ways, &mut uncounted);
    }

    /// Counts what sockets have dropped since the last time.
    pub(super) fn count_overflows(&mut self) {
        for receiver in &mut self.receivers {
            let told = sockopt::drops(receiver.socket.as_fd()).ok();
            self.counters.of(receiver.kind).receive_overflows += receiver.overflows.since(told);
        }
    }

    /// The counts, by kind of socket; kinds that this worker has no socket for are absent.
    #[must_use]
    pub(super) fn report(&self) -> Vec<SocketReport> {
        Kind::ALL
            .into_iter()
            .filter(|kind| self.has(*kind))
            .map(|kind| SocketReport::new(kind.name(), self.counters.seen(kind)))
            .collect()
    }

    /// Where this worker receives: each address with its transport, remote port 0.
    pub(super) fn targets(&self) -> impl Iterator<Item = (IpAddr, Transport)> {
        let receives_raw = self.receives_raw();
        let receivers = self.receivers.iter();
        let receivers =
            receivers.filter(move |one| receives_raw || matches!(one.socket, Socket::Udp(_)));
        receivers.map(|receiver| (receiver.local.ip(), receiver.transport(0)))
    }

    /// The smallest buffers among the sockets, as the kernel accounts them, in octets: of those that
    /// receive, and of those that send.
    pub(super) fn buffers(&self) -> (Option<usize>, Option<usize>) {
        let pools = self.ways.pools.iter().flatten();
        let senders = pools.flat_map(TransmitPool::sockets);
        let senders = senders.filter_map(|udp| udp.send_buffer_octets().ok());
        let receivers = self.receivers.iter().filter_map(|one| match &one.socket {
            Socket::Udp(udp) => udp.receive_buffer_octets().ok(),
            Socket::Raw(raw) if self.receives_raw() => raw.receive_buffer_octets().ok(),
            Socket::Raw(_) => None,
        });
        let raw_senders = self.receivers.iter().filter_map(|one| match &one.socket {
            Socket::Udp(_) => None,
            Socket::Raw(raw) => raw.send_buffer_octets().ok(),
        });
        (receivers.min(), senders.chain(raw_senders).min())
    }

    /// The UDP ports that it receives on.
    fn received_ports(&self, config: &Config) -> Vec<u16> {
        match self.duty {
            Duty::Both | Duty::Decap => udp_ports(config),
            Duty::Encap => Vec::new(),
        }
    }

    /// Whether its raw sockets receive, for all workers.
    fn receives_raw(&self) -> bool {
        self.share.number == 0 && self.duty.decaps()
    }

    fn has(&self, kind: Kind) -> bool {
        let [pool_v4, pool_v6] = &self.ways.pools;
        self.receivers.iter().any(|receiver| receiver.kind == kind)
            || match kind {
                Kind::Udp4 => pool_v4.is_some(),
                Kind::Udp6 => pool_v6.is_some(),
                Kind::Ip4 | Kind::Ip6 => false,
            }
    }
}

/// The sockets that counters are kept for together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Udp4,
    Udp6,
    Ip4,
    Ip6,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Udp4, Self::Udp6, Self::Ip4, Self::Ip6];

    /// The kind of socket that a frame with that link leaves by.
    const fn of(link: &Link) -> Self {
        match (link.transport, Family::of(link.remote)) {
            (Transport::Udp { .. }, Family::V4) => Self::Udp4,
            (Transport::Udp { .. }, Family::V6) => Self::Udp6,
            (Transport::Ip { .. }, Family::V4) => Self::Ip4,
            (Transport::Ip { .. }, Family::V6) => Self::Ip6,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::Ip4 => "ip4",
            Self::Ip6 => "ip6",
        }
    }
}

/// The counters of each [`Kind`].
#[derive(Debug, Default)]
struct CountersByKind([UnderlayCounters; Kind::ALL.len()]);

impl CountersByKind {
    const fn of(&mut self, kind: Kind) -> &mut UnderlayCounters {
        let [udp4, udp6, ip4, ip6] = &mut self.0;
        match kind {
            Kind::Udp4 => udp4,
            Kind::Udp6 => udp6,
            Kind::Ip4 => ip4,
            Kind::Ip6 => ip6,
        }
    }

    const fn seen(&self, kind: Kind) -> &UnderlayCounters {
        let [udp4, udp6, ip4, ip6] = &self.0;
        match kind {
            Kind::Udp4 => udp4,
            Kind::Udp6 => udp6,
            Kind::Ip4 => ip4,
            Kind::Ip6 => ip6,
        }
    }
}

/// A socket to receive by and, if it is raw, to send by.
#[derive(Debug)]
struct Receiver {
    socket: Socket,
    kind: Kind,
    local: SocketAddr,
    /// Whether it may have datagrams: set by the event loop, cleared when it was seen empty.
    readable: bool,
    overflows: Overflows,
}

#[derive(Debug)]
enum Socket {
    Udp(Udp),
    Raw(RawIp),
}

impl Socket {
    /// Empties the error queue.
    fn forget_errors(&self) {
        match self {
            Self::Udp(udp) => forget_errors(|| udp.next_error(&mut [])),
            Self::Raw(raw) => forget_errors(|| raw.next_error(&mut [])),
        }
    }
}

/// Takes errors until there is none; no more than one turn may cost.
fn forget_errors<E>(mut next: impl FnMut() -> io::Result<Option<E>>) {
    for _ in 0..ERRORS_PER_TURN {
        if !matches!(next(), Ok(Some(_))) {
            return;
        }
    }
}

/// Errors taken off a queue in one turn.
const ERRORS_PER_TURN: usize = 256;

impl Receiver {
    fn is_udp_at(&self, address: SocketAddr) -> bool {
        matches!(self.socket, Socket::Udp(_)) && self.local == address
    }

    fn is_raw_at(&self, address: IpAddr) -> bool {
        matches!(self.socket, Socket::Raw(_)) && self.local.ip() == address
    }

    fn new(socket: Socket) -> Self {
        let (kind_v4, kind_v6, local) = match &socket {
            Socket::Udp(udp) => (Kind::Udp4, Kind::Udp6, udp.local_addr()),
            Socket::Raw(raw) => (Kind::Ip4, Kind::Ip6, SocketAddr::new(raw.local_addr(), 0)),
        };
        Self {
            socket,
            kind: if local.is_ipv4() { kind_v4 } else { kind_v6 },
            local,
            readable: true,
            overflows: Overflows::default(),
        }
    }

    /// What carries a datagram from the remote port `remote_port`.
    const fn transport(&self, remote_port: u16) -> Transport {
        match &self.socket {
            Socket::Udp(_) => Transport::Udp {
                local_port: self.local.port(),
                remote_port,
            },
            Socket::Raw(raw) => Transport::Ip {
                protocol: raw.inner().protocol(),
            },
        }
    }

    /// The most messages taken in one call.
    const fn receives(&self) -> usize {
        match &self.socket {
            Socket::Udp(_) => RECEIVES,
            Socket::Raw(_) => RAW_RECEIVES,
        }
    }

    fn descriptor(&self) -> RawFd {
        match &self.socket {
            Socket::Udp(udp) => udp.as_raw_fd(),
            Socket::Raw(raw) => raw.as_raw_fd(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(udp) => udp.as_fd(),
            Self::Raw(raw) => raw.as_fd(),
        }
    }
}

/// The kernel's count of what a socket dropped: 32 bits.
#[derive(Clone, Copy, Debug, Default)]
struct Overflows(u32);

impl Overflows {
    /// What was added since the last call, unless the kernel does not say.
    fn since(&mut self, told: Option<u32>) -> u64 {
        let told = told.unwrap_or(self.0);
        let added = told.wrapping_sub(self.0);
        self.0 = told;
        u64::from(added)
    }
}

/// Datagrams, or trains of them, received in one call: each has room for 64 KiB.
const RECEIVES: usize = 8;

/// Packets received in one call from a raw socket. The kernel joins none into trains there, so that
/// what one call brings is all that can be merged into one write: as many as a train has.
const RAW_RECEIVES: usize = 64;

/// The front of frame `index`.
fn first_octets(batch: &Batch, index: usize) -> &[u8] {
    batch
        .frame(index)
        .map(|frame| frame.bytes)
        .unwrap_or_default()
}

/// What kind of packet it is, if the first datagram of a supposed train of `octets` begins an IP
/// packet that goes on to the train's end, behind any of the encapsulations.
///
/// A kernel tunnel device on this same host hands over 64 KiB with a single encapsulation header,
/// and the socket reports the inner segment size. The first datagram of a train never claims more
/// octets than it has.
fn uncut_packet(first: &[u8], octets: usize, is_raw: bool) -> Option<SegmentKind> {
    const SHIMS: &[usize] = &[8 + 14, 4, 0];
    let shims = if is_raw { &[0] } else { SHIMS };
    shims.iter().copied().find_map(|shim| {
        let (total, protocol) = match first.get(shim..)? {
            [0x45..=0x4f, _, high, low, _, _, _, _, _, protocol, ..] => {
                (usize::from(u16::from_be_bytes([*high, *low])), *protocol)
            }
            [0x60..=0x6f, _, _, _, high, low, protocol, ..] => (
                40 + usize::from(u16::from_be_bytes([*high, *low])),
                *protocol,
            ),
            _ => return None,
        };
        match protocol {
            ip_protocol::TCP if shim + total == octets => Some(SegmentKind::Tcp),
            ip_protocol::UDP if shim + total == octets => Some(SegmentKind::Udp),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::example_config;
    use crate::sys::process::{Capability, has_capability};

    #[test]
    fn the_kernels_32_bit_count_of_drops_may_wrap() {
        let mut overflows = Overflows::default();
        assert_eq!(overflows.since(None), 0);
        let much = i32::MAX.cast_unsigned();
        assert_eq!(overflows.since(Some(much)), u64::from(much));
        assert_eq!(overflows.since(Some(u32::MAX)), u64::from(much) + 1);
        assert_eq!(overflows.since(Some(4)), 5);
        assert_eq!(overflows.since(Some(4)), 0);
        assert_eq!(overflows.since(None), 0);
        assert_eq!(overflows.since(Some(6)), 2);
    }

    #[test]
    fn sockets_that_only_send_are_not_read_and_count_no_error() {
        if !has_capability(Capability::NetRaw) {
            eprintln!("skipped: raw sockets need CAP_NET_RAW");
            return;
        }
        let text = format!("{}\n[ipip]\nenabled = true\n", example_config());
        let mut config = Config::parse(&text, "example.toml").unwrap();
        config.node.underlay_v4 = Some(Ipv4Addr::LOCALHOST);
        config.node.underlay_v6 = None;
        let open = Underlay::open(&config, Share::ALONE, Duty::Encap, 7, Arc::default());
        let mut underlay = open.unwrap();
        let mut batch = Batch::new(0, 0);
        assert!(underlay.is_readable());
        for socket in 0..underlay.sockets() {
            underlay.receive(socket, &mut batch, |_, _| false);
        }
        assert!(!underlay.is_readable());
        for report in underlay.report() {
            assert!(report.receive_errors.is_empty(), "{report:?}");
        }
    }
}
