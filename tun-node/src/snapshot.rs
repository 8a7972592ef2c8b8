//! What a node remembers across a restart: written while it runs, read before any source answers.
//!
//! ```text
//!  control thread ── Saved ──> Keeper ── temporary file, fsync, rename, fsync ──> FILE
//!                              (thread)                                           FILE.old
//!  start ── load ── FILE, or else FILE.old, or else nothing ──> Saved ──> RIB as "remembered"
//! ```
//!
//! Three rules:
//!
//! - *Whole or not at all.* A file is believed only when it belongs to this user, nobody else may
//!   write it, its checksum holds and every value in it is one that a source could have said
//!   (`codec.rs`). What is torn, cut, damaged, foreign or of a newer version is passed over, with
//!   its reason; the generation before it is tried, and without one the node starts with nothing.
//! - *Never worse than before.* A new generation becomes visible by a rename after it is on the
//!   disk, and only a whole one is kept as the old one (`file.rs`).
//! - *Never in the way.* A disk that is full or gone costs an alarm and a retry, not a packet
//!   (`keeper.rs`).
//!
//! Beside what the sources said the file has what followed from it, route by route ([`Recall`]). That
//! is a tenth of the work to read and to put into tables: packets are forwarded by it at once, and
//! meanwhile the rest is read and decided again.
//!
//! What is restored is remembered only: the first word of a source replaces it, and what no source
//! confirms ages out. The age counts from the last confirmation and across the restart, by the
//! boot-time clock within one boot of the host, by the wall clock otherwise.

mod checksum;
mod codec;
mod file;
mod keeper;
mod memory;

use std::time::Duration;

use ipnet::IpNet;
use warren_core::units::{Family, MacAddr, Mtu};

pub use codec::Damage;
pub use file::{Generation, Loaded, StateFile, StateFileError};
pub use keeper::{Keeper, KeeperReader, KeeperReport};
pub use memory::{Memory, Remembered};

use crate::rib::{Entry, Recall, SourceKind};

/// Everything that is remembered.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Saved {
    /// The node's name: the memory of another node is none.
    pub node: String,
    /// What each source said.
    pub sources: Vec<SavedSource>,
    /// What followed from it; `None` where that is not known.
    pub recall: Option<Recall>,
    /// What the node has claimed.
    pub leases: Vec<SavedLease>,
    /// What is known about the ways to peers.
    pub paths: Vec<SavedPath>,
}

/// What a source said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedSource {
    /// Which source.
    pub source: SourceKind,
    /// Which of its kind: endpoint and path, say. Entries of another network are not to be
    /// restored.
    pub scope: String,
    /// Where in its history it was.
    pub position: u64,
    /// How long ago it last confirmed the entries: when saved, and after loading, as of then.
    pub age: Duration,
    /// The usable entries, in any order; refused ones are not saved.
    pub entries: Vec<Entry>,
}

/// What the node has claimed from a source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedLease {
    /// Which source.
    pub source: SourceKind,
    /// Which of its kind, as [`SavedSource::scope`].
    pub scope: String,
    /// The node's own prefixes.
    pub prefixes: Vec<IpNet>,
    /// Its VTEP MAC address over each family that it has.
    pub vteps: Vec<(Family, MacAddr)>,
    /// The network that the prefixes are part of, in the source's own format; empty without one.
    pub network: String,
}

/// What is known about the way to a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedPath {
    /// The peer's name.
    pub peer: String,
    /// The path MTU: octets of the outer packet.
    pub underlay_mtu: Mtu,
}

#[cfg(test)]
mod tests;
