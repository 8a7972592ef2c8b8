//! Who wins when two entries cannot both be true.
//!
//! All entries have one order, which every node computes alike ([`Order`]). Walking it from the
//! first, an entry is accepted unless it conflicts with one accepted before. So the outcome
//! depends on what the entries are and not on when they came.
//!
//! Two entries conflict when
//! - they have a prefix in common; in one exclusive source, or where one is the node's own, also
//!   when a prefix of one lies inside a prefix of the other, unless this host's own files say so
//!   of another node;
//! - they name one underlay address with different encapsulations (another VTEP MAC, say);
//! - they name one VTEP MAC at different underlay addresses of a family.
//!
//! What another node says that would make it this node ([`Whose::Feigned`]) is routed nowhere here,
//! but wins and loses as it does on every other node: whom it beats there it beats here too. Only
//! this node's own entries never lose to it.
//!
//! Most changes touch no conflict and cost a few look-ups. A change that does is decided by walking
//! everything again; the tests hold the quick way against that walk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::units::{Family, MacAddr};

use super::update::{Refusal, Remote, SourceKind, Via};

/// The place of an entry among all; the first wins.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Order {
    /// Whether nothing but this node's memory speaks for it: what a source says comes first.
    pub remembered: bool,
    /// The source's preference; the smaller the better.
    pub preference: u8,
    /// [`Entry::rank`](super::Entry::rank).
    pub rank: u64,
    /// The source.
    pub source: SourceKind,
    /// The key.
    pub key: Arc<str>,
}

/// What an entry wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// The node and its routes.
    pub remote: Arc<Remote>,
    /// Who that node is.
    pub whose: Whose,
}

/// Who wants something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whose {
    /// Another node.
    Another,
    /// This node.
    Own,
    /// Another node that names an address of this one.
    Feigned,
}

/// A route that is accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LiveRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Whose it is.
    pub node: Arc<str>,
    /// Who says so.
    pub source: SourceKind,
    /// Which of its keys.
    pub key: Arc<str>,
    /// The way; `None` when it is this node's own.
    pub via: Option<Via>,
}

/// A prefix whose route changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteChange {
    /// The prefix.
    pub prefix: IpNet,
    /// What was.
    pub before: Option<LiveRoute>,
    /// What is.
    pub after: Option<LiveRoute>,
}

/// Whether an offer is accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is.
    Accepted,
    /// Another one stands before it.
    Rejected {
        /// The name of the conflict, and the winner.
        refusal: Refusal,
        /// Whether it is only that a preferred source has the same prefix.
        shadowed: bool,
    },
}

/// The accepted and the rejected; see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Resolver {
    candidates: BTreeMap<Order, Candidate>,
    accepted: Accepted,
    rejected: BTreeSet<Order>,
    /// How many rejected ones name each accepted one.
    blamed: HashMap<Order, usize>,
    /// What the touched prefixes had when they were last collected.
    touched: BTreeMap<IpNet, Option<LiveRoute>>,
    /// Whether everything has to be walked.
    stale: bool,
}

#[derive(Debug)]
struct Candidate {
    offer: Offer,
    /// The one that stands before it, if any does.
    lost_to: Option<(Order, Clash)>,
}

/// Which rule two entries break.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Clash {
    Prefix(IpNet),
    Overlap(IpNet),
    Underlay(IpAddr),
    Vtep(MacAddr),
}

impl Resolver {
    /// Adds an offer; there is none of this order.
    pub(super) fn insert(&mut self, order: Order, offer: Offer) {
        // What this node is decides who feigns to be it.
        self.stale |= offer.whose == Whose::Own && !self.accepted.feigned.is_empty();
        let lost_to = if self.stale {
            None
        } else {
            let first = self.accepted.first_clash(&order, &offer);
            match first {
                None => {
                    self.accept(&order, &offer);
                    None
                }
                Some((winner, clash)) if winner < order => {
                    *self.blamed.entry(winner.clone()).or_default() += 1;
                    self.rejected.insert(order.clone());
                    Some((winner, clash))
                }
                Some(_) => {
                    self.stale = true;
                    None
                }
            }
        };
        self.candidates.insert(order, Candidate { offer, lost_to });
    }

