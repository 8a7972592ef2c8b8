//! What one change costs, in cells written: numbers that no other program on the machine can change.
//!
//! A change writes at most one node per level again, in IPv6 one more where it splits one, and growing adds a segment
//! to each of the two arenas. Taking a node apart reads as many cells as it has and is not counted.

extern crate std;

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::super::Fib;
use super::super::address::{Address, prefix_mask};
use super::hooks::cells_written;
use super::id;
use super::rng::Rng;

/// The largest IPv4 change below the root: a second-level node in which every slot has a child, with all its routes,
/// one third-level node, and the flat chunk: a copy of it, all its slots, and the tails that one change writes.
const MOST_IPV4: usize = 65 + 2_048 + 512 + 2_049 + 9 + 64 + 64 + 257 + MOST_FLAT;
const MOST_FLAT: usize = 3_586 + 2_048 + 3 * 2_048 + 128 * 66;
/// The largest IPv6 change below the root: a second-level node with all its routes, and thirteen nodes below it.
const MOST_IPV6: usize = 42 + 2_048 + 2_049 + 13 * (7 + 256 + 257);
/// The largest change of the root laid out slot by slot: the copy of its route list, and every slot and its word.
const MOST_ROOT: usize = 2 * 16_384 + 2 * 8_192;
/// A new segment for each arena. The list of segments comes on top, two cells for each.
const MOST_GROWTH: usize = 2 * 4_096;

/// Inserts and removes `routes` in a table that has them, published before each change; gives the most cells that one
/// change wrote, and the mean.
fn churn<A: Address>(fib: &mut Fib<A>, routes: &[(u128, u8)], changes: usize) -> (usize, usize) {
    let mut rng = Rng(3);
    let (mut most, mut sum) = (0, 0);
    // What a worker holds: the snapshot of before, until it takes the next.
    let mut held = fib.reader();
    for n in 0..changes / 2 {
        let (key, len) = routes[usize::try_from(rng.below(routes.len() as u64)).unwrap()];
        let prefix = A::join(key & prefix_mask(len), len);
        let removing = cells_written(|| {
            fib.remove(prefix);
        });
        drop(core::mem::replace(&mut held, fib.reader()));
        let inserting = cells_written(|| {
            fib.insert(prefix, id(n as u64)).unwrap();
        });
        drop(core::mem::replace(&mut held, fib.reader()));
        most = most.max(removing).max(inserting);
        sum += removing + inserting;
    }
    drop(held);
    (most, sum / changes)
}

#[test]
fn no_change_below_the_root_of_a_crowded_table_writes_more_than_its_nodes() {
    // Every /24 of a /13, every shorter prefix in it, a host route below each: the fullest second-level node.
    let mut routes = Vec::new();
    for len in 14..=24_u8 {
        let step = 1_u128 << (128 - u32::from(len));
        routes.extend((0..1 << (len - 13)).map(|n: u128| ((0x0a00 << 112) + n * step, len)));
    }
    routes.extend((0..2_048_u128).map(|n| (0x0a00 << 112 | n << 104 | 7 << 96, 32)));
    let mut fib = Fib::<Ipv4Addr>::new();
    let mut most = 0;
    for (n, (key, len)) in (0..).zip(&routes) {
        let prefix = Ipv4Addr::join(*key, *len);
        most = most.max(cells_written(|| {
            fib.insert(prefix, id(n)).unwrap();
        }));
    }
    let growth = MOST_GROWTH + 4 * fib.arena.segments().len();
    std::eprintln!("IPv4, growing: most {most} cells in one change");
    assert!(most <= MOST_IPV4 + growth + 8_192, "{most}");
    let (most, mean) = churn(&mut fib, &routes, 4_000);
    std::eprintln!("IPv4, crowded: most {most} cells in one change, mean {mean}");
    assert!(most <= MOST_IPV4 + growth, "{most}");
}

