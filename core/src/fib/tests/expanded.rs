//! A worker's copy of IPv4 tables of few flat chunks: what follows is the same as what is made anew, and both say what a
//! list of the routes does.

extern crate std;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use super::super::address::{Address, prefix_mask};
use super::super::arena::{block, load};
use super::super::expanded::Expanded;
use super::super::flat::{FLAT_BUSY, FLAT_CODES, FLAT_HANDLES};
use super::super::node::Entry;
use super::super::{Fib, FibReader, FibReplica, NextHopId, SimdLevel};
use super::id;
use super::rng::Rng;

/// A table, and a list of its routes.
#[derive(Default)]
struct Pair {
    fib: Fib<Ipv4Addr>,
    routes: BTreeMap<(u32, u8), NextHopId>,
}

impl Pair {
    fn insert(&mut self, (address, len): (u32, u8), hop: NextHopId) {
        let (address, prefix) = prefix((address, len));
        let old = self.routes.insert((address, len), hop);
        assert_eq!(self.fib.insert(prefix, hop), Ok(old));
    }

    fn remove(&mut self, (address, len): (u32, u8)) {
        let (address, prefix) = prefix((address, len));
        assert_eq!(self.fib.remove(prefix), self.routes.remove(&(address, len)));
    }

    /// The snapshot at the level that has copies, where the machine has it.
    fn reader(&mut self) -> FibReader<Ipv4Addr> {
        self.fib.reader().with_simd_level(SimdLevel::Avx512Gather)
    }

    fn some_route(&self, rng: &mut Rng) -> Option<(u32, u8)> {
        let from = rng.next() as u32;
        let mut around = self.routes.range((from % 0x00a0_0000 + 0x0a00_0000, 0)..);
        around
            .next()
            .or_else(|| self.routes.iter().next())
            .map(|(route, _)| *route)
    }

    /// Asks `replica` for addresses in and around `routes`, and some anywhere.
    fn compare(&self, replica: &mut FibReplica<Ipv4Addr>, routes: &[(u32, u8)], rng: &mut Rng) {
        assert_eq!(
            replica.reader().iter().count(),
            self.routes.len(),
            "the same table"
        );
        let mut asked = alloc::vec![0, u32::MAX, rng.next() as u32, 0x0a00_0000];
        for (address, len) in routes {
            let hosts = !mask(*len);
            let last = address | hosts;
            asked.extend([*address, last]);
            asked.extend([address.wrapping_sub(1), last.wrapping_add(1)]);
            asked.push(address | rng.next() as u32 & hosts);
        }
        let addresses: Vec<Ipv4Addr> = asked.into_iter().map(Ipv4Addr::from_bits).collect();
        // Of every length up to a group and some more, often one group.
        for addresses in addresses.chunks([32, 1 + rng.below(70) as usize][rng.below(2) as usize]) {
            let mut answers = alloc::vec![Some(id(77)); addresses.len()];
            replica.lookup_batch(addresses, &mut answers);
            for (address, answer) in addresses.iter().zip(answers) {
                assert_eq!(answer, longest(&self.routes, *address), "{address}");
                assert_eq!(answer, replica.lookup(*address), "{address}");
            }
        }
    }
}

fn longest(routes: &BTreeMap<(u32, u8), NextHopId>, address: Ipv4Addr) -> Option<NextHopId> {
    let covering = |len: u8| routes.get(&(address.to_bits() & mask(len), len));
    (0..=32).rev().find_map(covering).copied()
}

fn mask(len: u8) -> u32 {
    (prefix_mask(len) >> 96) as u32
}

fn prefix((address, len): (u32, u8)) -> (u32, ipnet::Ipv4Net) {
    let address = address & mask(len);
    (address, Ipv4Addr::join(u128::from(address) << 96, len))
}

/// Prefixes as an overlay has them, below three root slots, and some that hold many.
fn draw(rng: &mut Rng) -> (u32, u8) {
    let pod = 0x0a00_0000 | ((rng.next() as u32 % 3) << 19) | ((rng.next() as u32 & 0x3ff) << 8);
    let len = match rng.below(64) {
        0 => 14 + rng.below(10) as u8,
        1 => 25 + rng.below(7) as u8,
        2..24 => 32,
        _ => 24,
    };
    ((pod | rng.next() as u32 & 0xff) & mask(len), len)
}

