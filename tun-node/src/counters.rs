//! What a worker counts beside its engine, and the report of both that leaves the worker.
//!
//! Inside a worker a count is a field or a slot of a fixed array: nothing is named, allocated or
//! shared. Between batches, when someone asks, the counts become a [`WorkerReport`] of names and
//! numbers, which the control socket and the metrics page hand on as it is.
//!
//! Every packet that a worker takes in is accounted for once:
//!
//! ```text
//! device.read + sockets.received = sockets.sent + device.written + every drop
//! ```
//!
//! [`WorkerReport::balance`] is that sum. Packets that the engine makes itself (ICMP errors) and
//! probes are counted apart.

use std::collections::{BTreeMap, HashMap};
use std::io;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use warren_core::encap::EncapsulationKind;
use warren_core::engine::PeerCounters;
use warren_core::verdict::{Counters, Tally};

/// Failures of one operation by kind of errno.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrnoCounters {
    counts: [u64; ErrnoKind::ALL.len()],
}

impl ErrnoCounters {
    /// Counts `packets` that failed with `error`.
    pub fn count(&mut self, error: &io::Error, packets: u64) {
        let kind = ErrnoKind::of(error);
        if let Some(count) = self.counts.get_mut(kind as usize) {
            *count += packets;
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Those that occurred, by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, u64> {
        let named = ErrnoKind::ALL.iter().zip(self.counts);
        named
            .filter(|(_, count)| *count > 0)
            .map(|((_, name, _), count)| ((*name).to_owned(), count))
            .collect()
    }
}

/// The kinds of errno that are told apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ErrnoKind {
    BufferFull,
    NoMemory,
    TooBig,
    Refused,
    HostUnreachable,
    NetworkUnreachable,
    NetworkDown,
    NotPermitted,
    Invalid,
    InputOutput,
    DeviceGone,
    Other,
}

impl ErrnoKind {
    /// Each kind, the name it is reported under, and the errnos that belong to it.
    const ALL: [(Self, &'static str, &'static [i32]); 12] = [
        (Self::BufferFull, "buffer_full", &[libc::EAGAIN]),
        (Self::NoMemory, "no_memory", &[libc::ENOBUFS, libc::ENOMEM]),
        (Self::TooBig, "message_too_big", &[libc::EMSGSIZE]),
        (Self::Refused, "connection_refused", &[libc::ECONNREFUSED]),
        (
            Self::HostUnreachable,
            "host_unreachable",
            &[libc::EHOSTUNREACH, libc::EHOSTDOWN],
        ),
        (
            Self::NetworkUnreachable,
            "network_unreachable",
            &[libc::ENETUNREACH, libc::EADDRNOTAVAIL],
        ),
        (Self::NetworkDown, "network_down", &[libc::ENETDOWN]),
        (
            Self::NotPermitted,
            "not_permitted",
            &[libc::EPERM, libc::EACCES],
        ),
        (Self::Invalid, "invalid", &[libc::EINVAL]),
        (Self::InputOutput, "device_down", &[libc::EIO]),
        (
            Self::DeviceGone,
            "device_gone",
            &[libc::EBADFD, libc::ENODEV, libc::ENXIO],
        ),
        (Self::Other, "other", &[]),
    ];

    fn of(error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or_default();
        Self::ALL
            .iter()
            .find(|(_, _, errnos)| errnos.contains(&errno))
            .map_or(Self::Other, |(kind, _, _)| *kind)
    }
}

/// What a worker counts at its device.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceCounters {
    /// Packets read and given to the engine.
    pub read: Tally,
    /// Packets among them that the device left uncut (up to 64 KiB); each counts once everywhere.
    pub read_super: u64,
    /// Packets among them that came by the ring beside the device's queue.
    pub read_ring: u64,
    /// Packets that the ring had no room for. They are not among those that were read.
    pub ring_full: u64,
    /// Packets read and dropped because what the device said about their offload is impossible.
    pub read_damaged: u64,
    /// Reads that failed, other than for want of a packet.
    pub read_errors: ErrnoCounters,
    /// Packets from peers written to the device.
    pub written: Tally,
    /// Calls that wrote them: packets that were joined take one.
    pub write_calls: u64,
    /// Packets from peers that the device did not take.
    pub write_drops: ErrnoCounters,
    /// ICMP errors written back to the device.
    pub replies_written: Tally,
    /// ICMP errors that the device did not take.
    pub reply_drops: ErrnoCounters,
    /// Packets with a route that leads to no tunnel; the host's own routes were to carry them.
    pub direct_drops: u64,
    /// Packets from peers that were probes of the path, and not for the device.
    pub probes: u64,
    /// Frames that the engine left without a decision a device can follow. Always zero.
    pub misdirected: u64,
}

