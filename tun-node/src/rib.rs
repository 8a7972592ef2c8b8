//! Routes from every source, merged into one table and published to the workers.
//!
//! ```text
//!  sources ──> Reconciler ── RouteChange ──┐                 ┌─ Published ───────────┐  once per batch
//!  configuration: peers, static routes ────┼─> Rib ─ publish │ epoch  (atomic)       │<── TablesReader ── worker 0
//!  paths: the way to each peer ────────────┘                 │ tables (lock, Arc)    │<── TablesReader ── worker 1
//!                                                            │ book   (lock)         │<── control socket, metrics
//!                                                            └───────────────────────┘
//! ```
//!
//! The [`Reconciler`] decides which routes there are; the [`Rib`] makes tables of them. Both belong
//! to the thread that runs the control plane ([`crate::plane`]). A publication swaps an
//! `Arc<Tables>` under a lock and then raises the epoch; a worker reads the epoch, which is one
//! atomic load, and takes the lock only when it moved. So a packet never waits for a route, and a
//! worker sees a snapshot whole or not at all. What people want to see besides (names, origins)
//! is in the book, which no worker reads.
//!
//! Opens no socket and programs no kernel route.

mod book;
mod event;
mod journal;
mod local;
mod recall;
mod reconcile;
mod resolve;
mod tables;
mod update;

pub use book::{Origin, Published, RibPeer, RibRoute, Snapshot, TablesReader};
pub use event::{Event, Identity, Outcome, Quarantined, Settings, SourceStatus, Why};
pub use journal::{Journal, JournalEntry, What};
pub use local::{LocalRoutes, StaticNext, StaticRoute, config_update};
pub use recall::{Recall, RecallWay};
pub use reconcile::Reconciler;
pub use resolve::{LiveRoute, Offer, Order, RouteChange, Verdict, Whose};
pub use tables::{Effects, PeerChange, PeerSpec, Rib, RibError, Terms, Way};
pub use update::{
    Change, Content, Continuity, Entry, Refusal, Remote, RemoteRoute, SourceKind, SourceUpdate,
    UpdateKind, Via,
};