    /// Takes an offer away.
    pub(super) fn remove(&mut self, order: &Order) {
        let Some(candidate) = self.candidates.remove(order) else {
            return;
        };
        self.rejected.remove(order);
        if self.stale {
            // The walk forgets whatever was accepted, this one included.
            self.accepted_no_more(order, &candidate.offer);
            return;
        }
        match candidate.lost_to {
            Some((winner, _)) => {
                if let Some(count) = self.blamed.get_mut(&winner) {
                    *count -= 1;
                    if *count == 0 {
                        self.blamed.remove(&winner);
                    }
                }
            }
            None => {
                self.accepted_no_more(order, &candidate.offer);
                let is_own = candidate.offer.whose == Whose::Own;
                self.stale = self.blamed.contains_key(order)
                    || (is_own && !self.accepted.feigned.is_empty());
            }
        }
    }

    /// Decides what is undecided and returns the prefixes whose route is another than at the last
    /// call.
    pub(super) fn settle(&mut self) -> Vec<RouteChange> {
        if self.stale {
            self.walk();
        }
        let touched = std::mem::take(&mut self.touched);
        let mut changes = Vec::new();
        for (prefix, before) in touched {
            let after = self.accepted.routes.get(&prefix).cloned();
            if before != after {
                changes.push(RouteChange {
                    prefix,
                    before,
                    after,
                });
            }
        }
        changes
    }

    /// Every accepted route, in order of the prefixes.
    pub(super) fn routes(&self) -> impl Iterator<Item = &LiveRoute> {
        self.accepted.routes.values()
    }

    /// Whether a prefix has an accepted route.
    pub(super) fn is_routed(&self, prefix: &IpNet) -> bool {
        self.accepted.routes.contains_key(prefix)
    }

    /// How many accepted routes of a source lead to other nodes.
    pub(super) fn remote_routes(&self, source: SourceKind) -> usize {
        self.accepted.remote.get(&source).copied().unwrap_or(0)
    }

    /// The offers that are not accepted, in order.
    pub(super) fn rejected(&self) -> impl Iterator<Item = &Order> {
        self.rejected.iter()
    }

    /// Whether an offer is accepted; `None` when there is none of this order.
    pub(super) fn verdict(&self, order: &Order) -> Option<Verdict> {
        let candidate = self.candidates.get(order)?;
        let Some((winner, clash)) = &candidate.lost_to else {
            return Some(Verdict::Accepted);
        };
        let (name, subject) = match clash {
            Clash::Prefix(prefix) => ("duplicate-prefix", prefix.to_string()),
            Clash::Overlap(prefix) => ("overlap", prefix.to_string()),
            Clash::Underlay(address) => ("duplicate-underlay-address", address.to_string()),
            Clash::Vtep(mac) => ("duplicate-vtep-mac", mac.to_string()),
        };
        Some(Verdict::Rejected {
            refusal: Refusal {
                name,
                detail: format!("{subject} belongs to {} {}", winner.source, winner.key),
            },
            shadowed: winner.source != order.source && matches!(clash, Clash::Prefix(_)),
        })
    }

    /// Whether an offer is accepted and routed, without the reason.
    pub(super) fn is_accepted(&self, order: &Order) -> bool {
        let candidate = self.candidates.get(order);
        candidate.is_some_and(|candidate| {
            candidate.lost_to.is_none() && candidate.offer.whose != Whose::Feigned
        })
    }

    /// Decides everything again, in order.
    fn walk(&mut self) {
        self.stale = false;
        let before = std::mem::take(&mut self.accepted);
        self.blamed.clear();
        self.rejected.clear();
        let mut candidates = std::mem::take(&mut self.candidates);
        for (order, candidate) in &mut candidates {
            candidate.lost_to = self.accepted.first_clash(order, &candidate.offer);
            match &candidate.lost_to {
                None => self.accepted.insert(order, &candidate.offer),
                Some((winner, _)) => {
                    *self.blamed.entry(winner.clone()).or_default() += 1;
                    self.rejected.insert(order.clone());
                }
            }
        }
        self.candidates = candidates;
        for (prefix, route) in &before.routes {
            if self.accepted.routes.get(prefix) != Some(route) {
                let touched = self.touched.entry(*prefix);
                touched.or_insert_with(|| Some(route.clone()));
            }
        }
        for prefix in self.accepted.routes.keys() {
            if !before.routes.contains_key(prefix) {
                self.touched.entry(*prefix).or_insert(None);
            }
        }
    }

    fn accept(&mut self, order: &Order, offer: &Offer) {
        self.touch(offer);
        self.accepted.insert(order, offer);
    }

    fn accepted_no_more(&mut self, order: &Order, offer: &Offer) {
        self.touch(offer);
        self.accepted.remove(order, offer);
    }

    fn touch(&mut self, offer: &Offer) {
        for route in &offer.remote.routes {
            let accepted = &self.accepted.routes;
            let touched = self.touched.entry(route.prefix);
            touched.or_insert_with(|| accepted.get(&route.prefix).cloned());
        }
    }
}