/// What a worker counts at one kind of underlay socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnderlayCounters {
    /// Datagrams received and given to the engine.
    pub received: Tally,
    /// Datagrams received damaged: cut short, or without an address.
    pub receive_damaged: u64,
    /// Receive calls that failed, other than for want of a datagram.
    pub receive_errors: ErrnoCounters,
    /// Datagrams from peers that the kernel dropped because the receive buffer was full.
    pub receive_overflows: u64,
    /// Frames sent; one that was left uncut counts once.
    pub sent: Tally,
    /// Messages that carried them: frames of one size share one.
    pub send_messages: u64,
    /// Frames that the kernel did not take.
    pub send_drops: ErrnoCounters,
    /// Frames that were sent in part: some segments of an uncut packet were not taken.
    pub sent_partly: u64,
    /// Frames marked as uncut that could not be cut.
    pub send_malformed: u64,
    /// Packets of the encapsulation without a socket to send them by.
    pub no_socket: u64,
    /// Errors that the network reported for datagrams sent before (ICMP).
    pub network_errors: u64,
}

/// Packets and octets, as reported.
#[derive(Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct TallyReport {
    /// Packets.
    pub packets: u64,
    /// Octets of those packets.
    pub octets: u64,
}

impl From<Tally> for TallyReport {
    fn from(tally: Tally) -> Self {
        Self {
            packets: tally.packets,
            octets: tally.octets,
        }
    }
}

impl TallyReport {
    pub(crate) const fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.octets += other.octets;
    }
}

/// The engine's counts of one direction, as reported.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct DirectionReport {
    /// Frames that entered, with their octets as they entered.
    pub received: TallyReport,
    /// Frames that left, with their octets as they left.
    pub forwarded: TallyReport,
    /// Frames dropped, for all reasons.
    pub dropped: u64,
    /// Frames dropped, by reason; reasons that did not occur are absent.
    pub drops: BTreeMap<String, u64>,
    /// Packets that were cut to fit the path.
    pub fragmented: u64,
    /// Frames that they became, the first of each not counted.
    pub fragments: u64,
    /// TCP SYN segments whose maximum segment size was lowered.
    pub mss_clamped: u64,
    /// ICMP errors made.
    pub replies: u64,
    /// ICMP errors not made because their rate was used up.
    pub replies_suppressed: u64,
    /// ECN combinations that RFC 6040 section 4.2 asks to report.
    pub ecn_anomalies: u64,
}

impl From<&Counters> for DirectionReport {
    fn from(counters: &Counters) -> Self {
        Self {
            received: counters.received.into(),
            forwarded: counters.forwarded.into(),
            dropped: counters.dropped(),
            drops: counters
                .drops_by_reason()
                .map(|(reason, count)| (reason.name().to_owned(), count))
                .collect(),
            fragmented: counters.fragmented,
            fragments: counters.fragments,
            mss_clamped: counters.mss_clamped,
            replies: counters.replies,
            replies_suppressed: counters.replies_suppressed,
            ecn_anomalies: counters.ecn_anomalies,
        }
    }
}

impl DirectionReport {
    fn add(&mut self, other: &Self) {
        self.received.add(other.received);
        self.forwarded.add(other.forwarded);
        self.dropped += other.dropped;
        add_counts(&mut self.drops, &other.drops);
        self.fragmented += other.fragmented;
        self.fragments += other.fragments;
        self.mss_clamped += other.mss_clamped;
        self.replies += other.replies;
        self.replies_suppressed += other.replies_suppressed;
        self.ecn_anomalies += other.ecn_anomalies;
    }
}

