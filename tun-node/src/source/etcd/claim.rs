//! Which subnet this node should have, and what is to be done about it.
//!
//! Level-triggered: [`Claim::next`] compares what the store holds with what it should hold and
//! names the one write that brings them closer. Nothing depends on remembering what was asked
//! before, so a lost answer, a crash or a restored backup is repaired by looking again.
//!
//! A lease belongs to the node whose underlay address stands in its `PublicIP`, as with flannel.
//! Every write is a compare-and-swap. One that did not happen is followed by a pause, in which
//! leases are renewed and nothing is written. A reservation (a key without lease) of this node's address
//! is used and stays without lease; one of another address is simply taken.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use warren_core::units::{MacAddr, Time};

use super::store::{Condition, Request};
use crate::flannel::{
    Backend, LeaseAttrs, LeaseBackend, NetConf, Prefix, Stack, SubnetKey, VxlanAttrs,
};

/// This node, as its lease describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OwnNode {
    /// Its outer IPv4 address: its identity in the network.
    pub public_ip: Ipv4Addr,
    /// Its outer IPv6 address, needed in a dual-stack network.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The inner Ethernet address of its VTEP over IPv4.
    pub vtep_mac_v4: MacAddr,
    /// The same over IPv6.
    pub vtep_mac_v6: MacAddr,
}

impl OwnNode {
    /// The lease that it writes in a network.
    #[must_use]
    pub fn attrs(&self, network: &NetConf) -> LeaseAttrs {
        let backend = match network.backend {
            Backend::Vxlan(vxlan) => {
                let attrs = |mac| VxlanAttrs {
                    vni: vxlan.vni,
                    mac,
                };
                let v4 = network.v4.is_some().then(|| attrs(self.vtep_mac_v4));
                let v6 = network.v6.is_some().then(|| attrs(self.vtep_mac_v6));
                LeaseBackend::Vxlan { v4, v6 }
            }
            Backend::Ipip { .. } => LeaseBackend::Ipip,
            Backend::HostGw => LeaseBackend::HostGw,
            Backend::Udp { .. } => LeaseBackend::Udp,
        };
        let v6 = network.v6.is_some();
        LeaseAttrs {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6.filter(|_| v6),
            backend,
        }
    }
}

/// A subnet key of the store, as far as claims need it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Holding {
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) lease: i64,
    /// `None` when the value cannot be read; the subnet is taken all the same.
    pub(super) attrs: Option<LeaseAttrs>,
}

/// The subnets of the store.
pub(super) type Holdings = BTreeMap<SubnetKey, Holding>;

/// The claim of this node; see the [module](self).
#[derive(Debug)]
pub(super) struct Claim {
    own: OwnNode,
    ttl_s: i64,
    seed: u64,
    lease: Option<OwnLease>,
    held: Option<SubnetKey>,
    /// What to ask for first: what the node had.
    wanted: Option<SubnetKey>,
    /// When the value is written again, so that a flannel node that listed an old one sees it.
    rewrites: Vec<Time>,
    /// No value is corrected before this, however wrong it is.
    not_before: Time,
    patience: Duration,
    /// Nothing is written before this.
    write_at: Time,
    /// The pause after the next write that does not happen.
    write_pause: Duration,
    leaving: bool,
    alarm: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct OwnLease {
    number: i64,
    renew_at: Time,
}

impl Claim {
    pub(super) fn new(own: OwnNode, ttl_s: i64, seed: u64, previous: Option<SubnetKey>) -> Self {
        Self {
            own,
            ttl_s,
            seed,
            lease: None,
            held: None,
            wanted: previous,
            rewrites: Vec::new(),
            not_before: Time::ZERO,
            patience: PATIENCE_LEAST,
            write_at: Time::ZERO,
            write_pause: WRITE_PAUSE_LEAST,
            leaving: false,
            alarm: None,
        }
    }

    /// The node's addresses are others.
    pub(super) fn set_own(&mut self, own: OwnNode) {
        self.own = own;
    }

    /// The node leaves: what it holds is given back.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// A lease was granted or renewed; 0 seconds means that it is gone.
    pub(super) fn leased(&mut self, number: i64, ttl_s: i64, now: Time) {
        let ttl = u64::try_from(ttl_s).unwrap_or(0);
        self.lease = (ttl > 0).then(|| OwnLease {
            number,
            // Three tries fit into its life.
            renew_at: now.after(Duration::from_millis(ttl * 250).min(RENEW_EVERY_MOST)),
        });
    }