#[test]
fn no_change_below_the_root_of_a_deep_table_writes_more_than_its_nodes() {
    // All lengths nested along one address, with neighbours at every level: a node at every depth, each full.
    let mut routes: Vec<(u128, u8)> = Vec::new();
    let spine = 0x2001_0db8_5a5a_a5a5_5a5a_a5a5_5a5a_a5a5_u128;
    for len in 14..=128_u8 {
        routes.push((spine, len));
    }
    for depth in (32..=128_u32).step_by(8) {
        let above = spine & prefix_mask(u8::try_from(depth - 8).unwrap());
        routes.extend((0..256_u128).map(|n| (above | n << (128 - depth), depth as u8)));
    }
    routes.extend((0..2_048_u128).map(|n| (0x2000 << 112 | n << 104, 24)));
    let mut fib = Fib::<Ipv6Addr>::new();
    for (n, (key, len)) in (0..).zip(&routes) {
        let prefix = Ipv6Addr::join(*key & prefix_mask(*len), *len);
        fib.insert(prefix, id(n)).unwrap();
    }
    let (most, mean) = churn(&mut fib, &routes, 4_000);
    std::eprintln!("IPv6, deep: most {most} cells in one change, mean {mean}");
    let growth = MOST_GROWTH + 4 * fib.arena.segments().len();
    assert!(most <= MOST_IPV6 + growth, "{most}");
}

#[test]
fn no_change_of_the_root_writes_more_than_the_root() {
    let mut routes = Vec::new();
    for len in 0..=13_u8 {
        routes.extend(
            (0..1_u128 << len).map(|n| (n.checked_shl(128 - u32::from(len)).unwrap_or(0), len)),
        );
    }
    let mut fib = Fib::<Ipv4Addr>::new();
    for (n, (key, len)) in (0..).zip(&routes) {
        fib.insert(Ipv4Addr::join(*key, *len), id(n)).unwrap();
    }
    let (most, mean) = churn(&mut fib, &routes, 1_000);
    std::eprintln!(
        "root with every prefix up to /13: most {most} cells in one change, mean {mean}"
    );
    assert!(most <= MOST_ROOT, "{most}");
}

#[test]
fn a_reader_that_is_kept_keeps_one_snapshot_and_leaves_no_publication_with_all_its_work() {
    let mut fib = Fib::<Ipv4Addr>::new();
    let prefix = |n: u64| Ipv4Addr::join(u128::from(0x0a00_0000 + n % 5_000 * 0x100) << 96, 24);
    for n in 0..5_000 {
        fib.insert(prefix(n), id(n)).unwrap();
    }
    let kept = fib.reader();
    let alone = fib.memory().total_octets;
    let mut newest = fib.reader();
    for n in 0..20_000 {
        fib.insert(prefix(n), id(n + 1)).unwrap();
        drop(core::mem::replace(&mut newest, fib.reader()));
        assert!(fib.snapshots() <= 5, "{} snapshots", fib.snapshots());
    }
    assert_eq!(kept.lookup(Ipv4Addr::new(10, 0, 7, 1)), Some(id(7)));
    let held = fib.memory().total_octets;
    assert!(held < 4 * alone, "{held} octets, {alone} before");
    drop(kept);
    let mut most = 0;
    for n in 0..200 {
        fib.insert(prefix(n), id(n)).unwrap();
        most = most.max(cells_written(|| {
            drop(core::mem::replace(&mut newest, fib.reader()));
        }));
    }
    std::eprintln!(
        "a reader kept over 20,000 publications: {held} octets, {alone} before; given back with at most {most} cells a publication"
    );
    // Two blocks a node, one cell each to put it on its list.
    assert!(most <= 2 * (256 + 2 * 2), "{most}");
    for n in 0..2_000 {
        fib.insert(prefix(n), id(n + 1)).unwrap();
        drop(core::mem::replace(&mut newest, fib.reader()));
    }
    assert!(
        fib.memory().total_octets <= held,
        "what was free is used again"
    );
}