/// The device's counts, as reported. The fields are those of [`DeviceCounters`].
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct DeviceReport {
    /// Packets read.
    pub read: TallyReport,
    /// Packets among them that the device left uncut.
    pub read_super: u64,
    /// Packets among them that came by the ring beside the device's queue.
    pub read_ring: u64,
    /// Packets that the ring had no room for. They are not among those that were read.
    pub ring_full: u64,
    /// Packets with an impossible offload.
    pub read_damaged: u64,
    /// Reads that failed.
    pub read_errors: BTreeMap<String, u64>,
    /// Packets from peers written.
    pub written: TallyReport,
    /// Calls that wrote them.
    pub write_calls: u64,
    /// Packets from peers not taken, by kind of errno.
    pub write_drops: BTreeMap<String, u64>,
    /// ICMP errors written back.
    pub replies_written: TallyReport,
    /// ICMP errors not taken, by kind of errno.
    pub reply_drops: BTreeMap<String, u64>,
    /// Packets whose route leads to no tunnel.
    pub direct_drops: u64,
    /// Packets from peers that were probes of the path.
    pub probes: u64,
    /// Frames without a decision that the device can follow.
    pub misdirected: u64,
}

impl From<&DeviceCounters> for DeviceReport {
    fn from(counters: &DeviceCounters) -> Self {
        Self {
            read: counters.read.into(),
            read_super: counters.read_super,
            read_ring: counters.read_ring,
            ring_full: counters.ring_full,
            read_damaged: counters.read_damaged,
            read_errors: counters.read_errors.report(),
            written: counters.written.into(),
            write_calls: counters.write_calls,
            write_drops: counters.write_drops.report(),
            replies_written: counters.replies_written.into(),
            reply_drops: counters.reply_drops.report(),
            direct_drops: counters.direct_drops,
            probes: counters.probes,
            misdirected: counters.misdirected,
        }
    }
}

impl DeviceReport {
    fn add(&mut self, other: &Self) {
        self.read.add(other.read);
        self.read_super += other.read_super;
        self.read_ring += other.read_ring;
        self.ring_full += other.ring_full;
        self.read_damaged += other.read_damaged;
        add_counts(&mut self.read_errors, &other.read_errors);
        self.written.add(other.written);
        self.write_calls += other.write_calls;
        add_counts(&mut self.write_drops, &other.write_drops);
        self.replies_written.add(other.replies_written);
        add_counts(&mut self.reply_drops, &other.reply_drops);
        self.direct_drops += other.direct_drops;
        self.probes += other.probes;
        self.misdirected += other.misdirected;
    }
}

/// The counts of one kind of underlay socket, as reported. The fields are those of
/// [`UnderlayCounters`].
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct SocketReport {
    /// `udp4`, `udp6`, `ip4` or `ip6`.
    pub socket: String,
    /// Datagrams received and given to the engine.
    pub received: TallyReport,
    /// Datagrams received damaged.
    pub receive_damaged: u64,
    /// Receive calls that failed, by kind of errno.
    pub receive_errors: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped for want of receive buffer; they were never received.
    pub receive_overflows: u64,
    /// Frames sent.
    pub sent: TallyReport,
    /// Messages that carried them.
    pub send_messages: u64,
    /// Frames not taken by the kernel, by kind of errno.
    pub send_drops: BTreeMap<String, u64>,
    /// Frames sent in part.
    pub sent_partly: u64,
    /// Frames that could not be cut.
    pub send_malformed: u64,
    /// Packets without a socket to send them by.
    pub no_socket: u64,
    /// Errors that the network reported for datagrams sent before (ICMP). They were sent all the
    /// same, so this is no drop.
    pub network_errors: u64,
}