/// A table of `routes` routes that [`draw`] draws, of so many next hops.
fn drawn(rng: &mut Rng, routes: usize, hops: u64) -> Pair {
    let mut pair = Pair::default();
    while pair.routes.len() < routes {
        let hop = id(rng.below(hops));
        pair.insert(draw(rng), hop);
    }
    pair
}

/// That the copy is the same as one made anew, and that chunks know how many of their slots have something to say.
fn check_copy(replica: &FibReplica<Ipv4Addr>) {
    let anew = Expanded::of(replica.reader());
    let has_copy = replica.reader().simd_level() == SimdLevel::Avx512Gather;
    assert_eq!(replica.expanded().is_some(), has_copy);
    assert_eq!(anew.is_some(), has_copy);
    let (Some(copy), Some(anew)) = (replica.expanded(), anew) else {
        return;
    };
    assert_eq!((copy.code, copy.wide), (anew.code, anew.wide));
    let view = replica.reader().view();
    for (slot, leaves) in copy.content() {
        let (_, others) = anew.content().find(|(other, _)| *other == slot).unwrap();
        assert!(leaves == others, "root slot {slot:#x}");
        let cells = block(view.segments, Entry(view.slots[usize::from(slot)]).handle());
        let (mut busy, mut tails) = (0, 0);
        for slot in 0..2_048 {
            let code = load(cells, FLAT_CODES + slot / 4) >> (slot % 4 * 16) & 0xffff;
            let tail = load(cells, FLAT_HANDLES + slot / 2) >> (slot % 2 * 32) & 0xffff_ffff;
            busy += u64::from(code != 0 || tail != 0);
            tails += u64::from(tail != 0);
        }
        assert_eq!(load(cells, FLAT_BUSY), tails << 32 | busy);
    }
    assert_eq!(copy.content().count(), anew.content().count());
}

/// Follows publications of up to `most` changes each.
fn churned(seed: u64, most: u64, steps: usize, hops: u64) {
    let mut rng = Rng(seed);
    let mut pair = drawn(&mut rng, 1_500, hops);
    let mut replica = FibReplica::new(pair.reader());
    check_copy(&replica);
    for step in 0..steps {
        let mut changed = Vec::new();
        for _ in 0..rng.below(most) {
            // To and fro between 1,400 and 1,600 routes.
            let grows = pair.routes.len() < 1_400 + 200 * (step / 20 % 2);
            let route = if grows || rng.below(3) == 0 {
                let route = draw(&mut rng);
                pair.insert(route, id(rng.below(hops)));
                route
            } else {
                let route = pair.some_route(&mut rng).unwrap();
                pair.remove(route);
                route
            };
            changed.push(route);
        }
        // The default route comes, changes and goes.
        match step % 16 {
            3 | 7 => pair.insert((0, 0), id(rng.below(hops))),
            11 => pair.remove((0, 0)),
            _ => {}
        }
        // Not every publication is followed.
        let reader = pair.reader();
        if step % 5 == 4 {
            continue;
        }
        replica.follow(reader);
        if step % 4 == 0 {
            check_copy(&replica);
        }
        changed.extend((0..20).filter_map(|_| pair.some_route(&mut rng)));
        pair.compare(&mut replica, &changed, &mut rng);
    }
    check_copy(&replica);
}

#[test]
fn a_copy_that_follows_is_one_made_anew() {
    churned(31, 40, 80, 200);
}

#[test]
fn a_copy_follows_single_changes() {
    churned(32, 3, 200, 200);
}

#[test]
fn so_does_one_with_codes_of_two_octets() {
    churned(33, 40, 60, 5_000);
}

#[test]
fn a_copy_follows_more_changes_than_a_chunk_has_notes() {
    churned(34, 900, 20, 200);
}

