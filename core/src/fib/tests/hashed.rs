//! The hash of IPv6 tables: tables that come to have it, keep it up to date, and lose it again.

extern crate std;

use alloc::vec::Vec;
use core::net::Ipv6Addr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use super::super::Fib;
use super::super::address::{Address, prefix_mask};
use super::super::arena::CHANGE_SEGMENTS;
use super::super::hashed::{Length, MAX_LENGTHS, line_of, octets, tag_of};
use super::hooks::cells_written;
use super::rng::Rng;
use super::{Twin, check_batch, churn, id};

const PODS: u128 = 0xfd00_0010_0244_0000_u128 << 64;
const NODES: u128 = 0xfd00_0010_0001_0000_u128 << 64;

/// An overlay's prefixes: pods' blocks, nodes and moved pods.
fn overlay(rng: &mut Rng) -> (u128, u8) {
    let pod = PODS | u128::from(rng.below(2_000)) << 64;
    match rng.below(8) {
        0..4 => (pod, 64),
        4..6 => (NODES | u128::from(rng.below(2_000)), 128),
        6 => (pod | u128::from(rng.below(4) * 3), 128),
        _ => (pod | u128::from(rng.below(8)) << 6, 122),
    }
}

/// The `n`th route of a cluster: a pod's block or a node.
fn cluster(n: u64) -> (u128, u8) {
    if n.is_multiple_of(2) {
        (PODS | u128::from(n) << 64, 64)
    } else {
        (NODES | u128::from(n), 128)
    }
}

fn join((key, len): (u128, u8)) -> ipnet::Ipv6Net {
    Ipv6Addr::join(key & prefix_mask(len), len)
}

fn hash_of(key: u128, len: u8) -> u64 {
    let (high, low) = octets(key);
    Length::new(len).hash(high, low)
}

fn is_complete(fib: &Fib<Ipv6Addr>) -> bool {
    fib.hash_state().is_some_and(|(_, complete)| complete)
}

/// A table and its twin, changed side by side.
#[derive(Default)]
struct Pair {
    fib: Fib<Ipv6Addr>,
    twin: Twin,
}

impl Pair {
    fn insert(&mut self, route: (u128, u8), n: u64) {
        let key = route.0 & prefix_mask(route.1);
        let old = self.twin.insert(key, route.1, id(n));
        assert_eq!(self.fib.insert(join(route), id(n)), Ok(old));
    }

    fn remove(&mut self, route: (u128, u8)) {
        let key = route.0 & prefix_mask(route.1);
        assert_eq!(self.fib.remove(join(route)), self.twin.remove(key, route.1));
    }

    /// Asks a new snapshot for some addresses in and beside routes.
    fn check(&mut self, rng: &mut Rng) {
        let reader = self.fib.reader();
        let mut keys = alloc::vec![rng.wide(), PODS - 1, NODES];
        for _ in 0..40 {
            let Some(at) = rng.below(self.twin.routes.len() as u64 + 1).checked_sub(1) else {
                continue;
            };
            let (key, len, _) = self.twin.routes[at as usize];
            keys.push(key ^ rng.wide() & !prefix_mask(len));
            keys.push((key | !prefix_mask(len)).wrapping_add(1));
        }
        check_batch(&reader, &self.twin, &keys);
    }
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_routes_of_three_lengths() {
    churn::<Ipv6Addr>(11, 6_000, 700, overlay);
}

#[test]
fn random_changes_agree_with_a_scanned_list_while_lengths_come_and_go() {
    // One in three hundred is of any length, or the default route.
    churn::<Ipv6Addr>(12, 8_000, 500, |rng| match rng.below(300) {
        0 => (rng.wide(), rng.below(129) as u8),
        1 => (0, 0),
        2 => (PODS, 48),
        _ => overlay(rng),
    });
}

#[test]
fn a_table_gains_the_hash_as_it_grows_and_loses_it_as_it_shrinks() {
    let mut rng = Rng(21);
    let mut pair = Pair::default();
    let mut held = Vec::new();
    for n in 0..3_000 {
        pair.insert(cluster(n), n);
        match pair.fib.hash_state() {
            None => assert!(n < 256, "no hash at {n}"),
            Some((_, complete)) => assert!(n >= 255 && (complete || n < 300), "a hash at {n}"),
        }
        if n % 100 == 60 || (250..280).contains(&n) {
            pair.check(&mut rng);
            held.push((pair.fib.reader(), pair.twin.clone()));
        }
    }
    let octets = pair.fib.hashes.octets();
    assert!(octets < 48 * 3_000, "{octets} octets for 3,000 routes");
    for n in (0..3_000).rev() {
        pair.remove(cluster(n));
        // As the routes go so do the pages; a hash made for many more routes is made anew.
        let (count, octets) = (pair.fib.len(), pair.fib.hashes.octets());
        assert!(
            octets <= 150 * count + 20_000,
            "{octets} octets for {count} routes"
        );
        if n % 100 == 60 {
            pair.check(&mut rng);
        }
    }
    assert_eq!(pair.fib.hash_state(), None);
    assert_eq!(pair.fib.hashes.octets(), 0);
    assert_eq!(pair.fib.live, Fib::<Ipv6Addr>::new().live);
    // Snapshots of every kind still say what they said.
    for (reader, twin) in &held {
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 | 1).collect();
        check_batch(reader, twin, &keys);
    }
}