impl SocketReport {
    /// The report of `counters` under the name `socket`.
    #[must_use]
    pub fn new(socket: &str, counters: &UnderlayCounters) -> Self {
        Self {
            socket: socket.to_owned(),
            received: counters.received.into(),
            receive_damaged: counters.receive_damaged,
            receive_errors: counters.receive_errors.report(),
            receive_overflows: counters.receive_overflows,
            sent: counters.sent.into(),
            send_messages: counters.send_messages,
            send_drops: counters.send_drops.report(),
            sent_partly: counters.sent_partly,
            send_malformed: counters.send_malformed,
            no_socket: counters.no_socket,
            network_errors: counters.network_errors,
        }
    }

    fn add(&mut self, other: &Self) {
        self.received.add(other.received);
        self.receive_damaged += other.receive_damaged;
        add_counts(&mut self.receive_errors, &other.receive_errors);
        self.receive_overflows += other.receive_overflows;
        self.sent.add(other.sent);
        self.send_messages += other.send_messages;
        add_counts(&mut self.send_drops, &other.send_drops);
        self.sent_partly += other.sent_partly;
        self.send_malformed += other.send_malformed;
        self.no_socket += other.no_socket;
        self.network_errors += other.network_errors;
    }
}

/// What passed between this node and one peer, as reported.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct PeerTallyReport {
    /// The peer's name.
    pub peer: String,
    /// Packets sent to it, with their octets as sent.
    pub encap: TallyReport,
    /// Packets accepted from it, with their octets as delivered.
    pub decap: TallyReport,
    /// Packets from it that were dropped.
    pub refused: u64,
    /// Both directions by encapsulation (`vxlan`, `fou`, ...); those that did not occur are absent.
    pub by_encapsulation: BTreeMap<String, EncapsulationTally>,
}

/// What passed in one encapsulation.
#[derive(Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct EncapsulationTally {
    /// Packets sent.
    pub encap: TallyReport,
    /// Packets accepted.
    pub decap: TallyReport,
}

impl PeerTallyReport {
    /// The report of what the engine counted for the peer called `name`.
    #[must_use]
    pub fn new(name: &str, counters: &PeerCounters) -> Self {
        let by_encapsulation = EncapsulationKind::ALL.iter().filter_map(|kind| {
            let tally = EncapsulationTally {
                encap: counters.sent_by(*kind).into(),
                decap: counters.received_by(*kind).into(),
            };
            let occurred = tally != EncapsulationTally::default();
            occurred.then(|| (kind.name().to_owned(), tally))
        });
        Self {
            peer: name.to_owned(),
            encap: counters.sent().into(),
            decap: counters.received().into(),
            refused: counters.refused,
            by_encapsulation: by_encapsulation.collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.encap.add(other.encap);
        self.decap.add(other.decap);
        self.refused += other.refused;
        for (name, tally) in &other.by_encapsulation {
            let mine = self.by_encapsulation.entry(name.clone()).or_default();
            mine.encap.add(tally.encap);
            mine.decap.add(tally.decap);
        }
    }
}

/// Everything that one worker counted since it started.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct WorkerReport {
    /// Which worker, from 0.
    pub worker: u32,
    /// The generation of the tables it works with.
    pub epoch: u64,
    /// Turns of the event loop.
    pub turns: u64,
    /// The engine, from the device to the underlay.
    pub encap: DirectionReport,
    /// The engine, from the underlay to the device.
    pub decap: DirectionReport,
    /// The device.
    pub device: DeviceReport,
    /// The underlay sockets by kind.
    pub sockets: Vec<SocketReport>,
    /// Per peer.
    pub peers: Vec<PeerTallyReport>,
    /// Probes sent through the data path.
    pub probes_sent: u64,
    /// Probes that came back and were taken by the device.
    pub probes_passed: u64,
}

