//! What workers hold: an immutable snapshot of a table.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use super::NextHopId;
use super::address::Address;
use super::arena::Segment;
use super::changes::Noted;
use super::direct::RootWord;
use super::expanded;
use super::few::Few;
use super::flat::Flatness;
use super::hashed::Hashed;
use super::node::RouteCell;
use super::pushed::PushedRoot;
use super::simd::{Hosts, Level, SimdLevel, ask_for_lines};
use super::walk::{Covering, Routes, Trie, View};
use super::windows::Windowed;

/// An immutable snapshot of a [`Fib`](super::Fib), for workers.
///
/// Lookups never wait and never see a half-made change: a snapshot does not change. A clone is one reference count.
/// Dropping one frees nothing but the last one of a dropped table: the writer takes memory back. A snapshot that is
/// kept keeps the memory of everything that was replaced after it, and of no other snapshot.
#[derive(Clone, Debug)]
pub struct FibReader<A> {
    snapshot: Arc<Snapshot>,
    level: Level,
    /// Whether single lookups ask a hash of hosts and their networks, in the instructions that there are for these.
    hosts: Option<Hosts>,
    #[cfg(test)]
    trie_only: bool,
    family: PhantomData<A>,
}

/// The root of a published table, and the segments that its nodes are in.
///
/// In cache lines of its own, as is what it holds and lookups read: the allocator may put what the writer writes at
/// every change right beside it, and readers would wait for these lines at every batch.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Snapshot {
    pub(super) root: Root,
    pub(super) segments: Arc<[Segment]>,
    pub(super) cold: Arc<[Segment]>,
    pub(super) routes: usize,
    pub(super) flatness: Flatness,
    /// Whether their leaves take two octets.
    pub(super) wide: bool,
    pub(super) pushed: Option<Box<PushedRoot>>,
    pub(super) few: Option<Box<Few>>,
    pub(super) hashed: Option<Box<Hashed>>,
    pub(super) windowed: Option<Box<Windowed>>,
}

/// The root of a snapshot: a node, or all slots and the routes that end in the root.
#[derive(Debug)]
pub(super) enum Root {
    Node(u32),
    Slots {
        slots: Box<[u64]>,
        /// What `direct.rs` has for them.
        direct: Box<[RootWord]>,
        routes: Arc<Vec<RouteCell>>,
    },
}

impl<A: Address> FibReader<A> {
    pub(super) fn new(snapshot: Arc<Snapshot>, level: Level) -> Self {
        Self {
            hosts: Self::hosts_of(&snapshot, level),
            snapshot,
            level,
            #[cfg(test)]
            trie_only: false,
            family: PhantomData,
        }
    }

    /// The same snapshot, looked up with no more than `level` of the machine's instructions: for tests and
    /// comparisons. A level that the machine lacks gives the highest that it has.
    #[must_use]
    pub fn with_simd_level(self, level: SimdLevel) -> Self {
        let level = Level::new(level);
        Self {
            level,
            hosts: Self::hosts_of(&self.snapshot, level),
            ..self
        }
    }

    /// The instructions that lookups use.
    #[must_use]
    pub fn simd_level(&self) -> SimdLevel {
        self.level.get()
    }

    /// The same snapshot, looked up without what it has beside its trie.
    #[cfg(test)]
    pub(super) fn by_trie(mut self) -> Self {
        self.trie_only = true;
        self.hosts = None;
        self
    }

    /// Whether lookups go by pushed chunks: for the tests and the fuzz target, which are to know that they ask some.
    #[doc(hidden)]
    #[must_use]
    pub fn has_pushed(&self) -> bool {
        self.snapshot.pushed.is_some()
    }

    /// The root of the pushed chunks.
    #[cfg(test)]
    pub(super) fn pushed_root(&self) -> Option<&PushedRoot> {
        self.snapshot.pushed.as_deref()
    }

    /// Where the pages of windows are, and the lines that are new.
    #[cfg(test)]
    pub(super) fn window_pages(&self) -> Option<(&[u64], &[u64])> {
        let windowed = self.snapshot.windowed.as_deref();
        windowed.map(|windowed| (&*windowed.pages, &*windowed.fresh))
    }