#[test]
fn a_length_too_many_costs_the_hash_and_it_comes_back() {
    let mut rng = Rng(22);
    let mut pair = Pair::default();
    for n in 0..1_000 {
        pair.insert(cluster(n), n);
    }
    pair.insert((0, 0), 7);
    // Two lengths are there; the default route is none.
    for len in [122, 48] {
        pair.insert((PODS, len), 8);
        pair.check(&mut rng);
        assert!(is_complete(&pair.fib), "with a /{len}");
    }
    pair.insert((PODS, 56), 9);
    assert_eq!(pair.fib.hash_state(), None);
    pair.check(&mut rng);
    pair.remove((PODS, 56));
    for n in 0..1_200 {
        pair.insert(cluster(n % 1_000), n);
    }
    assert!(is_complete(&pair.fib), "it is tried again");
    pair.check(&mut rng);
    // The last route of a length takes the length along.
    pair.remove((PODS, 48));
    pair.insert((PODS, 56), 9);
    assert!(is_complete(&pair.fib));
    pair.check(&mut rng);
    pair.remove((0, 0));
    pair.check(&mut rng);
}

#[test]
fn a_table_that_is_built_has_what_one_that_has_grown_has() {
    for count in [10, 255, 256, 5_000] {
        let routes = (0..count).map(|n| (join(cluster(n)), id(n)));
        let mut built = Fib::<Ipv6Addr>::from_routes(routes.clone()).unwrap();
        assert_eq!(is_complete(&built), count >= 256, "{count} routes");
        let mut twin = Twin::default();
        for (prefix, next_hop) in routes {
            let (key, len) = Ipv6Addr::split(prefix);
            twin.insert(key, len, next_hop);
        }
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 ^ 2).collect();
        check_batch(&built.reader(), &twin, &keys);
    }
}

/// Routes of /64 that share the `bits` of their hash with `hash`.
fn colliding(hash: u64, bits: u64) -> impl Iterator<Item = (u128, u8)> {
    (0..)
        .map(|n: u64| (0x2001_0db8_0000_0000_u128 << 64 | u128::from(n) << 64, 64))
        .filter(move |route| (hash_of(route.0, 64) ^ hash) & bits == 0)
}

