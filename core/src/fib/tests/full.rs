//! Whole tables against the `prefix-trie` crate: after the build, after churn, and while a writer is at work.
//!
//! The real table, when there is one, and 10^8 lookups in all:
//!
//! ```text
//! WARREN_ROUTES=table.txt.gz cargo test --profile bench -p warren-core fib::tests::full -- --ignored --nocapture
//! ```
//!
//! `WARREN_ROUTES` names a file with one prefix a line, plain or packed by gzip. Without it the tables are generated.

extern crate std;

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::env;
use std::fs;
use std::process::Command;
use std::string::String;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ipnet::Ipv6Net;
use prefix_trie::{Prefix, PrefixMap};

use super::super::address::{Address, prefix_mask};
use super::super::{Fib, FibReader, FibReplica, NextHopId, SimdLevel};
use super::id;
use super::rng::Rng;

/// What the twin says of routes that change while they are looked up.
const MOVING: u64 = 0x7000;

/// Distinct prefixes of the real table, or about `count` generated ones, crowded as real ones are.
fn prefixes<A: Address>(count: usize) -> Vec<A::Prefix>
where
    A::Prefix: std::str::FromStr,
{
    let mut prefixes: Vec<A::Prefix> =
        match env::var("WARREN_ROUTES").ok().filter(|_| count > 100_000) {
            Some(path) => text_of(&path)
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect(),
            None => {
                let mut rng = Rng(0x5eed);
                let mut near = rng.wide();
                let mut draw = || {
                    let of_ten = rng.below(10);
                    let len = match (A::BITS, of_ten) {
                        (32, 0..6) => 24,
                        (32, 9) => 25 + rng.below(8),
                        (32, _) => 8 + rng.below(16),
                        (_, 0..5) => 48,
                        (_, 9) => 49 + rng.below(80),
                        (_, _) => 19 + rng.below(29),
                    };
                    let len = u8::try_from(len).unwrap();
                    let jump = u128::from(rng.below(6)) << (128 - u32::from(len));
                    near = if rng.below(4) == 0 {
                        rng.wide() >> 3 | 1 << 125
                    } else {
                        near.wrapping_add(jump)
                    };
                    A::join(near & prefix_mask(len), len)
                };
                (0..count).map(|_| draw()).collect()
            }
        };
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

fn text_of(path: &str) -> String {
    if !path.ends_with(".gz") {
        return fs::read_to_string(path).unwrap();
    }
    let unpacked = Command::new("gzip").args(["-dc", path]).output().unwrap();
    assert!(unpacked.status.success(), "gzip -dc {path}");
    String::from_utf8(unpacked.stdout).unwrap()
}

/// Compares `count` lookups, half anywhere and half in or at the edge of a route, in batches, at every level.
fn compare<A: Address>(
    replicas: &mut [FibReplica<A>; 2],
    twin: &PrefixMap<A::Prefix, NextHopId>,
    prefixes: &[A::Prefix],
    rng: &mut Rng,
    count: usize,
) -> usize
where
    A::Prefix: Prefix,
{
    let readers = SimdLevel::ALL.map(|level| replicas[0].reader().clone().with_simd_level(level));
    let mut wrong = 0;
    let mut answers = [None; 61];
    for round in 0..count / answers.len() {
        let addresses: Vec<A> = (0..answers.len())
            .map(|_| {
                let (key, len) =
                    A::split(prefixes[usize::try_from(rng.below(prefixes.len() as u64)).unwrap()]);
                A::from_key(match rng.below(8) {
                    0..4 => rng.wide() >> 3 | u128::from(rng.below(2)) << 125,
                    4 => key.wrapping_sub(1 << (128 - u32::from(A::BITS))),
                    5 => (key | !prefix_mask(len)).wrapping_add(1),
                    _ => key | rng.wide() & !prefix_mask(len),
                })
            })
            .collect();
        let turn = round % (readers.len() + replicas.len());
        match readers.get(turn) {
            Some(reader) => reader.lookup_batch(&addresses, &mut answers),
            None => {
                let replica = &mut replicas[turn - readers.len()];
                // A whole group by itself, and less than one.
                for (addresses, answers) in addresses.chunks(32).zip(answers.chunks_mut(32)) {
                    replica.lookup_batch(addresses, answers);
                }
            }
        }
        for (address, answer) in addresses.iter().zip(&answers) {
            let host = A::join(address.to_key(), A::BITS);
            let expected = twin.get_lpm(&host).map(|(_, next_hop)| *next_hop);
            wrong += usize::from(*answer != expected && expected != Some(id(MOVING)));
        }
    }
    wrong
}

/// Has both follow, the second one in the copy for addresses that come again, if there is one.
fn follow<A: Address>(replicas: &mut [FibReplica<A>; 2], reader: &FibReader<A>) {
    for replica in &mut *replicas {
        replica.follow(reader.clone());
    }
    replicas[1].hold_near();
}

/// Builds, compares, removes and inserts again at random five times, comparing after each.
fn check<A: Address>(routes: usize, lookups: usize, churn: usize)
where
    A::Prefix: Prefix + std::str::FromStr,
{
    let prefixes = prefixes::<A>(routes);
    let mut rng = Rng(7);
    let with_hops: Vec<_> = prefixes
        .iter()
        .map(|prefix| (*prefix, id(rng.below(251))))
        .collect();
    let mut twin: PrefixMap<A::Prefix, NextHopId> = with_hops.iter().copied().collect();
    let mut fib = Fib::<A>::from_routes(with_hops.iter().copied()).unwrap();
    assert_eq!(fib.len(), twin.iter().count());
    let mut replicas = [(); 2].map(|()| FibReplica::new(fib.reader()));
    replicas[1].hold_near();
    let mut wrong = compare(&mut replicas, &twin, &prefixes, &mut rng, lookups / 6);
    for _ in 0..5 {
        let mut removed = Vec::new();
        for step in 0..churn {
            let prefix = prefixes[usize::try_from(rng.below(prefixes.len() as u64)).unwrap()];
            assert_eq!(fib.remove(prefix), twin.remove(&prefix));
            removed.push(prefix);
            if step % 64 == 0 {
                let _ = fib.reader();
            }
        }
        follow(&mut replicas, &fib.reader());
        wrong += compare(&mut replicas, &twin, &prefixes, &mut rng, lookups / 12);
        for prefix in removed {
            let next_hop = id(rng.below(251));
            assert_eq!(
                fib.insert(prefix, next_hop).unwrap(),
                twin.insert(prefix, next_hop)
            );
        }
        follow(&mut replicas, &fib.reader());
        wrong += compare(&mut replicas, &twin, &prefixes, &mut rng, lookups / 12);
    }
    assert_eq!(fib.len(), prefixes.len());
    assert!(
        fib.iter()
            .map(|(prefix, _)| prefix)
            .eq(prefixes.iter().copied()),
        "iteration is in order and whole"
    );
    std::eprintln!(
        "IPv{}: {} routes, {lookups} lookups, {wrong} wrong",
        if A::BITS == 32 { 4 } else { 6 },
        fib.len()
    );
    assert_eq!(wrong, 0);
}

#[test]
fn builds_and_churn_agree_with_prefix_trie_for_ipv4() {
    check::<Ipv4Addr>(20_000, 60_000, 2_000);
}

#[test]
fn builds_and_churn_agree_with_prefix_trie_for_ipv6() {
    check::<Ipv6Addr>(20_000, 60_000, 2_000);
}

#[test]
#[ignore = "10^8 lookups: see the head of the file for the command"]
fn a_hundred_million_lookups_in_full_tables_are_right() {
    check::<Ipv4Addr>(900_000, 60_000_000, 20_000);
    check::<Ipv6Addr>(200_000, 40_000_000, 20_000);
}

/// A writer changes a group of routes from one generation to the next, publishing the whole group at once, with other
/// routes coming and going around it; readers see each group whole, generations in order, and the rest unmoved.
fn check_while_changing<A: Address>(generations: u64, routes: usize) -> usize
where
    A::Prefix: Prefix + std::str::FromStr,
{
    let prefixes = prefixes::<A>(routes);
    // 10/8 and 3f00::/8: the group is alone there.
    let apart = if A::BITS == 32 { 0x0a } else { 0x3f };
    let still: Vec<A::Prefix> = prefixes
        .into_iter()
        .filter(|prefix| A::split(*prefix).0 >> 120 != apart && A::split(*prefix).1 >= 8)
        .collect();
    let group: Vec<A::Prefix> = (0..96_u32)
        .map(|n| {
            let key = (0x0a00_0000 + n * 0x0001_2345) & 0x00ff_ffff;
            let key = apart << 120 | u128::from(key) << 96;
            let len = u8::try_from(20 + n % 13).unwrap() + (A::BITS - 32) / 4;
            A::join(key & prefix_mask(len), len)
        })
        .collect();
    let mut fib = Fib::<A>::new();
    let mut twin = PrefixMap::new();
    for (n, prefix) in (0..).zip(&still) {
        fib.insert(*prefix, id(n % 251)).unwrap();
        twin.insert(*prefix, id(n % 251));
    }
    for prefix in &group {
        fib.insert(*prefix, id(0)).unwrap();
        twin.insert(*prefix, id(MOVING));
    }
    let published = Mutex::new(fib.reader());
    let done = AtomicBool::new(false);
    let compared = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (published, done, compared, twin, still, group) =
                (&published, &done, &compared, &twin, &still, &group);
            scope.spawn(move || {
                let mut rng = Rng(seed);
                let last_of = |prefix: &A::Prefix| {
                    let (key, len) = A::split(*prefix);
                    A::from_key(key | !prefix_mask(len))
                };
                let addresses: Vec<A> = group.iter().map(last_of).collect();
                let mut last = 0;
                let first = published.lock().unwrap().clone();
                let mut replicas = [(); 2].map(|()| FibReplica::new(first.clone()));
                while !done.load(Ordering::Acquire) {
                    let reader = published.lock().unwrap().clone();
                    follow(&mut replicas, &reader);
                    for replica in &mut replicas {
                        let mut answers = [None; 96];
                        replica.lookup_batch(&addresses, &mut answers);
                        let generation = answers[0].unwrap().index();
                        assert!(
                            answers
                                .iter()
                                .all(|answer| answer.unwrap().index() == generation),
                            "{answers:?}"
                        );
                        assert!(generation >= last, "generations go forward");
                        last = generation;
                    }
                    assert_eq!(compare(&mut replicas, twin, still, &mut rng, 427), 0);
                    compared.fetch_add(427 + 2 * 96, Ordering::Relaxed);
                }
            });
        }
        let mut rng = Rng(99);
        for generation in 1..=generations {
            for prefix in &group {
                if rng.below(2) == 0 {
                    fib.remove(*prefix);
                }
                fib.insert(*prefix, id(generation)).unwrap();
            }
            // Routes that change nothing that is compared, but move the nodes that hold what is.
            for _ in 0..64 {
                let prefix = still[usize::try_from(rng.below(still.len() as u64)).unwrap()];
                let next_hop = fib.remove(prefix).unwrap();
                fib.insert(prefix, next_hop).unwrap();
            }
            *published.lock().unwrap() = fib.reader();
        }
        done.store(true, Ordering::Release);
    });
    compared.into_inner()
}