    /// The store knows nothing of the lease.
    pub(super) fn lease_lost(&mut self) {
        self.lease = None;
    }

    /// A write happened.
    pub(super) fn written(&mut self) {
        self.write_pause = WRITE_PAUSE_LEAST;
    }

    /// The condition of a write did not hold. As a rule somebody was faster; but whatever the
    /// reason is, and however long it lasts, writes that come to nothing become few.
    pub(super) fn not_written(&mut self, now: Time) {
        self.write_at = now.after(self.write_pause);
        self.write_pause = (self.write_pause * 2).min(WRITE_PAUSE_MOST);
    }

    pub(super) fn lease(&self) -> Option<i64> {
        self.lease.map(|lease| lease.number)
    }

    pub(super) fn held(&self) -> Option<SubnetKey> {
        self.held
    }

    /// Whether the node no longer wants a subnet that it had.
    pub(super) fn is_given_up(&self, key: &SubnetKey) -> bool {
        match self.held {
            Some(held) => held != *key,
            None => self.wanted != Some(*key),
        }
    }

    pub(super) fn own(&self) -> &OwnNode {
        &self.own
    }

    /// Whether nothing of this node's is left in the store after leaving.
    pub(super) fn has_left(&self, store: &Holdings) -> bool {
        let held = self.held.and_then(|key| store.get(&key));
        self.leaving && self.lease.is_none() && held.is_none_or(|held| held.lease == 0)
    }

    pub(super) fn poll_alarm(&mut self) -> Option<String> {
        self.alarm.take()
    }

