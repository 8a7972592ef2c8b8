//! Tests of the table against slow twins: a list that is scanned, and the `prefix-trie` crate.
#![allow(clippy::cast_possible_truncation, reason = "tests draw small numbers")]

extern crate std;

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::address::{Address, prefix_mask};
use super::batch;
use super::flat::Flatness;
use super::root::WriterRoot;
use super::{Fib, FibReader, FibReplica, NextHopId, SimdLevel};

mod expanded;
mod flat;
mod full;
mod hashed;
pub(super) mod hooks;
mod many;
mod publication;
mod pushed;
pub(super) mod rng;
mod small;
#[cfg(target_arch = "x86_64")]
mod strides;
mod wide;
#[cfg(target_arch = "x86_64")]
mod windows;
mod work;

use rng::Rng;

fn id(n: u64) -> NextHopId {
    NextHopId::new((n % 0x7fff) as u16).unwrap()
}

/// Whether the line at `address` is in the list of lines that a snapshot has new.
fn has_line(fresh: &[u64], address: u64) -> bool {
    let line = super::fresh::LINE as u64;
    fresh.iter().any(|run| {
        let (first, count) = (run / line * line, run % line);
        (first..first + count * line).contains(&(address / line * line))
    })
}

/// A sorted list of routes, and lookups that scan all of it.
#[derive(Clone, Default)]
struct Twin {
    routes: Vec<(u128, u8, NextHopId)>,
}

impl Twin {
    fn insert(&mut self, key: u128, len: u8, next_hop: NextHopId) -> Option<NextHopId> {
        match self
            .routes
            .binary_search_by_key(&(key, len), |route| (route.0, route.1))
        {
            Ok(at) => Some(core::mem::replace(&mut self.routes[at].2, next_hop)),
            Err(at) => {
                self.routes.insert(at, (key, len, next_hop));
                None
            }
        }
    }

    fn remove(&mut self, key: u128, len: u8) -> Option<NextHopId> {
        let at = self
            .routes
            .binary_search_by_key(&(key, len), |route| (route.0, route.1))
            .ok()?;
        Some(self.routes.remove(at).2)
    }

    fn longest(&self, key: u128) -> Option<(u128, u8, NextHopId)> {
        let covers = |route: &&(u128, u8, NextHopId)| (route.0 ^ key) & prefix_mask(route.1) == 0;
        self.routes
            .iter()
            .filter(covers)
            .max_by_key(|route| route.1)
            .copied()
    }

    fn covering(&self, key: u128, len: u8) -> Vec<(u128, u8, NextHopId)> {
        let covers = |route: &&(u128, u8, NextHopId)| {
            route.1 <= len && (route.0 ^ key) & prefix_mask(route.1) == 0
        };
        self.routes.iter().filter(covers).copied().collect()
    }

    fn covered(&self, key: u128, len: u8) -> Vec<(u128, u8, NextHopId)> {
        let covers = |route: &&(u128, u8, NextHopId)| {
            route.1 >= len && (route.0 ^ key) & prefix_mask(len) == 0
        };
        self.routes.iter().filter(covers).copied().collect()
    }
}

fn split<A: Address>((prefix, next_hop): (A::Prefix, NextHopId)) -> (u128, u8, NextHopId) {
    let (key, len) = A::split(prefix);
    (key, len, next_hop)
}

/// Compares everything that can be asked about `key`.
fn check_key<A: Address>(fib: &Fib<A>, reader: &FibReader<A>, twin: &Twin, key: u128, len: u8) {
    let address = A::from_key(key);
    let expected = twin.longest(address.to_key());
    assert_eq!(
        fib.lookup(address),
        expected.map(|route| route.2),
        "lookup {address}"
    );
    assert_eq!(
        reader.lookup(address),
        expected.map(|route| route.2),
        "reader lookup {address}"
    );
    assert_eq!(
        fib.lookup_prefix(address).map(split::<A>),
        expected,
        "lookup_prefix {address}"
    );
    let net = A::join(key & prefix_mask(len), len);
    let key = key & prefix_mask(len);
    let exact = twin
        .routes
        .iter()
        .find(|route| (route.0, route.1) == (key, len))
        .map(|route| route.2);
    assert_eq!(fib.exact(net), exact, "exact {net}");
    assert_eq!(
        reader.covering(net).map(split::<A>).collect::<Vec<_>>(),
        twin.covering(key, len),
        "covering {net}"
    );
    assert_eq!(
        reader.covered(net).map(split::<A>).collect::<Vec<_>>(),
        twin.covered(key, len),
        "covered {net}"
    );
}