#[test]
fn a_copy_whose_codes_come_to_take_two_octets_is_made_anew() {
    let mut rng = Rng(35);
    let mut pair = drawn(&mut rng, 1_500, 254);
    let mut replica = FibReplica::new(pair.reader());
    for hop in [253, 254, 255, 300, 0x7ffe, 3] {
        let route = draw(&mut rng);
        pair.insert(route, id(hop));
        replica.follow(pair.reader());
        pair.compare(&mut replica, &[route], &mut rng);
        check_copy(&replica);
    }
    let wide = replica.expanded().map(|copy| copy.wide);
    assert_ne!(wide, Some(false));
}

#[test]
fn a_copy_is_made_anew_when_root_slots_come_and_go() {
    let mut rng = Rng(36);
    let mut pair = drawn(&mut rng, 1_800, 200);
    let mut replica = FibReplica::new(pair.reader());
    let octets = replica.octets();
    let nodes: Vec<(u32, u8)> = (0..40).map(|n| (0xc0a8_0000 + 300 * n, 32)).collect();
    for _ in 0..2 {
        for node in &nodes {
            pair.insert(*node, id(9));
            replica.follow(pair.reader());
        }
        pair.compare(&mut replica, &nodes, &mut rng);
        check_copy(&replica);
        assert!(replica.octets() > octets || octets == 0);
        for node in &nodes {
            pair.remove(*node);
            replica.follow(pair.reader());
        }
        pair.compare(&mut replica, &nodes, &mut rng);
        check_copy(&replica);
        assert_eq!(replica.octets(), octets);
    }
    // A route of the root that not all slots share: such a table's root is not in registers.
    pair.insert((0x0a00_0000, 8), id(3));
    replica.follow(pair.reader());
    assert_eq!(replica.octets(), 0);
    pair.compare(&mut replica, &nodes, &mut rng);
    pair.remove((0x0a00_0000, 8));
    replica.follow(pair.reader());
    pair.compare(&mut replica, &nodes, &mut rng);
    check_copy(&replica);
}

#[test]
fn small_tables_and_those_that_no_cache_holds_have_no_copy() {
    let mut rng = Rng(37);
    let mut pair = Pair::default();
    let mut replica = FibReplica::new(pair.reader());
    let has_copies = replica.reader().simd_level() == SimdLevel::Avx512Gather;
    let pods: Vec<(u32, u8)> = (0..5_000).map(|n| (0x0a04_0000 + (n << 8), 24)).collect();
    let mut had = [0, 0];
    for more in [true, false] {
        let pods: Vec<_> = if more {
            pods.clone()
        } else {
            pods.iter().rev().copied().collect()
        };
        for pods in pods.chunks(100) {
            for pod in pods {
                if more {
                    pair.insert(*pod, id(rng.below(200)));
                } else {
                    pair.remove(*pod);
                }
            }
            replica.follow(pair.reader());
            pair.compare(&mut replica, pods, &mut rng);
            let count = pair.routes.len();
            let has = replica.octets() > 0;
            had[usize::from(more)] += usize::from(has);
            assert!(!has || (512..=4_608).contains(&count), "{count}");
            assert!(
                has || !has_copies || !(1_024..=4_000).contains(&count),
                "{count}"
            );
        }
    }
    // One that has a copy keeps it a little longer.
    assert!(had[1] > had[0] || !has_copies, "{had:?}");
}

#[test]
fn a_copy_of_another_table_or_of_an_older_snapshot_is_right() {
    let mut rng = Rng(38);
    let mut pairs = [39, 40].map(|seed| drawn(&mut Rng(seed), 1_500, 200));
    let [one, other] = &mut pairs;
    let mut replica = FibReplica::new(one.reader());
    replica.follow(other.reader());
    let routes: Vec<_> = other.routes.keys().copied().collect();
    other.compare(&mut replica, &routes, &mut rng);
    check_copy(&replica);
    // To and fro among snapshots of one table.
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push((one.reader(), one.routes.clone()));
        for _ in 0..30 {
            one.insert(draw(&mut rng), id(rng.below(200)));
            let route = one.some_route(&mut rng).unwrap();
            one.remove(route);
        }
    }
    for _ in 0..24 {
        let (reader, routes) = &held[rng.below(8) as usize];
        replica.follow(reader.clone());
        check_copy(&replica);
        for _ in 0..100 {
            let route = one.some_route(&mut rng).unwrap();
            let address = Ipv4Addr::from_bits(route.0 | rng.next() as u32 & !mask(route.1));
            assert_eq!(replica.lookup(address), longest(routes, address));
        }
    }
    // The same routes in memory of their own.
    one.fib.compact().unwrap();
    replica.follow(one.reader());
    check_copy(&replica);
    let routes: Vec<_> = one.routes.keys().copied().collect();
    one.compare(&mut replica, &routes, &mut rng);
}