    /// When [`Self::next`] may have something to do though the store did not change; `now` is
    /// when it last had nothing.
    pub(super) fn poll_timeout(&self, now: Time) -> Option<Time> {
        let renew = self.lease.map(|lease| lease.renew_at);
        let rewrite = self.rewrites.first().copied();
        let times = [renew, rewrite, Some(self.not_before), Some(self.write_at)];
        // What was due and not done waits for something else.
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// The write that brings the store closer to what it should be; `None` when it is that.
    /// `is_named` says of an address whether any key begins with it.
    pub(super) fn next(
        &mut self,
        network: Option<&NetConf>,
        store: &Holdings,
        is_named: impl Fn(Ipv4Addr) -> bool,
        prefix: &str,
        now: Time,
    ) -> Option<Request> {
        let may_write = now >= self.write_at;
        if self.leaving {
            return self.give_back(store, prefix, may_write);
        }
        let network = network?;
        if network.v4.is_none() {
            let text = "the network has no IPv4, without which etcd's keys name no subnet";
            self.alarm = Some(text.to_owned());
            return None;
        }
        if network.v6.is_some() && self.own.public_ipv6.is_none() {
            let text = "the network has IPv6, but this node has no IPv6 underlay address";
            self.alarm = Some(text.to_owned());
            return None;
        }
        self.look(network, store);
        if may_write && let Some(extra) = self.extra(store, prefix) {
            return Some(extra);
        }
        let attrs = self.own.attrs(network);
        let Some(key) = self.held else {
            let lease = match self.lease {
                Some(lease) => lease.number,
                None => return Some(Request::Grant { ttl_s: self.ttl_s }),
            };
            if !may_write {
                return None;
            }
            let Some(key) = self.choose(network, store, is_named) else {
                self.alarm = Some("every subnet of the network is taken".to_owned());
                return None;
            };
            return Some(Request::Put {
                key: key.under(prefix),
                condition: Condition::Absent,
                value: attrs.to_json(),
                lease,
            });
        };
        let holding = store.get(&key)?;
        let lease = match self.lease {
            // A reservation.
            _ if holding.lease == 0 => 0,
            Some(lease) if lease.renew_at <= now => {
                return Some(Request::Renew {
                    lease: lease.number,
                });
            }
            Some(lease) => lease.number,
            None => return Some(Request::Grant { ttl_s: self.ttl_s }),
        };
        if !may_write || !self.is_to_be_written(holding, &attrs, lease, now) {
            return None;
        }
        Some(Request::Put {
            key: key.under(prefix),
            condition: Condition::Unchanged(holding.mod_revision),
            value: attrs.to_json(),
            lease,
        })
    }

    fn is_to_be_written(
        &mut self,
        holding: &Holding,
        attrs: &LeaseAttrs,
        lease: i64,
        now: Time,
    ) -> bool {
        let wrong = holding.attrs.as_ref() != Some(attrs) || holding.lease != lease;
        if !wrong {
            if self.not_before <= now {
                (self.not_before, self.patience) = (Time::ZERO, PATIENCE_LEAST);
            }
            let due = self.rewrites.first().is_some_and(|at| *at <= now);
            if due {
                self.rewrites.remove(0);
            }
            return due;
        }
        // Another node with this one's address would correct it back, without end.
        if self.not_before > now {
            return false;
        }
        self.not_before = now.after(self.patience);
        self.patience = (self.patience * 2).min(PATIENCE_MOST);
        let times = REWRITES_AFTER.iter();
        self.rewrites = times.map(|after| now.after(*after)).collect();
        true
    }

    /// Finds out what is this node's in the store.
    pub(super) fn look(&mut self, network: &NetConf, store: &Holdings) {
        if let Some(key) = self.held {
            let holding = store.get(&key);
            let mine = holding.is_some_and(|holding| self.is_mine(holding));
            if mine && key.conforms(network) && !self.is_beaten(&key, network, store) {
                return;
            }
            self.held = None;
            // Gone: it is asked for again. Another's, or unfit: it is not.
            self.wanted = holding.is_none().then_some(key);
            if holding.is_some() && !mine {
                self.alarm = Some(format!("another node has {key} now"));
            }
        }
        let fits = |key: &SubnetKey| key.conforms(network) && !self.is_beaten(key, network, store);
        let mine = store.iter().filter(|(_, holding)| self.is_mine(holding));
        let mut mine = mine.map(|(key, _)| *key).filter(fits);
        let wanted = self.wanted;
        let first = mine.next();
        self.held = match wanted {
            Some(wanted) if first == Some(wanted) || mine.any(|key| key == wanted) => wanted.into(),
            Some(_) | None => first,
        };
    }

    /// Whether a key is this node's: by its address or, when that was another, by the lease.
    fn is_mine(&self, holding: &Holding) -> bool {
        let attrs = holding.attrs.as_ref();
        attrs.is_some_and(|attrs| attrs.public_ip == self.own.public_ip)
            || self.lease().is_some_and(|lease| lease == holding.lease)
    }

    /// Whether another node has an overlapping subnet and claimed it first.
    ///
    /// Two keys may overlap though each was written under a condition: in a dual-stack network
    /// by the IPv6 part, and after a change of the subnets' length.
    fn is_beaten(&self, key: &SubnetKey, network: &NetConf, store: &Holdings) -> bool {
        let place = |key: &SubnetKey, holding: &Holding| {
            (!key.conforms(network), holding.create_revision, *key)
        };
        let Some(own) = store.get(key) else {
            return false;
        };
        store.iter().any(|(other, holding)| {
            other != key
                && other.overlaps(key)
                && other.fits(network).is_ok()
                && !self.is_mine(holding)
                && holding.attrs.is_some()
                && place(other, holding) < place(key, own)
        })
    }

    /// The deletion of a key of this node's that it does not use.
    ///
    /// Its value is of another time and would contradict the present one.
    fn extra(&self, store: &Holdings, prefix: &str) -> Option<Request> {
        let mut mine = store.iter().filter(|(key, holding)| {
            holding.lease != 0 && self.is_mine(holding) && self.held != Some(**key)
        });
        let (key, holding) = mine.next()?;
        Some(Request::Delete {
            key: key.under(prefix),
            unchanged: holding.mod_revision,
        })
    }

    fn give_back(&mut self, store: &Holdings, prefix: &str, may_write: bool) -> Option<Request> {
        if let Some(lease) = self.lease {
            return Some(Request::Revoke {
                lease: lease.number,
            });
        }
        let key = self.held?;
        let holding = store.get(&key)?;
        (may_write && holding.lease != 0 && self.is_mine(holding)).then(|| Request::Delete {
            key: key.under(prefix),
            unchanged: holding.mod_revision,
        })
    }

    /// The subnet to ask for: the one before, or any of the first hundred that are free.
    ///
    /// A key that no configuration could have made takes nothing away, so that nobody can shut
    /// the network with one key; and one that this configuration would not make (of before it
    /// was changed, or of malice) is respected as long as there is room elsewhere. But an address
    /// that any key begins with is taken: the claim of another one of it would not be written.
    fn choose(
        &mut self,
        network: &NetConf,
        store: &Holdings,
        is_named: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<SubnetKey> {
        let conforming = Occupied::of(store, |key| key.conforms(network));
        if let Some(wanted) = self.wanted
            && wanted.conforms(network)
            && conforming.has_room_for(&wanted)
            && !is_named(wanted.v4.addr())
        {
            return Some(wanted);
        }
        let fitting = Occupied::of(store, |key| key.fits(network).is_ok());
        self.choose_besides(network, &fitting, &is_named)
            .or_else(|| self.choose_besides(network, &conforming, &is_named))
    }

    fn choose_besides(
        &mut self,
        network: &NetConf,
        occupied: &Occupied,
        is_named: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<SubnetKey> {
        let stack = network.v4.as_ref()?;
        let free: Vec<(u64, Ipv4Net)> = subnets(stack, 0)
            .filter(|(_, subnet)| occupied.v4.has_room_for(*subnet) && !is_named(subnet.addr()))
            .take(CHOICES)
            .collect();
        let choices = u64::try_from(free.len()).ok().filter(|count| *count > 0)?;
        let choice = usize::try_from(self.random() % choices).ok()?;
        let (number, v4) = *free.get(choice)?;
        let v6 = match &network.v6 {
            None => None,
            // The same number in both families, so that nodes that want one IPv4 subnet want one
            // key, which only one of them gets.
            Some(stack) => {
                let mut from_there = subnets(stack, number).chain(subnets(stack, 0));
                let found = from_there.find(|(_, subnet)| occupied.v6.has_room_for(*subnet));
                Some(found?.1)
            }
        };
        Some(SubnetKey { v4, v6 })
    }

    /// The next number: splitmix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The subnets that a configuration hands out, with their numbers, from number `first` on.
fn subnets<N: Prefix>(stack: &Stack<N>, first: u64) -> impl Iterator<Item = (u64, N)> + use<N> {
    let (min, max, len) = (stack.subnet_min, stack.subnet_max, stack.subnet_len);
    let count = N::count(min, max, len);
    let numbers = first..count.min(first.saturating_add(SEARCHED_MOST));
    numbers.filter_map(move |number| Some((number, N::at(N::step(min, number, len), len)?)))
}

/// The prefixes of keys.
#[derive(Debug)]
struct Occupied {
    v4: Taken<Ipv4Net>,
    v6: Taken<Ipv6Net>,
}

impl Occupied {
    fn of(store: &Holdings, counts: impl Fn(&SubnetKey) -> bool) -> Self {
        let keys = || store.keys().filter(|key| counts(key));
        Self {
            v4: keys().map(|key| key.v4).collect(),
            v6: keys().filter_map(|key| key.v6).collect(),
        }
    }

    fn has_room_for(&self, key: &SubnetKey) -> bool {
        self.v4.has_room_for(key.v4) && key.v6.is_none_or(|v6| self.v6.has_room_for(v6))
    }
}

/// Prefixes that may nest, for the question whether another overlaps any.
#[derive(Debug)]
struct Taken<N>(Vec<N>);

impl<N: Prefix> FromIterator<N> for Taken<N> {
    fn from_iter<I: IntoIterator<Item = N>>(prefixes: I) -> Self {
        // Sorted, without those inside another: these are disjoint and begin and end in one order.
        let mut sorted: Vec<N> = prefixes.into_iter().collect();
        sorted.sort_unstable();
        let mut outermost: Vec<N> = Vec::with_capacity(sorted.len());
        for prefix in sorted {
            if !outermost
                .last()
                .is_some_and(|last| last.holds(prefix.first()))
            {
                outermost.push(prefix);
            }
        }
        Self(outermost)
    }
}

impl<N: Prefix> Taken<N> {
    fn has_room_for(&self, prefix: N) -> bool {
        let after = self
            .0
            .partition_point(|other| other.first() <= prefix.first());
        let before = after.checked_sub(1).and_then(|at| self.0.get(at));
        let next = self.0.get(after);
        !before.is_some_and(|other| other.holds(prefix.first()))
            && !next.is_some_and(|other| prefix.holds(other.first()))
    }
}

/// How many free subnets are looked at; flannel's number.
const CHOICES: usize = 100;
/// How far they are searched for.
const SEARCHED_MOST: u64 = 1 << 20;
/// A lease is renewed at least this often, however long it is.
const RENEW_EVERY_MOST: Duration = Duration::from_secs(3600);
/// A value that was changed is written again after these times.
const REWRITES_AFTER: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];
/// How long a value is left alone after it was written, wrong or not.
const PATIENCE_LEAST: Duration = Duration::from_millis(250);
const PATIENCE_MOST: Duration = Duration::from_secs(600);
/// How long nothing is written after a write that did not happen, doubled from one to the next.
const WRITE_PAUSE_LEAST: Duration = Duration::from_millis(100);
const WRITE_PAUSE_MOST: Duration = Duration::from_secs(10);

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
