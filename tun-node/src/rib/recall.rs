//! What followed from what the sources said, to be routed again at once after a restart.
//!
//! A reconciler takes ten times as long to decide a hundred thousand entries again as a table takes
//! to be made of the routes that they came to. So the routes are remembered too: tables are made of
//! them ([`Rib::recall`](super::Rib::recall)), packets pass, and what the reconciler comes to takes
//! their place ([`Rib::confirm`](super::Rib::confirm)). That is the same, unless the files or the
//! program are others, or two entries that cannot both be true were told in another order.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::reconcile::Reconciler;
use super::update::{SourceKind, Via};

/// Routes and what they were decided by.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recall {
    /// [`Reconciler::basis`] of when it was decided; by another one it may not hold.
    pub basis: u64,
    /// The ways of the routes, each once.
    pub ways: Vec<RecallWay>,
    /// Each prefix with the place of its way.
    pub routes: Vec<(IpNet, u32)>,
}

/// The way of some routes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RecallWay {
    /// Who said so.
    pub source: SourceKind,
    /// Whose they are.
    pub node: Arc<str>,
    /// The way there; `None` for this node's own.
    pub via: Option<Via>,
}

impl Recall {
    /// The routes of those sources that are remembered.
    #[must_use]
    pub fn of(reconciler: &Reconciler, is_remembered: impl Fn(SourceKind) -> bool) -> Self {
        let mut recall = Self {
            basis: reconciler.basis(),
            ..Self::default()
        };
        let mut places: HashMap<RecallWay, u32> = HashMap::new();
        let routes = reconciler.routes();
        for route in routes.filter(|route| is_remembered(route.source)) {
            let way = RecallWay {
                source: route.source,
                node: Arc::clone(&route.node),
                via: route.via,
            };
            let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
            let place = *places.entry(way).or_insert_with_key(|way| {
                recall.ways.push(way.clone());
                next
            });
            recall.routes.push((route.prefix, place));
        }
        recall
    }
}