impl WorkerReport {
    /// The sum of several workers.
    #[must_use]
    pub fn total(workers: &[Self]) -> Self {
        let mut total = Self::default();
        // Where each peer stands in the sum: there may be tens of thousands.
        let mut places: HashMap<&str, usize> = HashMap::new();
        for worker in workers {
            // What all of them work with: a worker without packets looks a little later.
            total.epoch = match total.epoch {
                0 => worker.epoch,
                epoch => epoch.min(worker.epoch),
            };
            total.turns += worker.turns;
            total.encap.add(&worker.encap);
            total.decap.add(&worker.decap);
            total.device.add(&worker.device);
            for socket in &worker.sockets {
                let known = total.sockets.iter_mut().find(|s| s.socket == socket.socket);
                match known {
                    Some(known) => known.add(socket),
                    None => total.sockets.push(socket.clone()),
                }
            }
            for peer in &worker.peers {
                let next = total.peers.len();
                let place = *places.entry(&peer.peer).or_insert(next);
                match total.peers.get_mut(place) {
                    Some(known) => known.add(peer),
                    None => total.peers.push(peer.clone()),
                }
            }
            total.probes_sent += worker.probes_sent;
            total.probes_passed += worker.probes_passed;
        }
        total
    }

    /// What came in, what left and what was dropped; see [`Balance`].
    #[must_use]
    pub fn balance(&self) -> Balance {
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        let sockets = self.sockets.iter();
        let (mut received, mut sent, mut socket_drops) = (0, 0, 0);
        for socket in sockets {
            received += socket.received.packets + socket.receive_damaged;
            sent += socket.sent.packets;
            socket_drops += socket.receive_damaged
                + sum(&socket.send_drops)
                + socket.send_malformed
                + socket.no_socket;
        }
        Balance {
            received: self.device.read.packets
                + self.device.read_damaged
                + received
                + self.encap.fragments,
            left: sent + self.device.written.packets + self.device.probes,
            dropped: self.encap.dropped
                + self.decap.dropped
                + socket_drops
                + self.device.read_damaged
                + sum(&self.device.write_drops)
                + self.device.direct_drops
                + self.device.misdirected,
        }
    }
}

/// The account of a worker's packets; `received == left + dropped` between batches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Balance {
    /// Packets taken in, from the device and from the underlay, and what cut ones became beyond
    /// one.
    pub received: u64,
    /// Packets that the kernel took, at the device and at the underlay, and probes of the paths.
    pub left: u64,
    /// Packets dropped, for every reason.
    pub dropped: u64,
}

fn add_counts(mine: &mut BTreeMap<String, u64>, theirs: &BTreeMap<String, u64>) {
    for (name, count) in theirs {
        *mine.entry(name.clone()).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_errno_has_its_own_slot_and_name() {
        for (index, (kind, name, errnos)) in ErrnoKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            for errno in *errnos {
                let mut counters = ErrnoCounters::default();
                counters.count(&io::Error::from_raw_os_error(*errno), 3);
                assert_eq!(counters.report(), BTreeMap::from([((*name).to_owned(), 3)]));
            }
        }
        let mut counters = ErrnoCounters::default();
        counters.count(&io::Error::from_raw_os_error(libc::ESTALE), 1);
        assert_eq!(counters.report(), BTreeMap::from([("other".to_owned(), 1)]));
        assert_eq!(counters.total(), 1);
    }

    #[test]
    fn the_total_of_two_workers_is_their_sum() {
        let socket = |packets| SocketReport {
            socket: "udp4".to_owned(),
            sent: TallyReport {
                packets,
                octets: 10 * packets,
            },
            send_drops: BTreeMap::from([("buffer_full".to_owned(), packets)]),
            ..SocketReport::default()
        };
        let peer = |name: &str, refused| PeerTallyReport {
            refused,
            ..PeerTallyReport::new(name, &PeerCounters::default())
        };
        let worker = |packets, peers| WorkerReport {
            sockets: vec![socket(packets)],
            peers,
            ..WorkerReport::default()
        };
        let total = WorkerReport::total(&[
            worker(2, vec![peer("a", 1), peer("b", 2)]),
            worker(3, vec![peer("c", 4), peer("a", 8)]),
        ]);
        assert_eq!(total.sockets, [socket(5)]);
        assert_eq!(total.peers, [peer("a", 9), peer("b", 2), peer("c", 4)]);
        let balance = total.balance();
        assert_eq!((balance.received, balance.left, balance.dropped), (0, 5, 5));
    }
}
