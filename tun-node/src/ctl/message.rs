//! What is asked and what is answered.
//!
//! The same types make the machine output (`--json`), so their field names are a promise to
//! scripts; a change of their order or kind is a new [`frame::VERSION`](super::frame::VERSION).

use std::net::IpAddr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::sources::{EventReport, ReloadReport, SourcesReport, WhyReport};
use crate::counters::{PeerTallyReport, WorkerReport};
use crate::raw::rows::RowsReport;
use crate::ring::RingReport;
use crate::shortcut::ShortcutReport;

/// A question.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Request {
    /// How the node is: [`Response::Status`].
    Status,
    /// Its routes from number `first` on, as many as fit: [`Response::Routes`].
    Routes {
        /// Rows to pass over.
        first: u32,
    },
    /// Its peers: [`Response::Peers`].
    Peers,
    /// What every worker counted: [`Response::Counters`].
    Counters,
    /// What would happen to a packet: [`Response::Explain`].
    Explain(Flow),
    /// Sends to a peer, or to all, in the encapsulation of this name as long as it passes, or
    /// again by the configured preference: [`Response::Done`] or [`Response::Remarks`].
    Prefer {
        /// The peer; none for all.
        peer: Option<String>,
        /// The encapsulation; none for the configured order.
        encapsulation: Option<String>,
    },
    /// Makes the last worker misbehave, for tests: [`Response::Done`], or no answer at all. Refused by
    /// a node that was built without fault injection.
    Fault(Fault),
    /// The state of each source: [`Response::Sources`].
    Sources,
    /// Every entry that has to do with a prefix: [`Response::Why`].
    Why {
        /// The prefix.
        prefix: String,
    },
    /// What happened after number `after`, oldest first: [`Response::Events`].
    Events {
        /// The last one known.
        after: u64,
    },
    /// Withdraws what is held, of one source or of all: [`Response::Done`], or [`Response::Remarks`]
    /// where nothing is.
    Confirm {
        /// The source.
        source: Option<String>,
    },
    /// Reads the configuration and its route files again: [`Response::Reload`].
    Reload {
        /// Only says what would change.
        dry_run: bool,
    },
}

/// An answer.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// To [`Request::Routes`].
    Routes {
        /// Rows of one generation of the tables.
        routes: Vec<RouteReport>,
        /// The generation; another one than before means: begin again.
        epoch: u64,
        /// How many rows there are in all.
        total: u32,
    },
    /// To [`Request::Peers`].
    Peers(Vec<PeerReport>),
    /// To [`Request::Counters`].
    Counters(Box<CountersReport>),
    /// To [`Request::Explain`].
    Explain(Box<ExplainReport>),
    /// Done, and nothing to tell.
    Done,
    /// The question cannot be answered; a sentence says why.
    Error(String),
    /// To [`Request::Sources`].
    Sources(Box<SourcesReport>),
    /// To [`Request::Why`].
    Why(Vec<WhyReport>),
    /// To [`Request::Events`].
    Events(Vec<EventReport>),
    /// To [`Request::Reload`].
    Reload(Box<ReloadReport>),
    /// Done, and a sentence for each thing that somebody should know.
    Remarks(Vec<String>),
}

impl Response {
    /// Done; with what somebody should know, if there is something.
    #[must_use]
    pub fn remarks(remarks: Vec<String>) -> Self {
        if remarks.is_empty() {
            Self::Done
        } else {
            Self::Remarks(remarks)
        }
    }
}

/// A fault to inject.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Fault {
    /// The worker stops answering.
    Hang,
    /// The worker panics.
    Panic,
}

/// A packet to explain.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct Flow {
    /// Inner source.
    pub source: IpAddr,
    /// Inner destination; of the same family.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Source port, where the protocol has ports.
    pub source_port: u16,
    /// Destination port, where the protocol has ports.
    pub destination_port: u16,
    /// Octets of the whole packet; as many as the headers need, at least.
    pub octets: u16,
}