#[test]
fn batches_of_every_length_are_right_and_write_nothing_else() {
    let mut rng = Rng(41);
    for (hops, default) in [(200, false), (200, true), (5_000, false), (5_000, true)] {
        let mut pair = drawn(&mut rng, 1_500, hops);
        if default {
            pair.insert((0, 0), id(hops - 1));
        }
        let reader = pair.reader();
        for level in SimdLevel::ALL {
            let mut replica = FibReplica::new(reader.clone().with_simd_level(level));
            let addresses: Vec<Ipv4Addr> = (0..100)
                .map(|n| {
                    let (address, len) = pair.some_route(&mut rng).unwrap();
                    let anywhere = rng.next() as u32;
                    Ipv4Addr::from_bits(if n % 4 == 0 {
                        anywhere
                    } else {
                        address | anywhere & !mask(len)
                    })
                })
                .collect();
            for count in 0..=100 {
                let first = rng.below(101 - count) as usize;
                let count = count as usize;
                let mut answers = [Some(id(7_777)); 101];
                replica.lookup_batch(&addresses[first..first + count], &mut answers);
                for (address, answer) in addresses[first..].iter().zip(&answers[..count]) {
                    assert_eq!(
                        *answer,
                        longest(&pair.routes, *address),
                        "{level:?} {address}"
                    );
                }
                assert!(
                    answers[count..]
                        .iter()
                        .all(|answer| *answer == Some(id(7_777)))
                );
                // The shorter of both.
                let mut answers = alloc::vec![Some(id(7_777)); count];
                replica.lookup_batch(&addresses, &mut answers);
                for (address, answer) in addresses.iter().zip(&answers) {
                    assert_eq!(
                        *answer,
                        longest(&pair.routes, *address),
                        "{level:?} {address}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_copy_follows_while_the_table_is_written() {
    let mut rng = Rng(42);
    let mut pair = drawn(&mut rng, 1_500, 200);
    let first = (pair.reader(), pair.routes.clone());
    let (published, done) = (Mutex::new(first), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let readers: [_; 2] = core::array::from_fn(|seed| {
            let (published, done) = (&published, &done);
            scope.spawn(move || {
                let mut rng = Rng(43 + seed as u64);
                let mut replica = FibReplica::new(published.lock().unwrap().0.clone());
                let mut follows = 0;
                while !done.load(Ordering::Acquire) || follows == 0 {
                    let (reader, routes) = published.lock().unwrap().clone();
                    replica.follow(reader);
                    follows += 1;
                    let addresses: [Ipv4Addr; 32] = core::array::from_fn(|_| {
                        Ipv4Addr::from_bits(draw(&mut rng).0 | rng.next() as u32 & 0xff)
                    });
                    let mut answers = [None; 32];
                    replica.lookup_batch(&addresses, &mut answers);
                    for (address, answer) in addresses.into_iter().zip(answers) {
                        assert_eq!(answer, longest(&routes, address), "{address}");
                        assert_eq!(answer, replica.lookup(address), "{address}");
                    }
                }
                check_copy(&replica);
            })
        });
        for _ in 0..400 {
            for _ in 0..1 + rng.below(10) {
                pair.insert(draw(&mut rng), id(rng.below(200)));
                let route = pair.some_route(&mut rng).unwrap();
                pair.remove(route);
            }
            *published.lock().unwrap() = (pair.reader(), pair.routes.clone());
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