fn check_batch<A: Address>(reader: &FibReader<A>, twin: &Twin, keys: &[u128]) {
    let addresses: Vec<A> = keys.iter().map(|key| A::from_key(*key)).collect();
    let expected: Vec<_> = keys
        .iter()
        .map(|key| {
            twin.longest(*key & prefix_mask(A::BITS))
                .map(|route| route.2)
        })
        .collect();
    // With the hash that it may have, and without.
    let both = [reader.clone(), reader.clone().by_trie()];
    let ways = SimdLevel::ALL.map(|level| both.clone().map(|way| (level, way)));
    for (level, reader) in ways.into_iter().flatten() {
        let reader = reader.with_simd_level(level);
        let mut answers = alloc::vec![Some(id(77)); addresses.len()];
        reader.lookup_batch(&addresses, &mut answers);
        assert_eq!(answers, expected, "{level:?}: {addresses:?}");
        for (address, expected) in addresses.iter().zip(&expected) {
            assert_eq!(reader.lookup(*address), *expected, "{level:?} {address}");
        }
    }
    // What x86-64 has no level for: code that asks for nothing but by reading.
    let mut answers = alloc::vec![Some(id(77)); addresses.len()];
    batch::lookup(batch::Portable, &reader.view(), &addresses, &mut answers);
    assert_eq!(answers, expected, "{addresses:?}");
}

/// Asks `replica`, which follows `reader` first, what `reader` says.
fn check_replica<A: Address>(replica: &mut FibReplica<A>, reader: &FibReader<A>, keys: &[u128]) {
    replica.follow(reader.clone());
    let addresses: Vec<A> = keys.iter().map(|key| A::from_key(*key)).collect();
    let mut expected = alloc::vec![None; addresses.len()];
    reader.lookup_batch(&addresses, &mut expected);
    let mut answers = alloc::vec![Some(id(77)); addresses.len()];
    replica.lookup_batch(&addresses, &mut answers);
    assert_eq!(answers, expected, "{addresses:?}");
    for (address, expected) in addresses.iter().zip(expected) {
        assert_eq!(replica.lookup(*address), expected, "{address}");
    }
}