/// Prefixes of which those around and inside another one are found without a look at all.
#[derive(Debug, Default)]
struct Nest {
    orders: BTreeMap<IpNet, Order>,
    /// How many there are of each length, IPv4 first.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Nest {
    fn insert(&mut self, prefix: IpNet, order: Order) {
        if self.orders.insert(prefix, order).is_none() {
            *self.lengths.entry(Self::length(&prefix)).or_default() += 1;
        }
    }

    fn remove(&mut self, prefix: &IpNet) {
        if self.orders.remove(prefix).is_none() {
            return;
        }
        let length = Self::length(prefix);
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    fn get(&self, prefix: &IpNet) -> Option<&Order> {
        self.orders.get(prefix)
    }

    /// Those that hold `prefix` or lie in it, itself excepted, in order.
    fn nested(&self, prefix: IpNet) -> impl Iterator<Item = (&IpNet, &Order)> {
        let (is_v6, length) = Self::length(&prefix);
        let lengths = self.lengths.range((is_v6, 0)..(is_v6, length));
        let around = lengths.filter_map(move |((_, length), _)| {
            let around = IpNet::new(prefix.addr(), *length).ok()?;
            self.orders.get_key_value(&around.trunc())
        });
        // They follow it directly.
        let behind = (Bound::Excluded(prefix), Bound::Unbounded);
        let inside = self.orders.range(behind);
        around.chain(inside.take_while(move |(other, _)| prefix.contains(*other)))
    }

    fn length(prefix: &IpNet) -> (bool, u8) {
        (matches!(prefix, IpNet::V6(_)), prefix.prefix_len())
    }
}

/// Accepted entries, by everything that another could conflict with.
#[derive(Debug, Default)]
struct Accepted {
    routes: BTreeMap<IpNet, LiveRoute>,
    prefixes: Nest,
    /// Other nodes', of each exclusive source, which has no nested ones.
    exclusive: BTreeMap<(SourceKind, IpNet), Order>,
    own: Nest,
    /// How this node's own entries describe it.
    own_vias: BTreeMap<Order, Vec<Via>>,
    feigned: BTreeSet<Order>,
    /// How many routes to other nodes each source has.
    remote: BTreeMap<SourceKind, usize>,
    underlay: HashMap<IpAddr, (Option<Encapsulation>, BTreeSet<Order>)>,
    vteps: HashMap<(MacAddr, Family), (IpAddr, BTreeSet<Order>)>,
}

impl Accepted {
    fn insert(&mut self, order: &Order, offer: &Offer) {
        match offer.whose {
            Whose::Another => {}
            Whose::Own => {
                let vias = offer.remote.routes.iter().map(|route| route.via);
                self.own_vias.insert(order.clone(), vias.collect());
            }
            Whose::Feigned => {
                self.feigned.insert(order.clone());
            }
        }
        let is_own = offer.whose == Whose::Own;
        for route in &offer.remote.routes {
            let (prefix, via) = (route.prefix, route.via);
            if offer.whose != Whose::Feigned {
                self.routes.insert(
                    prefix,
                    LiveRoute {
                        prefix,
                        node: Arc::clone(&offer.remote.node),
                        source: order.source,
                        key: Arc::clone(&order.key),
                        via: (!is_own).then_some(via),
                    },
                );
            }
            self.prefixes.insert(prefix, order.clone());
            if is_own {
                self.own.insert(prefix, order.clone());
                // Several sources describe this node, each in its way; others that name its
                // addresses feign to be it.
                continue;
            }
            if order.source.is_exclusive() {
                let key = (order.source, prefix);
                self.exclusive.insert(key, order.clone());
            }
            if offer.whose == Whose::Another {
                *self.remote.entry(order.source).or_default() += 1;
            }
            let holders = self.underlay.entry(via.remote);
            let holders = holders.or_insert_with(|| (via.encapsulation, BTreeSet::new()));
            holders.1.insert(order.clone());
            if let Some(vtep) = via.vtep() {
                let holders = self.vteps.entry(vtep);
                let holders = holders.or_insert_with(|| (via.remote, BTreeSet::new()));
                holders.1.insert(order.clone());
            }
        }
    }

