//! The underlay sockets of a worker: which there are, reading them into a batch, sending a batch by
//! its verdicts.
//!
//! Receiving: one UDP socket for each underlay address and encapsulation port, and one raw socket for
//! each underlay address and protocol (4 and 41) where IP in IP is received or sent. Sending: the
//! raw sockets, and for UDP a pool of sockets for each underlay address, each on a source port of
//! its own, because the kernel writes the source port and the port is what spreads flows. Which one
//! is decided by the port that the engine computed from the flow.
//!
//! Frames that leave by the same socket leave in one system call, in their order; so the frames of a
//! flow are never reordered. What the kernel does not take is dropped and counted; nobody waits.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use warren_core::batch::{Batch, Link, Transport};
use warren_core::units::Family;
use warren_core::verdict::Verdict;
use warren_core::wire::ip_protocol;

use crate::config::{Config, Encap};
use crate::counters::{SocketReport, UnderlayCounters};
use crate::raw::{Inner, RawConfig, RawError, RawIp};
use crate::udp::{
    ReceiveRing, SendControl, SendRing, SocketCounters, Transmit, TransmitPool, Udp, UdpConfig,
    UdpError,
};

/// All underlay sockets of one worker.
#[derive(Debug)]
pub struct Underlay {
    receivers: Vec<Receiver>,
    /// The pools by family, IPv4 first.
    pools: [Option<TransmitPool>; 2],
    receive_ring: ReceiveRing,
    send: Sender,
    /// By [`Kind`].
    counters: [UnderlayCounters; Kind::ALL.len()],
}

impl Underlay {
    /// Opens the sockets that `config` asks for. `seed` spreads the source ports of the pools.
    ///
    /// # Errors
    ///
    /// [`UnderlayError`]: an address is not this host's, a port is taken, a capability is missing.
    pub fn open(config: &Config, seed: u64) -> Result<Self, UnderlayError> {
        let mut underlay = Self {
            receivers: Vec::new(),
            pools: [None, None],
            receive_ring: ReceiveRing::new(usize::from(config.worker.batch)),
            send: Sender::new(usize::from(config.worker.batch)),
            counters: Default::default(),
        };
        let addresses = [config.node.underlay_v4.map(IpAddr::V4), config.node.underlay_v6.map(IpAddr::V6)];
        for (index, address) in addresses.into_iter().enumerate() {
            let Some(address) = address else { continue };
            for port in udp_ports(config) {
                let socket = Udp::bind(&udp_config(config, SocketAddr::new(address, port)))?;
                underlay.receivers.push(Receiver::new(Socket::Udp(socket)));
            }
            if let Some(pool) = underlay.pools.get_mut(index).filter(|_| uses_udp(config)) {
                let bind = udp_config(config, SocketAddr::new(address, 0));
                let count = usize::from(config.worker.source_ports);
                *pool = Some(TransmitPool::bind(&bind, count, seed)?);
            }
            if !uses_ipip(config) {
                continue;
            }
            for inner in [Inner::Ipv4, Inner::Ipv6] {
                let raw = RawIp::open(&raw_config(config, address, inner))?;
                underlay.receivers.push(Receiver::new(Socket::Raw(raw)));
            }
        }
        Ok(underlay)
    }