    /// The changes up to the snapshot, if it has windows.
    #[cfg(test)]
    pub(super) fn noted(&self) -> Option<&Noted> {
        let windowed = self.snapshot.windowed.as_deref();
        windowed.map(|windowed| &windowed.noted)
    }

    /// Whether the root is in registers (`few.rs`).
    #[cfg(test)]
    pub(super) fn has_few(&self) -> bool {
        self.snapshot.few.is_some()
    }

    /// Asks the processor for the cache lines that changed in this snapshot, all at once, ahead of the lookups that will
    /// read them: for a worker that takes the snapshot up and has looked addresses up in the one before.
    ///
    /// A hundred changes are some eight hundred lines. Where the writer's core has no cache in common with the reader's,
    /// meeting them one by one costs the lookups of a millisecond a tenth of their time, and a third of that so. Does
    /// nothing in small tables, nor when more has changed than is worth it.
    pub fn ask_for_changes(&self) {
        let pushed = self.snapshot.pushed.as_ref().map(|pushed| &pushed.fresh);
        let windowed = self.snapshot.windowed.as_ref();
        if let Some(fresh) = pushed.or_else(|| windowed.map(|windowed| &windowed.fresh)) {
            ask_for_lines(fresh);
        }
    }

    /// The next hop of the longest prefix that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: A) -> Option<NextHopId> {
        if let Some((hosts, hashed)) = self.hosts() {
            return NextHopId::from_code(hosts.lookup(hashed, self, address));
        }
        let code = if let Some(pushed) = self.pushed() {
            self.level
                .pushed_one(pushed, &self.snapshot.segments, address.to_key())
        } else if A::BITS == 32 {
            self.level.lookup_one::<A>(&self.view(), address.to_key())
        } else if let Some(hashed) = self.hashed() {
            self.level.hashed_one(hashed, self, address.to_key())
        } else {
            self.without_hash(address.to_key())
        };
        NextHopId::from_code(code)
    }

    /// Looks up each of `addresses` and writes the answer to the same place in `next_hops`.
    ///
    /// When the two differ in length, only as many as the shorter holds are done. Batches of 32 to 256 keep several
    /// memory accesses in flight at once: a lookup then costs a fraction of a single one.
    pub fn lookup_batch(&self, addresses: &[A], next_hops: &mut [Option<NextHopId>]) {
        if A::BITS == 32
            && let Some(few) = self.snapshot.few.as_deref()
            && self.level.few(few, addresses, next_hops)
        {
            return;
        }
        if let Some(pushed) = self.pushed() {
            return self
                .level
                .pushed(pushed, &self.snapshot.segments, addresses, next_hops);
        }
        let view = self.view();
        match (self.hashed(), self.windowed()) {
            (Some(hashed), _) => self.level.hashed(hashed, &view, addresses, next_hops),
            (None, Some(windowed)) => self.level.windowed(windowed, &view, addresses, next_hops),
            (None, None) => self.level.lookup(&view, addresses, next_hops),
        }
    }

    /// The longest prefix that holds `address`, and its next hop.
    #[must_use]
    pub fn lookup_prefix(&self, address: A) -> Option<(A::Prefix, NextHopId)> {
        self.view().longest::<A>(address.to_key())
    }

    /// The next hop of the route for exactly `prefix`.
    #[must_use]
    pub fn exact(&self, prefix: A::Prefix) -> Option<NextHopId> {
        self.view().exact::<A>(prefix)
    }

    /// The routes whose prefix holds `prefix` (itself included), shortest first.
    #[must_use]
    pub fn covering(&self, prefix: A::Prefix) -> Covering<A> {
        self.view().covering::<A>(prefix)
    }

    /// The routes whose prefix lies in `prefix` (itself included), in order of address, then length.
    #[must_use]
    pub fn covered(&self, prefix: A::Prefix) -> Routes<'_, A> {
        self.view().covered(prefix)
    }

    /// All routes, in order of address, then length.
    #[must_use]
    pub fn iter(&self) -> Routes<'_, A> {
        self.covered(A::join(0, 0))
    }

    /// The number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.snapshot.routes
    }

    /// Whether there is no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshot.routes == 0
    }

    /// What an IPv6 table without a hash says. Apart, so that what it needs is not set up for one that has it.
    #[inline(never)]
    fn without_hash(&self, key: u128) -> u16 {
        match self.windowed() {
            Some(windowed) => self.level.windowed_one(windowed, self, key),
            None => self.walk(key),
        }
    }

    /// The pushed chunks of an IPv4 table that has them.
    #[inline(always)]
    fn pushed(&self) -> Option<&PushedRoot> {
        #[cfg(test)]
        if self.trie_only {
            return None;
        }
        let pushed = self.snapshot.pushed.as_deref();
        pushed.filter(|_| A::BITS == 32)
    }

    /// What a replica copies, where lookups are faster in the copy.
    #[inline(always)]
    pub(super) fn replica_source(&self) -> Option<&PushedRoot> {
        self.pushed().filter(|_| self.level.has_replica())
    }

    /// The root of an IPv4 table of few flat chunks whose batches are faster in a copy (`expanded.rs`).
    pub(super) fn expanded_source(&self) -> Option<&Few> {
        let few = self.snapshot.few.as_deref().filter(|_| A::BITS == 32);
        few.filter(|few| self.level.has_expanded() && few.places == expanded::PLACES)
    }

    /// What says of an IPv6 table whose batches are faster in a copy (`strides/`) how it changes.
    #[inline(always)]
    pub(super) fn strides_source(&self) -> Option<&Noted> {
        let windowed = self.windowed().filter(|_| self.hashed().is_none());
        let noted = windowed.map(|windowed| &windowed.noted);
        noted.filter(|_| self.level.has_strides())
    }

    #[inline(always)]
    pub(super) fn parts(&self) -> (Level, &Snapshot) {
        (self.level, &self.snapshot)
    }

    /// The hash of an IPv6 table that has one.
    #[inline(always)]
    fn hashed(&self) -> Option<&Hashed> {
        #[cfg(test)]
        if self.trie_only {
            return None;
        }
        let hashed = self.snapshot.hashed.as_deref();
        hashed.filter(|_| A::BITS == 128)
    }

    fn hosts_of(snapshot: &Snapshot, level: Level) -> Option<Hosts> {
        let hashed = snapshot.hashed.as_deref().filter(|_| A::BITS == 128);
        level.hosts(hashed?)
    }

    /// The hash of hosts and their networks, if there is one that single lookups ask as such.
    #[inline(always)]
    pub(super) fn hosts(&self) -> Option<(Hosts, &Hashed)> {
        let hosts = self.hosts.filter(|_| A::BITS == 128)?;
        Some((hosts, self.snapshot.hashed.as_deref()?))
    }

    /// The windows of an IPv6 table that has them.
    #[inline(always)]
    fn windowed(&self) -> Option<&Windowed> {
        #[cfg(test)]
        if self.trie_only {
            return None;
        }
        let windowed = self.snapshot.windowed.as_deref();
        windowed.filter(|_| A::BITS == 128)
    }

    pub(super) fn view(&self) -> View<'_> {
        let (slots, direct, routes, node): (&[u64], &[RootWord], &[RouteCell], u32) =
            match &self.snapshot.root {
                Root::Node(handle) => (&[], &[], &[], *handle),
                Root::Slots {
                    slots,
                    direct,
                    routes,
                } => (slots, direct, routes, 0),
            };
        View {
            slots,
            direct,
            routes,
            node,
            flatness: self.snapshot.flatness,
            wide: self.snapshot.wide,
            segments: &self.snapshot.segments,
            cold: &self.snapshot.cold,
        }
    }
}

impl<A: Address> Trie for FibReader<A> {
    #[inline(never)]
    fn walk(&self, key: u128) -> u16 {
        self.level.lookup_one::<A>(&self.view(), key)
    }

    #[inline(always)]
    fn slots(&self) -> &[u64] {
        match &self.snapshot.root {
            Root::Node(_) => &[],
            Root::Slots { slots, .. } => slots,
        }
    }

    #[inline(always)]
    fn segments(&self) -> &[Segment] {
        &self.snapshot.segments
    }
}