#[test]
fn prefixes_made_to_collide_are_found_by_the_trie() {
    let mut rng = Rng(23);
    let mut pair = Pair::default();
    for n in 0..600 {
        pair.insert(cluster(n), n);
    }
    let complete = is_complete(&pair.fib);
    assert!(complete);
    // Directory, line and tag of a route that is there, so that one tag is found for two prefixes.
    let there = hash_of(cluster(0).0, 64);
    for (n, route) in (0..).zip(colliding(there, 0xf00e_0000_0000_fffe).take(3)) {
        let (one, other) = (hash_of(route.0, 64), there);
        assert_eq!((line_of(one), tag_of(one)), (line_of(other), tag_of(other)));
        // Not a route yet: what the tag leads to is another prefix.
        let addresses = [
            Ipv6Addr::from_key(route.0 | 5),
            Ipv6Addr::from_key(cluster(0).0),
        ];
        let mut answers = [None; 2];
        pair.fib.reader().lookup_batch(&addresses, &mut answers);
        assert_eq!(answers, [None, Some(id(0))]);
        // The same in a whole group.
        let mut group = [addresses[1]; 32];
        (group[3], group[31]) = (addresses[0], addresses[0]);
        let mut answers = [None; 32];
        pair.fib.reader().lookup_batch(&group, &mut answers);
        let expected = group.map(|address| (address == addresses[1]).then(|| id(0)));
        assert_eq!(answers, expected);
        pair.insert(route, 1_000 + n);
        check_batch(&pair.fib.reader(), &pair.twin, &[route.0 | 5, cluster(0).0]);
        pair.check(&mut rng);
    }
    assert!(is_complete(&pair.fib), "three in one line have room");
    // Twelve bits of the directory and the line: the seventeenth has no place, however often the page is split.
    let crowd: Vec<_> = colliding(there, 0xfffe_0000_0000_0000).take(40).collect();
    for (n, route) in (0..).zip(&crowd) {
        pair.insert(*route, 2_000 + n);
        pair.check(&mut rng);
    }
    assert_eq!(pair.fib.hash_state(), None);
    let keys: Vec<u128> = crowd.iter().map(|route| route.0 | 1).collect();
    check_batch(&pair.fib.reader(), &pair.twin, &keys);
    for route in &crowd {
        pair.remove(*route);
    }
    for n in 0..1_200 {
        pair.insert(cluster(n % 600), n);
    }
    assert!(is_complete(&pair.fib), "without them it comes back");
    pair.check(&mut rng);
}

#[test]
fn the_routes_after_one_are_those_of_the_list() {
    let mut rng = Rng(24);
    let mut pair = Pair::default();
    for n in 0..900 {
        let (key, len) = overlay(&mut rng);
        let any = rng.below(129) as u8;
        pair.insert(if n % 3 > 0 { (key, len) } else { (key, any) }, n);
        if n % 5 == 0 {
            let spread = (rng.wide() & 0xf0f0 << 112 | key >> 90, any);
            pair.insert(spread, n);
        }
        if n % 300 < 200 {
            continue;
        }
        // From a route that is there, and from one that is not.
        let at = rng.below(pair.twin.routes.len() as u64) as usize;
        let (there, there_len, _) = pair.twin.routes[at];
        let gone = (there ^ 1 << rng.below(128)) & prefix_mask(any);
        for cursor in [(there, there_len), (gone, any)] {
            let after = pair.fib.view().after::<Ipv6Addr>(Some(cursor));
            let after: Vec<_> = after.map(super::split::<Ipv6Addr>).collect();
            let from = pair
                .twin
                .routes
                .partition_point(|route| (route.0, route.1) <= cursor);
            assert_eq!(after, pair.twin.routes[from..], "{cursor:x?}");
        }
    }
}

#[test]
fn no_change_of_a_table_with_a_hash_writes_more_than_its_share() {
    // What the trie may write (see `work.rs`), a new segment, and of the hash: the filling, or four splits.
    const TRIE: usize = 10_900;
    let mut fib = Fib::<Ipv6Addr>::new();
    let mut rng = Rng(25);
    let (mut most, mut most_without) = (0, 0);
    let mut held = fib.reader();
    for n in 0..20_000 {
        let segments = fib.arena.segments().len();
        let written = cells_written(|| {
            fib.insert(join(cluster(n)), id(n)).unwrap();
        });
        if fib.arena.segments().len() == segments {
            most_without = most_without.max(written);
        }
        most = most.max(written);
        if n % 3 == 0 {
            drop(core::mem::replace(&mut held, fib.reader()));
        }
    }
    std::eprintln!("growing to 20,000 routes: most {most} cells, {most_without} without a segment");
    assert!(is_complete(&fib));
    assert!(most_without <= TRIE, "{most_without}");
    assert!(most <= TRIE + 2 * 4_096 + 4_096, "{most}");
    // Given up and filled again, by a length too many that comes and goes.
    let (mut most, mut completed) = (0, 0);
    for n in 0..3 {
        for len in [40, 44, 48] {
            fib.insert(join((PODS, len)), id(n)).unwrap();
        }
        assert_eq!(fib.hash_state(), None);
        for len in [40, 44, 48] {
            fib.remove(join((PODS, len)));
        }
        for _ in 0..2_400 {
            let route = cluster(rng.below(20_000));
            let segments = fib.arena.segments().len();
            let written = cells_written(|| {
                fib.insert(join(route), id(n)).unwrap();
            });
            if fib.arena.segments().len() == segments {
                most = most.max(written);
            }
        }
        completed += usize::from(is_complete(&fib));
    }
    std::eprintln!("filled {completed} times: most {most} cells");
    assert_eq!(completed, 3);
    assert!(most <= TRIE, "{most}");
    drop(held);
}