/// How a node is.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct StatusReport {
    /// The node's name.
    pub node: String,
    /// The version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Whether the node can carry packets: the workers answer, a probe has passed lately, and it has
    /// a subnet where a source is to give it one.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready_because: String,
    /// What somebody should look at, such as a routing loop.
    pub alarms: Vec<String>,
    /// The overlay device.
    pub device: DeviceStatus,
    /// Its addresses on the underlay.
    pub underlay: Vec<IpAddr>,
    /// What it receives: `vxlan 8472`, `ipip`.
    pub receives: Vec<String>,
    /// The generation of its tables.
    pub epoch: u64,
    /// Routes.
    pub routes: u32,
    /// Peers.
    pub peers: u32,
    /// Those of them that answer in no encapsulation, though they are probed.
    pub peers_down: Vec<String>,
    /// Worker threads.
    pub workers: u32,
    /// Whether each carries both directions, `together`, or one, `apart`.
    pub directions: String,
    /// Why: `as configured`, or what the node found out about the underlay.
    pub directions_because: String,
    /// The generation of the tables that all workers work with, or a later one.
    pub workers_epoch: u64,
    /// Octets of the smallest receive buffer among the underlay sockets, as the kernel accounts
    /// them: twice what was asked for, or less where its limits are in the way.
    pub receive_buffer: Option<u64>,
    /// The same of the send buffers.
    pub send_buffer: Option<u64>,
    /// Whether the device is in a namespace of an ordinary user.
    pub rootless: bool,
    /// The address of the metrics page.
    pub metrics: Option<String>,
    /// The short way through the kernel; none where the configuration does not ask for it.
    pub flow_offload: Option<ShortcutReport>,
    /// The ring beside the device's queue; none where the configuration does not ask for it.
    pub packet_ring: Option<RingReport>,
    /// Datagrams in a row in IP; none where there is no IP-in-IP.
    pub ipip_rows: Option<RowsReport>,
}

/// The overlay device.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// The largest inner packet in octets.
    pub mtu: u16,
    /// Its addresses with their lengths.
    pub addresses: Vec<String>,
    /// `create`, `persistent` or `attach`.
    pub mode: String,
    /// Packets that each queue to a worker holds; none where the device is in another namespace.
    pub queue_packets: Option<u64>,
    /// Packets that the kernel dropped because such a queue was full, since the device was made.
    pub queue_drops: Option<u64>,
}

/// A route.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct RouteReport {
    /// The prefix.
    pub prefix: String,
    /// Who says so: `node`, `peer` or `static` for this host's files, or a source: `file`,
    /// `etcd`, `kube`, `bgp`.
    pub origin: String,
    /// What happens: `local`, `tunnel`, `equal-cost`, `direct`, `blackhole` or `prohibit`.
    pub action: String,
    /// The tunnels; none for the other actions.
    pub tunnels: Vec<TunnelReport>,
}

/// A way to a peer.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct TunnelReport {
    /// The peer.
    pub peer: String,
    /// The outer source.
    pub local: IpAddr,
    /// The outer destination.
    pub remote: IpAddr,
    /// `vxlan`, `ipip`, `fou` or `gue`.
    pub encapsulation: String,
    /// The peer's UDP port; none for `ipip`.
    pub port: Option<u16>,
    /// The network, for `vxlan`.
    pub vni: Option<u32>,
    /// The peer's VTEP, for `vxlan`.
    pub vtep_mac: Option<String>,
    /// The largest inner packet in octets.
    pub mtu: u16,
}

/// A peer.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct PeerReport {
    /// Its name.
    pub name: String,
    /// The way to it.
    pub tunnel: TunnelReport,
    /// What it owns.
    pub prefixes: Vec<String>,
    /// What passed, over all workers.
    pub tally: PeerTallyReport,
    /// What is known about the paths; none where nothing is probed.
    pub path: Option<PathReport>,
}