/// Random inserts and removals of prefixes that `draw` gives, everything compared as it goes.
fn churn<A: Address>(
    seed: u64,
    steps: usize,
    keep: usize,
    mut draw: impl FnMut(&mut Rng) -> (u128, u8),
) {
    let mut rng = Rng(seed);
    let mut fib = Fib::<A>::new();
    let mut twin = Twin::default();
    let mut held: Vec<(FibReader<A>, Twin)> = Vec::new();
    for step in 0..steps {
        let remove =
            !twin.routes.is_empty() && rng.below(2 * keep as u64) < twin.routes.len() as u64;
        if remove && rng.below(8) > 0 {
            let (key, len, _) = twin.routes[rng.below(twin.routes.len() as u64) as usize];
            assert_eq!(fib.remove(A::join(key, len)), twin.remove(key, len));
        } else {
            let (key, len) = draw(&mut rng);
            let key = key & prefix_mask(len);
            if remove {
                assert_eq!(fib.remove(A::join(key, len)), twin.remove(key, len));
            } else {
                let next_hop = id(rng.below(5));
                assert_eq!(
                    fib.insert(A::join(key, len), next_hop),
                    Ok(twin.insert(key, len, next_hop))
                );
            }
        }
        assert_eq!(fib.len(), twin.routes.len());
        if step % 16 == 0 {
            if let WriterRoot::Slots { slots, .. } = &fib.root {
                assert!(fib.direct.agrees(fib.arena.segments(), slots));
                let all = fib.flats.flatness() == Flatness::All && fib.direct.octets() > 0;
                assert_eq!(fib.direct.absent, if all { fib.flats.empty } else { 0 });
            }
            let reader = fib.reader();
            let mut keys = Vec::new();
            for _ in 0..4 {
                let (key, len) = draw(&mut rng);
                let key = key ^ rng.wide() & !prefix_mask(len);
                check_key(&fib, &reader, &twin, key, len);
                keys.push(key);
            }
            for _ in 0..40 {
                let Some(at) = rng.below(twin.routes.len() as u64 + 1).checked_sub(1) else {
                    continue;
                };
                let (key, len, _) = twin.routes[at as usize];
                let edge = [
                    key,
                    key | !prefix_mask(len),
                    key.wrapping_sub(1),
                    (key | !prefix_mask(len)).wrapping_add(1),
                ];
                keys.push(edge[rng.below(4) as usize]);
                keys.push(key | rng.wide() & !prefix_mask(len));
            }
            check_batch(&reader, &twin, &keys);
            if held.len() < 8 {
                held.push((reader, twin.clone()));
            } else {
                held[rng.below(8) as usize] = (reader, twin.clone());
            }
        }
        if step % 256 == 0 {
            assert_eq!(fib.iter().map(split::<A>).collect::<Vec<_>>(), twin.routes);
            // Old snapshots still say what they said.
            for (reader, twin) in &held {
                assert_eq!(
                    reader.iter().map(split::<A>).collect::<Vec<_>>(),
                    twin.routes
                );
                let keys: Vec<u128> = twin.routes.iter().map(|route| route.0).collect();
                check_batch(reader, twin, &keys);
            }
            let built = Fib::<A>::from_routes(
                twin.routes
                    .iter()
                    .map(|route| (A::join(route.0, route.1), route.2)),
            );
            let mut built = built.unwrap();
            assert_eq!(
                built.iter().map(split::<A>).collect::<Vec<_>>(),
                twin.routes
            );
            let reader = built.reader();
            check_batch(
                &reader,
                &twin,
                &twin.routes.iter().map(|route| route.0).collect::<Vec<_>>(),
            );
            // A table that was changed into shape takes the cells that a table built so takes.
            // Which chunks of a table of some hundred routes are dense depends on how it came to be.
            let alike = matches!(built.root, WriterRoot::Node(_))
                == matches!(fib.root, WriterRoot::Node(_))
                && (A::BITS == 128 || !matches!(fib.root, WriterRoot::Node(_)));
            if alike {
                // Chains of more than six skipped octets may be cut elsewhere.
                let slack = if A::BITS == 32 {
                    0
                } else {
                    built.live.lookup / 10
                };
                assert!(built.live.lookup.abs_diff(fib.live.lookup) <= slack);
                assert!(built.live.routes.abs_diff(fib.live.routes) <= slack);
            }
        }
    }
    drop(held);
    for (key, len, next_hop) in core::mem::take(&mut twin.routes) {
        assert_eq!(fib.remove(A::join(key, len)), Some(next_hop));
    }
    assert_eq!(
        fib.live,
        Fib::<A>::new().live,
        "an emptied table keeps no node"
    );
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_scattered_ipv4() {
    churn::<Ipv4Addr>(1, 6_000, 700, |rng| (rng.wide(), rng.below(33) as u8));
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_crowded_ipv4() {
    // Few distinct bits, so that prefixes nest and neighbour each other.
    churn::<Ipv4Addr>(2, 6_000, 500, |rng| {
        (
            rng.wide() & 0x0010_1803_0700_0000 << 64 | 10 << 120,
            13 + rng.below(20) as u8,
        )
    });
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_scattered_ipv6() {
    churn::<Ipv6Addr>(3, 5_000, 700, |rng| {
        (
            rng.wide() & 0xe0ff_0f00_0f0f_0f00_u128 << 64 | rng.wide() & 3,
            rng.below(129) as u8,
        )
    });
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_crowded_ipv6() {
    churn::<Ipv6Addr>(4, 5_000, 400, |rng| {
        let mask = [
            0x0101_0000_0300_0000_u128 << 64,
            0x0101_0000_0300_0000_u128 << 64 | 0x0100_0000_0000_0003,
        ];
        (
            rng.wide() & mask[rng.below(2) as usize] | 0xfd << 120,
            [48, 64, 128, 24 + rng.below(105) as u8][rng.below(4) as usize],
        )
    });
}