#[test]
fn readers_see_whole_generations_while_a_writer_changes_the_table() {
    assert!(check_while_changing::<Ipv4Addr>(300, 20_000) > 0);
    assert!(check_while_changing::<Ipv6Addr>(300, 20_000) > 0);
}

#[test]
#[ignore = "a minute of concurrent churn: see the head of the file for the command"]
fn readers_of_a_full_table_see_whole_generations() {
    for (family, compared) in [
        (4, check_while_changing::<Ipv4Addr>(20_000, 900_000)),
        (6, check_while_changing::<Ipv6Addr>(20_000, 200_000)),
    ] {
        std::eprintln!(
            "IPv{family}: {compared} lookups compared during 20000 generations of 160 changes"
        );
    }
}

#[test]
fn replaced_nodes_are_used_again_once_their_readers_are_gone() {
    let mut fib = Fib::<Ipv6Addr>::new();
    let prefix = |n: u64| {
        Ipv6Net::new(
            Ipv6Addr::from_bits(0xfd << 120 | u128::from(n % 300) << 64),
            64,
        )
        .unwrap()
    };
    for n in 0..300 {
        fib.insert(prefix(n), id(n)).unwrap();
    }
    let mut largest = 0;
    for n in 0..20_000 {
        fib.insert(prefix(n), id(n / 7)).unwrap();
        drop(fib.reader());
        if n == 2_000 {
            largest = fib.memory().total_octets;
        }
    }
    assert!(
        fib.memory().total_octets <= largest,
        "{:?} after {largest}",
        fib.memory()
    );
}
