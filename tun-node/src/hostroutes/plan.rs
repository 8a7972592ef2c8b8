//! What is to be done to the kernel's table so that it has the routes it should have: a state
//! machine without a socket.
//!
//! [`Plan`] knows which routes should be there and which of ours are, and names the changes that
//! lead from one to the other ([`Plan::poll`]). It learns of the kernel by a listing of the whole
//! table, by events, and by the outcome of what it asked for.
//!
//! A route of somebody else is never changed. Where one stands in the place that a route of ours
//! should have (same prefix, same metric) the prefix is *taken*: an alarm, until it goes. That is
//! found out by being refused, so the plan need not know the routes of others, of which there may
//! be a million.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::netlink::{ListedRoute, PROTOCOL};

/// The difference between the table and what it should be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    desired: BTreeMap<IpNet, ListedRoute>,
    /// Those of the kernel's that are ours.
    ours: BTreeMap<IpNet, Vec<ListedRoute>>,
    /// Prefixes at which somebody else's route stands in the place of ours, and that route where it
    /// is known.
    taken: BTreeMap<IpNet, Option<ListedRoute>>,
    /// Taken, and a listing was asked for to say by what.
    unexplained: BTreeSet<IpNet>,
    /// Prefixes to look at.
    dirty: BTreeSet<IpNet>,
    /// Prefixes at which the kernel refused a change.
    failed: BTreeSet<IpNet>,
    listing_wanted: bool,
}

/// A change to the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Adds a route; must be refused where there is one of that prefix and metric.
    Add(ListedRoute),
    /// Puts a route in the place of one of ours with that prefix and metric.
    Replace(ListedRoute),
    /// Deletes a route of ours.
    Delete(ListedRoute),
}

impl Action {
    /// The route that it is about.
    pub(super) const fn subject(&self) -> &ListedRoute {
        match self {
            Self::Add(route) | Self::Replace(route) | Self::Delete(route) => route,
        }
    }
}

/// What became of an [`Action`] that did not succeed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// There is a route already.
    Exists,
    /// There is no such route.
    NotFound,
    /// Anything else: the device is down or gone, most of the time.
    Otherwise,
}

/// What happened to a route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RouteEvent {
    /// It was added.
    Added(ListedRoute),
    /// It was put in the place of another one with its prefix and metric.
    Replaced(ListedRoute),
    /// It was deleted.
    Removed(ListedRoute),
}

impl Plan {
    /// These routes, and no others of ours, should be there; one for each prefix.
    pub(super) fn set_desired(&mut self, routes: impl IntoIterator<Item = ListedRoute>) {
        let mut desired = BTreeMap::new();
        for mut route in routes {
            normalise(&mut route);
            desired.insert(route.route.prefix, route);
        }
        let before = std::mem::take(&mut self.desired);
        for (prefix, route) in &before {
            if desired.get(prefix) != Some(route) {
                self.forget(*prefix);
            }
        }
        for prefix in desired.keys() {
            if !before.contains_key(prefix) {
                self.forget(*prefix);
            }
        }
        self.desired = desired;
    }

    /// This is the whole table. `is_ours` says which routes of our protocol number this node is
    /// responsible for.
    pub(super) fn handle_listed(
        &mut self,
        table: impl IntoIterator<Item = ListedRoute>,
        is_ours: impl Fn(&ListedRoute) -> bool,
    ) {
        self.listing_wanted = false;
        self.ours.clear();
        self.taken.clear();
        for mut listed in table {
            normalise(&mut listed);
            let prefix = listed.route.prefix;
            if listed.route.protocol == PROTOCOL && is_ours(&listed) {
                self.ours.entry(prefix).or_default().push(listed);
            } else if self.stands_in_the_way(&listed) {
                self.taken.insert(prefix, Some(listed));
                self.unexplained.remove(&prefix);
            }
        }
        self.failed.clear();
        let all = self.desired.keys().chain(self.ours.keys());
        self.dirty = all.copied().collect();
    }

    /// Something happened to a route; not by what [`Self::poll`] asked for. Returns whether it
    /// has to do with a route of ours.
    pub(super) fn handle_event(&mut self, event: RouteEvent) -> bool {
        let (RouteEvent::Added(mut listed)
        | RouteEvent::Replaced(mut listed)
        | RouteEvent::Removed(mut listed)) = event.clone();
        normalise(&mut listed);
        let prefix = listed.route.prefix;
        let is_known = self.desired.contains_key(&prefix) || self.ours.contains_key(&prefix);
        if !is_known {
            return false;
        }
        let is_ours = listed.route.protocol == PROTOCOL;
        let ours = self.ours.entry(prefix).or_default();
        match event {
            RouteEvent::Added(_) if is_ours => {
                if !ours.contains(&listed) {
                    ours.push(listed);
                }
            }
            // It stands behind ours, or at another metric.
            RouteEvent::Added(_) => {}
            RouteEvent::Replaced(_) => {
                ours.retain(|own| own.route.metric != listed.route.metric);
                if is_ours {
                    ours.push(listed);
                } else if self.stands_in_the_way(&listed) {
                    self.taken.insert(prefix, Some(listed));
                }
            }
            RouteEvent::Removed(_) => {
                ours.retain(|own| !(is_ours && *own == listed));
                self.taken.remove(&prefix);
                self.unexplained.remove(&prefix);
            }
        }
        self.dirty.insert(prefix);
        true
    }

