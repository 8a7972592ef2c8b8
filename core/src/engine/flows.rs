//! The flow cache: what was decided for a flow's first packet, for its next ones.
//!
//! A packet of a known flow needs neither lookups nor a policy nor headers made anew: its shim and
//! its link are copied. An entry says nothing about what differs between the packets of a flow;
//! that is looked at each time: the soundness of the packet, its TTL, its size, its ECN field, and
//! whatever opens a connection (SYN), which takes the whole way, as fragments do.
//!
//! An entry is good for one generation of the tables: [`Flows::forget`] makes all of them old at
//! once. Where a flow lies follows from its hash alone; two flows that want the same place take
//! turns, at the cost of the whole way each. So the cache is bounded, never scanned and never aged.
//!
//! Called by the engine only; allocates when it is made and never again.

use alloc::boxed::Box;
use alloc::vec;
use core::net::IpAddr;

use crate::batch::{Link, Transport};
use crate::encap::EncapsulationKind;
use crate::packet::{FlowKey, Fragment, Packet};
use crate::policy::Permit;
use crate::tables::{DscpMode, PeerId};

/// The flows of one direction; `R` is what is known about each.
#[derive(Debug)]
pub(super) struct Flows<K, R> {
    /// A power of two of them, or none.
    entries: Box<[Option<Entry<K, R>>]>,
    generation: u64,
    seed: u64,
    /// Where the last packet's flow was found: packets come in trains.
    last: usize,
    hits: u64,
    /// After how many packets a flow is offered; zero for never.
    offer_after: u32,
}

#[derive(Debug)]
struct Entry<K, R> {
    generation: u64,
    hits: u32,
    flow: FlowKey,
    key: K,
    ready: R,
}

/// What the decision about a packet to encapsulate depends on, beside its flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct EncapKey {
    pub(super) traffic_class: u8,
    pub(super) dont_fragment: bool,
}

impl EncapKey {
    pub(super) const fn of(packet: &Packet) -> Self {
        Self {
            traffic_class: packet.traffic_class,
            dont_fragment: packet.dont_fragment,
        }
    }
}

/// How the packets of a flow leave.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) permit: Permit,
    pub(super) link: Link,
    pub(super) shim: Shim,
    /// The largest packet for which this holds.
    pub(super) largest_octets: usize,
    pub(super) peer: PeerId,
    pub(super) kind: EncapsulationKind,
    /// The outer traffic class by the inner ECN field.
    pub(super) traffic_classes: [u8; 4],
}

/// What the decision about a received frame depends on, beside its inner flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct DecapKey {
    remote: IpAddr,
    /// The local port, or the protocol above any port.
    arrival: u32,
    shim: Shim,
}

impl DecapKey {
    pub(super) fn of(link: &Link, shim: Shim) -> Self {
        let arrival = match link.transport {
            Transport::Udp { local_port, .. } => u32::from(local_port),
            Transport::Ip { protocol } => (1 << 16) | u32::from(protocol),
        };
        Self {
            remote: link.remote,
            arrival,
            shim,
        }
    }

    pub(super) const fn shim(&self) -> Shim {
        self.shim
    }
}

/// How the packets of a flow are delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) permit: Permit,
    pub(super) peer: PeerId,
    pub(super) kind: EncapsulationKind,
    pub(super) dscp: DscpMode,
}

/// The octets of a shim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shim {
    octets: [u8; SHIM_OCTETS_MAX],
    len: u8,
}

/// The longest shim without options: VXLAN or Geneve, and Ethernet.
pub(super) const SHIM_OCTETS_MAX: usize = 8 + 14;

impl Shim {
    /// The first `len` octets of `frame`; `None` when that is more than any shim without options.
    pub(super) fn read(frame: &[u8], len: usize) -> Option<Self> {
        let mut octets = [0; SHIM_OCTETS_MAX];
        octets.get_mut(..len)?.copy_from_slice(frame.get(..len)?);
        Some(Self {
            octets,
            len: u8::try_from(len).ok()?,
        })
    }

    pub(super) fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// Whether a packet may be answered from the cache: later fragments and first ones have no ports,
/// so their flow says too little.
pub(super) fn may_be_known(packet: &Packet) -> bool {
    packet.fragment == Fragment::Whole
}

impl<K: Copy + Eq, R> Flows<K, R> {
    /// Room for `flows` flows, rounded up to a power of two; none for zero. A flow is to be offered
    /// after `offer_after` packets, and never for zero.
    pub(super) fn new(flows: usize, seed: u64, offer_after: u32) -> Self {
        let count = match flows {
            0 => 0,
            _ => flows.next_power_of_two(),
        };
        Self {
            entries: (0..count).map(|_| None).collect::<vec::Vec<_>>().into(),
            generation: 0,
            seed,
            last: 0,
            hits: 0,
            offer_after,
        }
    }

    /// Makes all entries old.
    pub(super) const fn forget(&mut self) {
        self.generation += 1;
    }

    /// Counts a packet that needed no more than what is known about its flow.
    pub(super) const fn count_hit(&mut self) {
        self.hits += 1;
    }

    /// The flow that was found last, if it is to be offered at this packet of it: when so many of
    /// its packets were found, and at every doubling.
    pub(super) fn offered(&mut self) -> Option<(&FlowKey, &K, &R)> {
        if self.offer_after == 0 {
            return None;
        }
        let entry = self.entries.get_mut(self.last)?.as_mut()?;
        entry.hits = entry.hits.saturating_add(1);
        let is_due = entry.hits >= self.offer_after && entry.hits.is_power_of_two();
        is_due.then_some((&entry.flow, &entry.key, &entry.ready))
    }

    /// How often what is known about a flow was enough.
    pub(super) const fn hits(&self) -> u64 {
        self.hits
    }

    /// What is known about a flow. Whoever finds it enough says so by
    /// [`count_hit`](Self::count_hit).
    pub(super) fn find(&mut self, flow: &FlowKey, key: &K) -> Option<&R> {
        let is_it = |entry: &Entry<K, R>| {
            entry.flow == *flow && entry.key == *key && entry.generation == self.generation
        };
        let at = |place: usize| self.entries.get(place).and_then(Option::as_ref);
        if !at(self.last).is_some_and(is_it) {
            let place = self.place(flow);
            if !at(place).is_some_and(is_it) {
                return None;
            }
            self.last = place;
        }
        let entry = self.entries.get(self.last).and_then(Option::as_ref);
        entry.map(|entry| &entry.ready)
    }

    /// Remembers what was decided, in the place of whatever was there.
    pub(super) fn insert(&mut self, flow: FlowKey, key: K, ready: R) {
        let place = self.place(&flow);
        let generation = self.generation;
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = Some(Entry {
                generation,
                hits: 0,
                flow,
                key,
                ready,
            });
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "the low bits of the hash are wanted"
    )]
    fn place(&self, flow: &FlowKey) -> usize {
        // Both directions of a flow would fall together, but each has a cache of its own.
        flow.symmetric_hash(self.seed) as usize & self.entries.len().wrapping_sub(1)
    }
}