    /// The descriptors to wait for, in the order of [`Self::set_readable`].
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.receivers.iter().map(|receiver| receiver.socket.as_raw_fd())
    }

    /// Notes that the event loop found socket `index` readable.
    pub fn set_readable(&mut self, index: usize) {
        if let Some(receiver) = self.receivers.get_mut(index) {
            receiver.readable = true;
        }
    }

    /// Whether some socket may have datagrams.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.receivers.iter().any(|receiver| receiver.readable)
    }

    /// How many receiving sockets there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.receivers.len()
    }

    /// Whether there is no receiving socket.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.receivers.is_empty()
    }

    /// Reads socket `index` into the empty `batch`, as much as fits, if it is readable.
    ///
    /// `is_probe` sees each datagram first; those that it takes do not enter the batch.
    pub fn receive(
        &mut self,
        index: usize,
        batch: &mut Batch,
        mut is_probe: impl FnMut(&[u8], &Link) -> bool,
    ) {
        let Some(receiver) = self.receivers.get_mut(index).filter(|r| r.readable) else {
            return;
        };
        let counters = counters_of(&mut self.counters, receiver.kind);
        let ring = &mut self.receive_ring;
        let mut network = SocketCounters::default();
        let outcome = match &receiver.socket {
            Socket::Udp(socket) => socket.recv_batch(ring, batch.vacancies(), &mut network),
            Socket::Raw(socket) => socket.recv_batch(ring, batch.vacancies(), &mut network),
        };
        counters.network_errors += network.reported;
        let received = match outcome {
            Ok(received) => received,
            Err(error) => {
                counters.receive_errors.count(&error, 1);
                0
            }
        };
        // Fewer than asked for: the queue was seen empty, and what comes later is a new event.
        receiver.readable = received >= ring.capacity();
        counters.receive_overflows += receiver.overflows_since(ring.dropped().filter(|_| received > 0));
        for outcome in ring.received() {
            let Ok(datagram) = outcome else {
                counters.receive_damaged += 1;
                batch.skip_room();
                continue;
            };
            let link = Link {
                local: datagram.local.unwrap_or(receiver.local.ip()),
                remote: datagram.peer.ip(),
                transport: receiver.transport(datagram.peer.port()),
                traffic_class: datagram.tos,
                hop_limit: datagram.ttl.unwrap_or_default(),
                dont_fragment: false,
            };
            let octets = batch.room().and_then(|room| room.get(datagram.range.clone()));
            if octets.is_some_and(|octets| is_probe(octets, &link)) {
                batch.skip_room();
                continue;
            }
            counters.received.count(datagram.range.len());
            if batch.commit_room(datagram.range.clone(), link).is_none() {
                // The ring gave no more datagrams than the batch gave rooms.
                counters.receive_damaged += 1;
            }
        }
    }

    /// Sends every frame of `batch` whose verdict is [`Verdict::Transmit`].
    pub fn transmit(&mut self, batch: &Batch) {
        let (routes, order) = (&mut self.send.routes, &mut self.send.order);
        routes.clear();
        for frame in batch.frames() {
            routes.push(match frame.verdict {
                Verdict::Transmit => match route(&self.receivers, &self.pools, frame.link) {
                    Some(way) => Way::By(way),
                    None => {
                        counters_of(&mut self.counters, Kind::of_link(frame.link)).no_socket += 1;
                        Way::Done
                    }
                },
                Verdict::Undecided
                | Verdict::Deliver
                | Verdict::Direct
                | Verdict::Reply(_)
                | Verdict::Drop(_) => Way::Done,
            });
        }
        let mut from = 0;
        while let Some(first) = position(routes, from) {
            let Some(Way::By(way)) = routes.get(first).copied() else { break };
            from = first + 1;
            order.clear();
            for (index, entry) in routes.iter_mut().enumerate().skip(first) {
                if *entry == Way::By(way) {
                    *entry = Way::Done;
                    order.push(index);
                }
            }
            send_by(&self.receivers, &self.pools, way, batch, order, &mut self.send.ring, &mut self.counters);
        }
    }

    /// The counts, by kind of socket; kinds that this worker has no socket for are absent.
    #[must_use]
    pub fn report(&self) -> Vec<SocketReport> {
        let kinds = Kind::ALL.into_iter().zip(&self.counters);
        kinds
            .filter(|(kind, _)| self.has(*kind))
            .map(|(kind, counters)| SocketReport::new(kind.name(), counters))
            .collect()
    }

    /// The first receiving socket's address and what it carries, for the probe.
    pub fn targets(&self) -> impl Iterator<Item = Link> {
        self.receivers.iter().map(|receiver| Link {
            local: receiver.local.ip(),
            remote: receiver.local.ip(),
            transport: receiver.transport(0),
            ..Link::LOCAL
        })
    }

    fn has(&self, kind: Kind) -> bool {
        self.receivers.iter().any(|receiver| receiver.kind == kind)
            || match kind {
                Kind::Udp4 => matches!(self.pools, [Some(_), _]),
                Kind::Udp6 => matches!(self.pools, [_, Some(_)]),
                Kind::Ip4 | Kind::Ip6 => false,
            }
    }
}
