//! The routing information base.
mod event;
mod journal;
mod reconcile;
mod resolve;
mod update;
pub use event::*;
pub use journal::*;
pub use reconcile::*;
pub use resolve::{LiveRoute, Offer, Order, RouteChange, Verdict};
pub use update::*;