#[test]
fn a_hash_that_finds_no_room_is_given_up_and_the_routes_stay() {
    let mut pair = Pair::default();
    for n in 0..2_000 {
        pair.insert(cluster(n), n);
    }
    let limit = pair.fib.arena.segments().len() + CHANGE_SEGMENTS;
    pair.fib.arena.limit_segments(limit);
    let mut rng = Rng(26);
    let mut n = 2_000;
    while pair.fib.insert(join(cluster(n)), id(n)).is_ok() {
        let (key, len) = cluster(n);
        pair.twin.insert(key, len, id(n));
        n += 1;
        assert!(n < 100_000, "the limit is reached");
    }
    pair.check(&mut rng);
    for at in 0..2_000 {
        pair.remove(cluster(at));
    }
    pair.check(&mut rng);
}

#[test]
fn readers_of_a_table_with_a_hash_see_whole_generations() {
    let mut fib = Fib::<Ipv6Addr>::new();
    for n in 0..1_500 {
        fib.insert(join(cluster(n)), id(0)).unwrap();
    }
    let addresses: Vec<Ipv6Addr> = (0..1_500)
        .map(|n| Ipv6Addr::from_key(cluster(n).0))
        .collect();
    let published = Mutex::new(fib.reader());
    let done = AtomicBool::new(false);
    let compared = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) || compared.load(Ordering::Relaxed) == 0 {
                    let reader = published.lock().unwrap().clone();
                    let mut answers = alloc::vec![None; addresses.len()];
                    reader.lookup_batch(&addresses, &mut answers);
                    let generation = answers[0];
                    assert!(answers.iter().all(|answer| *answer == generation));
                    assert_eq!(reader.lookup(addresses[77]), generation);
                    let generation = generation.unwrap().index();
                    assert!(generation >= last, "generations go forward");
                    last = generation;
                    compared.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for generation in 1..=60 {
            for n in 0..1_500 {
                if (n + generation) % 3 == 0 {
                    fib.remove(join(cluster(n)));
                }
                fib.insert(join(cluster(n)), id(generation)).unwrap();
            }
            // Others come and go, in pages that are split and filled.
            for n in 0..400 {
                let route = cluster(10_000 + 400 * (generation % 7) + n);
                fib.insert(join(route), id(9)).unwrap();
                if generation % 7 == 6 {
                    (0..7).for_each(|part| {
                        fib.remove(join(cluster(10_000 + 400 * part + n)));
                    });
                }
            }
            *published.lock().unwrap() = fib.reader();
        }
        done.store(true, Ordering::Release);
    });
    assert!(is_complete(&fib));
}

#[test]
fn as_many_lengths_as_a_hash_serves() {
    let mut rng = Rng(27);
    // Of two lengths, first those of hosts and their networks, then others.
    let lengths = [[64, 128, 122, 80], [122, 48, 128, 64], [64, 96, 122, 80]];
    for (lengths, count) in lengths
        .iter()
        .flat_map(|list| (1..=MAX_LENGTHS).map(move |count| (list, count)))
    {
        let mut pair = Pair::default();
        for n in 0..700 {
            let len = lengths[n as usize % count];
            let spread = u128::from(n) << 80 | u128::from(n) << 64 | u128::from(n) << 6;
            pair.insert((PODS ^ spread, len), n);
        }
        for n in 0..40 {
            pair.check(&mut rng);
            pair.insert((PODS ^ u128::from(n) << 80, lengths[0]), n + 3);
            pair.insert((0, 0), n);
        }
        assert!(is_complete(&pair.fib), "{count} lengths");
    }
}
