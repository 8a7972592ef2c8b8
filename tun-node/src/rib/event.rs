//! What goes into the routing table's state machine and what comes out, in plain values.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::units::{MacAddr, Time};

use super::resolve::{Order, RouteChange, Verdict};
use super::update::{Entry, Refusal, SourceKind, SourceUpdate};

/// What the operator may choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// More than this many per cent of a source's remote routes gone at once are held.
    pub guard_percent: u8,
    /// Fewer withdrawals than this are never held.
    pub guard_least: usize,
    /// Withdrawals this close together count as at once.
    pub guard_window: Duration,
    /// How long they are held.
    pub hold: Duration,
    /// How long a remembered entry lasts that no source confirms; flannel's leases last a day.
    pub remember: Duration,
    /// The entries that one source may have; more are refused.
    pub entries_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guard_percent: 50,
            guard_least: 2,
            guard_window: Duration::from_secs(1),
            hold: Duration::from_secs(60),
            remember: Duration::from_secs(86_400),
            entries_max: 262_144,
        }
    }
}

/// What nobody else may say of themselves.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Identity {
    /// This node's underlay addresses.
    pub underlay: Vec<IpAddr>,
    /// Its VTEP MAC addresses.
    pub vteps: Vec<MacAddr>,
}

/// Something that happens to the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A source says something.
    Update(SourceUpdate),
    /// The operator wants held withdrawals applied; of one source, or of all.
    Confirm(Option<SourceKind>),
    /// Entries are remembered from before the start.
    Restore {
        /// Whose they are.
        source: SourceKind,
        /// The entries, as [`Reconciler::entries`](super::Reconciler::entries) gave them.
        entries: Vec<Entry>,
        /// How long ago they were last confirmed.
        age: Duration,
    },
    /// Time passed; due at [`Reconciler::poll_timeout`](super::Reconciler::poll_timeout).
    Timeout,
    /// This node's own addresses are others.
    Identity(Identity),
}

/// What follows from an event.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The prefixes whose routes are others than before; empty when nothing is to be published.
    pub routes: Vec<RouteChange>,
    /// What someone should look at, each a sentence.
    pub alarms: Vec<String>,
}

/// The state of a source, for people and metrics.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourceStatus {
    /// Why it does not answer, if it does not.
    pub lost: Option<String>,
    /// When it last delivered everything.
    pub synced: Option<Time>,
    /// When it last answered.
    pub contact: Option<Time>,
    /// Where in its history it is.
    pub position: u64,
    /// Entries, usable or not.
    pub entries: usize,
    /// Entries held against their withdrawal.
    pub held: usize,
    /// Entries that are only remembered.
    pub remembered: usize,
    /// Entries in quarantine.
    pub quarantined: usize,
    /// When held entries are withdrawn.
    pub hold_until: Option<Time>,
}

/// An entry in quarantine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quarantined {
    /// The source.
    pub source: SourceKind,
    /// The key.
    pub key: Arc<str>,
    /// Why.
    pub refusal: Refusal,
}

/// Why a prefix is routed as it is: one entry that has to do with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Why {
    /// Where the entry stands among all; the first wins.
    pub order: Order,
    /// Its prefix.
    pub prefix: IpNet,
    /// The node.
    pub node: Arc<str>,
    /// Whether it is accepted, and if not, why.
    pub verdict: Verdict,
    /// Until when it is kept though its source does not have it.
    pub until: Option<Time>,
}
