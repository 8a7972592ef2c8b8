//! Where routes come from. Each source knows its own store and the RIB's one type
//! ([`SourceUpdate`]), and nothing else of the node.
//!
//! ```text
//!  config ─┐
//!  files  ─┤  SourceUpdate                ┌─ Reconciler ─ Rib ─> tables, paths, kernel routes
//!  etcd   ─┼───────────────> plane ───────┤
//!  kube   ─┤  SourceNotice                └─ addresses of the device, subnet.env
//!  (bgp)  ─┘ <───────────── SourceCommand
//! ```
//!
//! A source is a value that runs in threads of its own. It is made by a function of this shape,
//! which is given an [`Outlet`] and asks nobody anything yet:
//!
//! ```text
//! FooSource::start(settings: FooSettings, outlet: Outlet) -> Result<FooSource, FooError>
//! ```
//!
//! and implements [`Source`]. From then on it delivers by the outlet: what there is, as
//! [`SourceUpdate`]s, and what the node should do or know, as
//! [`SourceNotice`]s. That nobody answers is no error but an
//! [`UpdateKind::Lost`](crate::rib::UpdateKind::Lost), and the source asks again by itself.
//!
//! Which sources there are follows from the configuration and is decided in one place,
//! [`start_all`]: a further source is a section of the configuration and one arm there. The
//! configuration's own peers and route files are no threads but read by the plane
//! ([`crate::plane`]) when they change.

mod alarms;
mod driver;
pub mod etcd;
mod http;
mod keepalive;
pub mod kube;
mod renew;
mod start;

use std::net::{Ipv4Addr, Ipv6Addr};

use crossbeam_channel::Sender;
use ipnet::IpNet;
use warren_core::units::MacAddr;

use crate::config::Config;
use crate::flannel::NetConf;
use crate::rib::{SourceKind, SourceUpdate};

pub use start::{SourceError, check_all, start_all};
pub(crate) use start::{kubernetes_network, kubernetes_server};

/// This node, as sources describe it to other nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Own {
    /// Its outer IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its outer IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The inner Ethernet address of its VTEP.
    pub vtep_mac: MacAddr,
}

impl Own {
    /// The node that `config` describes.
    #[must_use]
    pub const fn of(config: &Config) -> Self {
        let node = &config.node;
        Self {
            v4: node.underlay_v4,
            v6: node.underlay_v6,
            vtep_mac: node.vtep_mac,
        }
    }
}

/// A running source; see the [module](self).
pub trait Source: Send {
    /// Which one.
    fn kind(&self) -> SourceKind;

    /// Tells it something. Never waits.
    fn tell(&self, command: SourceCommand);

    /// Waits for its end, which [`SourceCommand::Leave`] or [`SourceCommand::Stop`] brings; a
    /// few seconds at most.
    fn join(self: Box<Self>);
}

/// What a source is told while it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceCommand {
    /// The node's addresses are others.
    Own(Own),
    /// Give back what was claimed for this node, then end.
    Leave,
    /// End, and keep what was claimed.
    Stop,
}

/// What a source has to say besides routes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceNotice {
    /// These subnets are this node's. The node gives its device an address of each, receives what
    /// the network's backend sends, and writes `subnet.env`. Comes again when either changes.
    Claimed {
        /// Who says so.
        source: SourceKind,
        /// The subnets, at most one of each family, without host bits.
        subnets: Vec<IpNet>,
        /// The network that they are of.
        network: NetConf,
    },
    /// Someone should look at this. Said rarely: a line in the log and an alarm of the node.
    Alarm {
        /// Who says so.
        source: SourceKind,
        /// What, in a sentence.
        text: String,
    },
    /// What was claimed was given back; nothing more follows.
    Left {
        /// Who says so.
        source: SourceKind,
    },
}

/// What a source delivers by. Sending waits while the plane has much to do, which is what a
/// source should do then too.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// What there is.
    pub updates: Sender<SourceUpdate>,
    /// What else there is to say.
    pub notices: Sender<SourceNotice>,
}

impl Outlet {
    /// Delivers; whether somebody still listens. A source whose outlet is closed ends.
    #[must_use]
    pub fn update(&self, update: SourceUpdate) -> bool {
        self.updates.send(update).is_ok()
    }

    /// Says something; whether somebody still listens.
    #[must_use]
    pub fn notice(&self, notice: SourceNotice) -> bool {
        self.notices.send(notice).is_ok()
    }
}
