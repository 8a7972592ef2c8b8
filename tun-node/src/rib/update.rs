//! What a source says: the one type between sources and the routing table.
//!
//! A source knows keys (of etcd, of Kubernetes, lines of a file) and delivers, for each, what
//! should be. It never says how to get there: what changes is found by comparing values.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::units::{Family, MacAddr, Mtu};

/// Where routes come from. The order is that of preference: the first wins.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SourceKind {
    /// The configuration file.
    Config,
    /// Route files.
    File,
    /// An etcd cluster.
    Etcd,
    /// A Kubernetes API.
    Kube,
    /// BGP sessions.
    Bgp,
}

impl SourceKind {
    /// Every kind, the most preferred first.
    pub const ALL: [Self; 5] = [Self::Config, Self::File, Self::Etcd, Self::Kube, Self::Bgp];

    /// The name in tables and configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::File => "file",
            Self::Etcd => "etcd",
            Self::Kube => "kube",
            Self::Bgp => "bgp",
        }
    }

    /// Whether each of its prefixes has one owner and none lies inside another.
    ///
    /// flannel hands out subnets; the others have rules of their own (Calico lends single
    /// addresses out of a block), and the longest prefix wins there.
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        match self {
            Self::Etcd => true,
            Self::Config | Self::File | Self::Kube | Self::Bgp => false,
        }
    }
}

impl SourceKind {
    /// Whether this host's administrator wrote it: nested prefixes are meant, and what is taken
    /// away is meant to go at once.
    #[must_use]
    pub const fn is_local(self) -> bool {
        match self {
            Self::Config | Self::File => true,
            Self::Etcd | Self::Kube | Self::Bgp => false,
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that a source has to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceUpdate {
    /// Which source.
    pub source: SourceKind,
    /// What it says.
    pub kind: UpdateKind,
}

/// What a source has to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpdateKind {
    /// This is everything that there is.
    Full {
        /// Every entry. Of two with one key the last counts.
        entries: Vec<Entry>,
        /// Where in the source's own history this was true (etcd: the revision).
        position: u64,
        /// Whether that history is the one of before.
        continuity: Continuity,
    },
    /// This changed since; all of it at once, or none.
    Delta {
        /// The changes, oldest first.
        changes: Vec<Change>,
        /// As in [`UpdateKind::Full`].
        position: u64,
    },
    /// The source answers, and nothing changed.
    Contact,
    /// The source does not answer. Nothing follows from that but a line in the log.
    Lost {
        /// Why, for people.
        why: String,
    },
}

/// Whether what a source delivers goes on from what it delivered before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Continuity {
    /// It does: what is not there was taken away.
    Same,
    /// It does not: a backup was restored or the data was lost, so what is not there may only not
    /// have been written again yet.
    Reset,
}

/// A step from one desired state to the next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The entry is so.
    Put(Entry),
    /// There is no entry of that key.
    Gone(Arc<str>),
}

/// What a source says about one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The key, printable; unique in the source.
    pub key: Arc<str>,
    /// Of two entries that cannot both be true the one with the smaller rank is. The same on every
    /// node that sees the same source.
    pub rank: u64,
    /// What it says.
    pub content: Content,
}

/// What an entry says.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Content {
    /// Another node owns prefixes.
    Remote(Arc<Remote>),
    /// This node owns prefixes, described as the others see them.
    Own(Arc<Remote>),
    /// Nothing usable.
    Refused(Refusal),
}

/// A node as a source describes it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Remote {
    /// Its name, for people.
    pub node: Arc<str>,
    /// What it owns and how each is reached; never empty.
    pub routes: Vec<RemoteRoute>,
}

/// A prefix and the way there.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RemoteRoute {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// The way.
    pub via: Via,
}

/// The way to a node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Via {
    /// The node's address on the underlay.
    pub remote: IpAddr,
    /// How packets are wrapped; `None` when they are sent as they are.
    pub encapsulation: Option<Encapsulation>,
    /// The underlay's MTU on the way, where the source knows it.
    pub underlay_mtu: Option<Mtu>,
}

impl Via {
    /// The inner Ethernet address of the node, with the family of the underlay it is for.
    #[must_use]
    pub const fn vtep(&self) -> Option<(MacAddr, Family)> {
        match self.encapsulation {
            Some(Encapsulation::Vxlan { mac, .. } | Encapsulation::Geneve { mac, .. }) => {
                Some((mac, Family::of(self.remote)))
            }
            Some(
                Encapsulation::Ipip
                | Encapsulation::Fou { .. }
                | Encapsulation::Gue { .. }
                | Encapsulation::VxlanGpe { .. },
            )
            | None => None,
        }
    }
}

/// Why an entry is not applied.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Refusal {
    /// A name that does not change: `bad-mac`, `overlap`.
    pub name: &'static str,
    /// What was seen, printable.
    pub detail: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.detail)
    }
}