    /// Takes an entry away; does nothing to what another holds.
    fn remove(&mut self, order: &Order, offer: &Offer) {
        self.own_vias.remove(order);
        self.feigned.remove(order);
        for route in &offer.remote.routes {
            let (prefix, via) = (route.prefix, route.via);
            if self.prefixes.get(&prefix) == Some(order) {
                self.prefixes.remove(&prefix);
                self.routes.remove(&prefix);
                self.exclusive.remove(&(order.source, prefix));
                self.own.remove(&prefix);
                if let Some(count) = self.remote.get_mut(&order.source)
                    && offer.whose == Whose::Another
                {
                    *count -= 1;
                }
            }
            if let Some((_, holders)) = self.underlay.get_mut(&via.remote) {
                holders.remove(order);
                if holders.is_empty() {
                    self.underlay.remove(&via.remote);
                }
            }
            if let Some(vtep) = via.vtep()
                && let Some((_, holders)) = self.vteps.get_mut(&vtep)
            {
                holders.remove(order);
                if holders.is_empty() {
                    self.vteps.remove(&vtep);
                }
            }
        }
    }

    /// The first in order of those that conflict with an offer, and how.
    fn first_clash(&self, order: &Order, offer: &Offer) -> Option<(Order, Clash)> {
        let mut clashes: Vec<(&Order, Clash)> = Vec::new();
        for route in &offer.remote.routes {
            let (prefix, via) = (route.prefix, route.via);
            if let Some(found) = self.prefixes.get(&prefix) {
                clashes.push((found, Clash::Prefix(prefix)));
            }
            self.push_nested(order, offer, prefix, &mut clashes);
            match offer.whose {
                Whose::Another => {}
                Whose::Own => continue,
                Whose::Feigned => self.push_own(order, via, &mut clashes),
            }
            if let Some((encapsulation, holders)) = self.underlay.get(&via.remote)
                && *encapsulation != via.encapsulation
                && let Some(found) = holders.first()
            {
                clashes.push((found, Clash::Underlay(via.remote)));
            }
            if let Some((mac, family)) = via.vtep()
                && let Some((address, holders)) = self.vteps.get(&(mac, family))
                && *address != via.remote
                && let Some(found) = holders.first()
            {
                clashes.push((found, Clash::Vtep(mac)));
            }
        }
        if offer.whose == Whose::Own {
            clashes.retain(|(other, _)| !self.feigned.contains(other));
        }
        // Of one winner's clashes the first found is named: the prefix before the addresses.
        let first = clashes.into_iter().min_by(|a, b| a.0.cmp(b.0));
        first.map(|(order, clash)| (order.clone(), clash))
    }

    /// Finds this node's own entries of the same source that stand before an offer and name the
    /// address or the VTEP MAC that it names: as other nodes see the two.
    fn push_own<'a>(&'a self, order: &Order, via: Via, clashes: &mut Vec<(&'a Order, Clash)>) {
        let before = self.own_vias.range(..order);
        for (own, vias) in before.filter(|(own, _)| own.source == order.source) {
            for own_via in vias {
                let one_address = own_via.remote == via.remote;
                if one_address && own_via.encapsulation != via.encapsulation {
                    clashes.push((own, Clash::Underlay(via.remote)));
                }
                if let Some((mac, family)) = via.vtep()
                    && own_via.vtep() == Some((mac, family))
                    && !one_address
                {
                    clashes.push((own, Clash::Vtep(mac)));
                }
            }
        }
    }

    /// Finds the accepted prefixes that lie around or inside `prefix` where that is not allowed.
    fn push_nested<'a>(
        &'a self,
        order: &Order,
        offer: &Offer,
        prefix: IpNet,
        clashes: &mut Vec<(&'a Order, Clash)>,
    ) {
        let is_own = offer.whose == Whose::Own;
        if is_own || !order.source.is_local() {
            for (other, found) in self.own.nested(prefix) {
                clashes.push((found, Clash::Overlap(*other)));
            }
        }
        if is_own {
            let others = self.prefixes.nested(prefix);
            let theirs = others.filter(|(_, order)| !order.source.is_local());
            for (other, found) in theirs {
                clashes.push((found, Clash::Overlap(*other)));
            }
        } else if order.source.is_exclusive() {
            // Accepted prefixes of the source are disjoint, so at most the last one that begins
            // before this one can hold it, and those inside it follow it directly.
            let from = (order.source, prefix);
            let around = self.exclusive.range(..from).next_back();
            let after = (Bound::Excluded(from), Bound::Unbounded);
            let inside = self.exclusive.range(after);
            let inside = inside.take_while(|((source, other), _)| {
                *source == order.source && prefix.contains(other)
            });
            let around = around
                .filter(|((source, other), _)| *source == order.source && other.contains(&prefix));
            for ((_, other), found) in around.into_iter().chain(inside) {
                clashes.push((found, Clash::Overlap(*other)));
            }
        }
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