/// What is known about the paths to the peers.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct PathsReport {
    /// Each peer that is probed.
    pub peers: Vec<PathReport>,
    /// ICMP errors relayed to inner senders.
    pub relayed: u64,
    /// ICMP errors about packets that this node does not send.
    pub ignored: u64,
}

/// What is known about the paths to a peer.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct PathReport {
    /// The peer.
    pub peer: String,
    /// The largest outer packet in octets.
    pub path_mtu: u16,
    /// How it was learned: `assumed`, `probe`, `icmp` or `black hole`.
    pub path_mtu_by: String,
    /// ICMP errors about size that were not believed: below 576 or 1280 octets, about no packet that
    /// this node sends, or refuted by a probe.
    pub forged: u64,
    /// Changes of the encapsulation.
    pub changes: u64,
    /// The last of them, and why.
    pub last_change: Option<String>,
    /// What the network last said, and how long ago; none after a minute without another, once the
    /// peer answers, if it is probed.
    pub last_error: Option<String>,
    /// The encapsulation that `tun-node prefer` asked for, whether or not it is in use.
    pub asked_for: Option<String>,
    /// Probes and answers that left for the peer by sockets of their own: they are in no tally.
    pub probes_sent: u64,
    /// Probes and answers that came from it; in the tally they are accepted packets.
    pub probes_heard: u64,
    /// Each encapsulation, the preferred first.
    pub ways: Vec<WayReport>,
}

impl PathReport {
    /// Whether no encapsulation is answered; `false` where it is not known.
    #[must_use]
    pub fn is_down(&self) -> bool {
        !self.ways.is_empty() && self.ways.iter().all(|way| way.state == "down")
    }
}

/// One encapsulation of a peer.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct WayReport {
    /// Its name.
    pub encapsulation: String,
    /// Whether packets are sent in it.
    pub in_use: bool,
    /// `up`, `down` or `unknown`.
    pub state: String,
    /// Who answers probes: `peer`, `echo` or `nobody`.
    pub answered_by: String,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// Lost probes among the last 64, in thousandths.
    pub loss_per_mille: Option<u32>,
}

/// What was counted.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct CountersReport {
    /// The sum.
    pub total: WorkerReport,
    /// Each worker.
    pub workers: Vec<WorkerReport>,
    /// What the kernel carried in their place (`flow-offload`), in the words of a worker; none where it
    /// does not.
    pub offloaded: Option<WorkerReport>,
}

/// What would happen to a packet.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct ExplainReport {
    /// What the sender of a packet above the MTU would be told, and by whom; none where it would
    /// not be told.
    pub too_big: Option<String>,
    /// The packet.
    pub flow: Flow,
    /// Which way it goes through the engine: `encap` or `decap`.
    pub direction: String,
    /// What the engine decides: `transmit`, `deliver`, `direct` or `drop`.
    pub verdict: String,
    /// Why it is dropped; none for the other verdicts.
    pub reason: Option<String>,
    /// The route that holds the source.
    pub source_route: Option<RouteReport>,
    /// The route that holds the destination.
    pub route: Option<RouteReport>,
    /// The peer at the other end of the tunnel.
    pub peer: Option<String>,
    /// What it is or would be wrapped in: `vxlan`, `ipip`, ...
    pub encapsulation: Option<String>,
    /// The tunnel that it would take, for `encap`.
    pub tunnel: Option<TunnelReport>,
    /// The largest packet that the way carries, for `encap`.
    pub mtu: Option<u16>,
    /// The outer UDP source port that the engine computes for the flow; the node sends from the
    /// socket of its pool that stands for it.
    pub outer_source_port: Option<u16>,
    /// Octets that the outer headers add, for `encap`.
    pub overhead_octets: Option<u16>,
    /// The ICMP error that the sender gets.
    pub answer: Option<String>,
    /// All of it in a few sentences.
    pub text: String,
}
