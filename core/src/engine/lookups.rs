//! The lookups of a whole chunk of packets, gathered and answered at once.
//!
//! Longest-prefix match waits for memory; asked for many addresses together it waits for many at
//! a time. Each packet asks for its source and its destination: both decide what becomes of it.
//! The engine owns one and uses it again: nothing is allocated or cleared per batch.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::fib::{Address, FibReplica, NextHopId};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::units::Family;

/// Packets that are looked up at once.
pub(super) const CHUNK: usize = 64;

/// The next hops of a packet's two addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hops {
    pub(super) source: Option<NextHopId>,
    pub(super) destination: Option<NextHopId>,
}

#[derive(Debug)]
pub(super) struct Lookups {
    fib_v4: FibReplica<Ipv4Addr>,
    fib_v6: FibReplica<Ipv6Addr>,
    v4: Column<Ipv4Addr>,
    v6: Column<Ipv6Addr>,
}

impl Lookups {
    /// Lookups in the routes of `tables`.
    pub(super) fn new(tables: &Tables) -> Self {
        Self {
            fib_v4: FibReplica::new(tables.fib_v4().clone()),
            fib_v6: FibReplica::new(tables.fib_v6().clone()),
            v4: Column::new(Ipv4Addr::UNSPECIFIED),
            v6: Column::new(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Looks up in the routes of other tables from here on.
    pub(super) fn follow(&mut self, tables: &Tables) {
        self.fib_v4.follow(tables.fib_v4().clone());
        self.fib_v6.follow(tables.fib_v6().clone());
    }

    /// Forgets the last chunk.
    pub(super) const fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
    }

    /// Asks for the addresses of `packet`; at most [`CHUNK`] packets ask.
    pub(super) fn ask(&mut self, packet: &Packet) {
        match (packet.flow.source, packet.flow.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4.ask(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6.ask(source, destination),
            // A packet's addresses are of one family.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
        }
    }

    /// Answers all.
    pub(super) fn resolve(&mut self) {
        self.v4.resolve(&mut self.fib_v4);
        self.v6.resolve(&mut self.fib_v6);
    }

    /// The answer for the next packet of `family`, in the order of the questions.
    pub(super) fn answer(&mut self, family: Family) -> Hops {
        match family {
            Family::V4 => self.v4.answer(),
            Family::V6 => self.v6.answer(),
        }
    }
}

/// The questions of one family: source and destination of each packet in turn.
#[derive(Debug)]
struct Column<A> {
    addresses: [[A; 2]; CHUNK],
    next_hops: [[Option<NextHopId>; 2]; CHUNK],
    asked: usize,
    answered: usize,
}

impl<A: Address> Column<A> {
    const fn new(any: A) -> Self {
        Self {
            addresses: [[any; 2]; CHUNK],
            next_hops: [[None; 2]; CHUNK],
            asked: 0,
            answered: 0,
        }
    }

    const fn clear(&mut self) {
        self.asked = 0;
        self.answered = 0;
    }

    fn ask(&mut self, source: A, destination: A) {
        if let Some(question) = self.addresses.get_mut(self.asked) {
            *question = [source, destination];
            self.asked += 1;
        }
    }

    fn resolve(&mut self, fib: &mut FibReplica<A>) {
        let addresses = self.addresses.get(..self.asked).unwrap_or_default();
        let next_hops = self.next_hops.get_mut(..self.asked).unwrap_or_default();
        fib.lookup_batch(addresses.as_flattened(), next_hops.as_flattened_mut());
    }

    fn answer(&mut self) -> Hops {
        let [source, destination] = self
            .next_hops
            .get(self.answered)
            .copied()
            .unwrap_or_default();
        self.answered += 1;
        Hops {
            source,
            destination,
        }
    }
}