    /// The next changes, at most `most`. They are taken to succeed; [`Self::handle_refused`] says
    /// otherwise.
    pub(super) fn poll(&mut self, most: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        while actions.len() < most
            && let Some(prefix) = self.dirty.pop_first()
        {
            self.look_at(prefix, &mut actions);
        }
        actions
    }

    /// The kernel did not do what [`Self::poll`] said.
    pub(super) fn handle_refused(&mut self, action: &Action, why: Refused) {
        let subject = action.subject();
        let prefix = subject.route.prefix;
        let ours = self.ours.entry(prefix).or_default();
        match (action, why) {
            (Action::Add(_), Refused::Exists) => {
                ours.retain(|own| own != subject);
                self.taken.insert(prefix, None);
                // Perhaps it is one of ours of which nothing was heard.
                self.listing_wanted |= self.unexplained.insert(prefix);
            }
            (Action::Delete(_), Refused::NotFound) => {}
            (Action::Add(_) | Action::Replace(_), _) => {
                ours.retain(|own| own != subject);
                self.failed.insert(prefix);
            }
            (Action::Delete(_), Refused::Exists | Refused::Otherwise) => {
                ours.push(subject.clone());
                self.failed.insert(prefix);
            }
        }
        if ours.is_empty() {
            self.ours.remove(&prefix);
        }
    }

    /// Looks again at what failed: time passed, or a device changed.
    pub(super) fn retry(&mut self) {
        self.dirty.append(&mut self.failed);
    }

    /// Nothing is known of the table any more.
    pub(super) const fn want_listing(&mut self) {
        self.listing_wanted = true;
    }

    /// Whether [`Self::handle_listed`] should be called.
    pub(super) const fn is_listing_wanted(&self) -> bool {
        self.listing_wanted
    }

    /// Whether a change failed that [`Self::retry`] would try again.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Prefixes that somebody else's route leads elsewhere. One that leads to the same device, as
    /// the kernel's own for an address does, is as good.
    pub(super) fn taken(&self) -> impl Iterator<Item = (IpNet, Option<&ListedRoute>)> {
        let taken = self.taken.iter();
        let taken = taken.map(|(prefix, by)| (*prefix, by.as_ref()));
        taken.filter(|(prefix, by)| {
            let desired = self.desired.get(prefix);
            desired.is_some_and(|desired| by.map(|by| by.device) != Some(desired.device))
        })
    }

    /// Our routes as far as is known: what a clean end deletes.
    pub(super) fn ours(&self) -> impl Iterator<Item = &ListedRoute> {
        self.ours.values().flatten()
    }

    fn look_at(&mut self, prefix: IpNet, actions: &mut Vec<Action>) {
        let ours = self.ours.remove(&prefix).unwrap_or_default();
        let wanted = self.desired.get(&prefix);
        let mut kept = Vec::new();
        let is_there = wanted.is_some_and(|wanted| ours.contains(wanted));
        if let Some(wanted) = wanted {
            kept.push(wanted.clone());
            let is_beside = |own: &ListedRoute| own.route.metric == wanted.route.metric;
            if is_there {
            } else if ours.iter().any(is_beside) {
                actions.push(Action::Replace(wanted.clone()));
            } else if self.taken.contains_key(&prefix) {
                kept.clear();
            } else {
                actions.push(Action::Add(wanted.clone()));
            }
        }
        let replaced = actions.last().is_some_and(
            |last| matches!(last, Action::Replace(wanted) if wanted.route.prefix == prefix),
        );
        let mut replaced = replaced.then(|| kept.first().map(|own| own.route.metric));
        for own in ours {
            if kept.contains(&own) {
                continue;
            }
            // One of them goes by being replaced.
            if replaced.is_some_and(|metric| metric == Some(own.route.metric)) {
                replaced = None;
                continue;
            }
            actions.push(Action::Delete(own));
        }
        if !kept.is_empty() {
            self.ours.insert(prefix, kept);
        }
    }

    /// What was found out about a prefix was about another route.
    fn forget(&mut self, prefix: IpNet) {
        self.taken.remove(&prefix);
        self.unexplained.remove(&prefix);
        self.failed.remove(&prefix);
        self.dirty.insert(prefix);
    }

    fn stands_in_the_way(&self, listed: &ListedRoute) -> bool {
        let desired = self.desired.get(&listed.route.prefix);
        desired.is_some_and(|desired| desired.route.metric == listed.route.metric)
    }
}

/// Writes a route as the kernel lists it: no metric means 0 for IPv4 and 1024 for IPv6
/// (`IP6_RT_PRIO_USER`).
fn normalise(listed: &mut ListedRoute) {
    let route = &mut listed.route;
    route.prefix = route.prefix.trunc();
    route.metric = match route.prefix {
        IpNet::V4(_) => route.metric.filter(|metric| *metric != 0),
        IpNet::V6(_) => Some(route.metric.unwrap_or(1024)),
    };
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
