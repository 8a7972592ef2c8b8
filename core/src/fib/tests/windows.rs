//! The windows of IPv6 tables: tables that come to have them, keep them up to date, and lose them again.

extern crate std;

use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::super::Fib;
use super::super::address::{Address, prefix_mask};
use super::super::hashed::halves;
use super::super::windows::{OF_32, line_of};
use super::hooks::cells_written;
use super::rng::Rng;
use super::{Twin, check_batch, churn, has_line, id};

const BASE: u128 = 0x2001_0db8_0000_0000_u128 << 64;

/// The most cells that one change writes but for a segment in each arena, as in any IPv6 table. The largest of windows is
/// that of a /32 which is split, and of whose windows it makes a share: 64 with their pages.
const MOST: usize = 24_000;

/// Prefixes of all lengths in few /24, /32 and /40, so that there are windows of every size.
fn crowd(rng: &mut Rng) -> (u128, u8) {
    let key = BASE & prefix_mask(20)
        | u128::from(rng.below(3)) << 104
        | u128::from(rng.below(40) * rng.below(2)) << 96
        | u128::from(rng.below(20) * rng.below(2)) << 88
        | u128::from(rng.below(256)) << 80
        | rng.wide() >> 48;
    let len = match rng.below(64) {
        0..8 => 25 + rng.below(8),
        8..20 => 33 + rng.below(8),
        20..60 => 41 + rng.below(8),
        60..62 => 14 + rng.below(11),
        62 => 49 + rng.below(80),
        _ => rng.below(129),
    };
    (key, len as u8)
}

/// The `n`th of many prefixes of few /24, of more lengths than a hash has.
fn spread(n: u64) -> (u128, u8) {
    let len = [32, 36, 40, 44, 47, 48, 48, 29][(n % 8) as usize];
    let key = BASE & prefix_mask(16) | u128::from(n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff) << 80;
    (key & prefix_mask(len), len)
}

fn join((key, len): (u128, u8)) -> ipnet::Ipv6Net {
    Ipv6Addr::join(key & prefix_mask(len), len)
}

/// A table and its twin, changed side by side.
#[derive(Default)]
struct Pair {
    fib: Fib<Ipv6Addr>,
    twin: Twin,
}

impl Pair {
    /// A table of so many spread routes that it has windows.
    fn large() -> Self {
        let mut pair = Self::default();
        for n in 0..1_500 {
            pair.insert(spread(n), n);
        }
        assert!(pair.is_complete());
        pair
    }

    fn insert(&mut self, route: (u128, u8), n: u64) {
        let key = route.0 & prefix_mask(route.1);
        let old = self.twin.insert(key, route.1, id(n));
        assert_eq!(self.fib.insert(join(route), id(n)), Ok(old));
    }

    fn remove(&mut self, route: (u128, u8)) {
        let key = route.0 & prefix_mask(route.1);
        assert_eq!(self.fib.remove(join(route)), self.twin.remove(key, route.1));
    }

    fn is_complete(&self) -> bool {
        self.fib.windows.state() == Some(true)
    }

    /// Asks a new snapshot for the edges of some routes, and beside them.
    fn check(&mut self, rng: &mut Rng, near: &[(u128, u8)]) {
        let reader = self.fib.reader();
        let mut keys = alloc::vec![rng.wide(), BASE - 1, 0, u128::MAX];
        let mut routes = near.to_vec();
        for _ in 0..20 {
            let at = rng.below(self.twin.routes.len() as u64 + 1) as usize;
            let route = self.twin.routes.get(at);
            routes.extend(route.map(|route| (route.0, route.1)));
        }
        for (key, len) in routes {
            let key = key & prefix_mask(len);
            keys.push(key);
            keys.push(key ^ rng.wide() & !prefix_mask(len));
            keys.push(key | !prefix_mask(len));
            keys.push((key | !prefix_mask(len)).wrapping_add(1));
            keys.push(key.wrapping_sub(1));
        }
        check_batch(&reader, &self.twin, &keys);
    }
}

#[test]
fn random_changes_agree_with_a_scanned_list_in_a_crowded_table() {
    churn::<Ipv6Addr>(31, 8_000, 2_500, crowd);
}

#[test]
fn random_changes_agree_with_a_scanned_list_at_the_least_size() {
    churn::<Ipv6Addr>(32, 7_000, 1_000, crowd);
}

#[test]
fn new_pages_are_among_the_lines_to_be_asked_for() {
    let mut rng = Rng(38);
    let mut pair = Pair::large();
    let mut before = pair.fib.reader();
    let mut moved = 0;
    for n in 0..300 {
        for _ in 0..n % 8 {
            pair.insert(crowd(&mut rng), rng.0);
        }
        let reader = pair.fib.reader();
        reader.ask_for_changes();
        let (Some((was, _)), Some((is, fresh))) = (before.window_pages(), reader.window_pages())
        else {
            panic!("a table without windows");
        };
        if was.len() == is.len() {
            for page in is.iter().zip(was).filter(|(is, was)| is != was) {
                assert!(has_line(fresh, *page.0), "publication {n}");
                moved += 1;
            }
        }
        before = reader;
    }
    assert!(moved > 100, "{moved}");
}

#[test]
fn a_table_gains_windows_as_it_grows_and_loses_them_as_it_shrinks() {
    let mut rng = Rng(33);
    let mut pair = Pair::default();
    let mut held = Vec::new();
    for n in 0..3_000 {
        pair.insert(spread(n), n);
        if n % 100 == 60 || (1_020..1_070).contains(&n) {
            pair.check(&mut rng, &[]);
            held.push((pair.fib.reader(), pair.twin.clone()));
        }
    }
    assert!(pair.is_complete());
    let octets = pair.fib.windows.octets();
    assert!(octets < 200 * pair.fib.len(), "{octets} octets");
    for n in (0..3_000).rev() {
        pair.remove(spread(n));
        if n % 100 == 60 {
            pair.check(&mut rng, &[]);
        }
    }
    assert_eq!(pair.fib.windows.state(), None);
    assert_eq!(pair.fib.windows.octets(), 0, "all is given back");
    for (reader, twin) in &held {
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 | 1).collect();
        check_batch(reader, twin, &keys);
    }
}

#[test]
fn batches_of_any_size_and_mixture_agree_with_a_scanned_list() {
    let mut rng = Rng(53);
    let mut pair = Pair::large();
    // Where nothing but the root had routes when the windows were made; some nested, so that the longest window is not
    // always the one with the answer.
    let far = 0x3f00_u128 << 112;
    for (n, len) in (0..).zip([29, 32, 33, 40, 44, 48, 56]) {
        pair.insert((far | 0x77 << 88, len), n);
    }
    let below: Vec<_> = pair.twin.routes.iter().map(|route| route.0).collect();
    let reader = pair.fib.reader();
    for len in 0..70 {
        for outside in [0, 1, 8, 30] {
            let keys = (0..len).map(|_| match rng.below(32) {
                draw if draw < outside => rng.wide(),
                draw if draw % 4 == 0 => far | 0x77 << 88 | rng.wide() >> (29 + rng.below(40)),
                _ => below[rng.below(below.len() as u64) as usize] | rng.wide() >> 44,
            });
            check_batch(&reader, &pair.twin, &keys.collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_table_of_long_routes_has_no_windows() {
    let mut rng = Rng(34);
    let mut pair = Pair::large();
    for n in 0..200_u64 {
        pair.insert((BASE | u128::from(n) << 70, 60), n);
    }
    assert_eq!(pair.fib.windows.state(), None);
    pair.check(&mut rng, &[]);
    for n in 0..200_u128 {
        pair.remove((BASE | n << 70, 60));
    }
    for n in 0..60 {
        pair.insert(spread(n), n);
    }
    assert!(pair.is_complete(), "they are made again");
    pair.check(&mut rng, &[]);
}

#[test]
fn a_crowded_32_is_split_and_forgotten() {
    let mut rng = Rng(35);
    let mut pair = Pair::large();
    let before = pair.fib.windows.octets();
    let routes: Vec<(u128, u8)> = (0..1_024_u128)
        .map(|n| {
            (
                BASE | (n * 0x43 % 0x1_0000) << 80,
                [48, 44, 47, 38][n as usize % 4],
            )
        })
        .chain([
            (BASE, 33),
            (BASE | 5 << 88, 40),
            (BASE | 5 << 80, 64),
            (BASE, 32),
        ])
        .collect();
    for (n, route) in (0..).zip(&routes) {
        pair.insert(*route, n);
        if n % 50 == 0 || (40..70).contains(&n) {
            pair.check(&mut rng, &routes[..=n as usize]);
        }
    }
    for (n, route) in (0..).zip(&routes) {
        pair.remove((route.0 & prefix_mask(route.1), route.1));
        if n % 100 == 0 {
            pair.check(&mut rng, &routes);
        }
    }
    pair.check(&mut rng, &routes);
    // Some 260 windows are gone again; the pages that they were in stay.
    let after = pair.fib.windows.octets();
    assert!(
        after <= before + 20 * 1_024,
        "{after} octets, {before} before"
    );
}

#[test]
fn a_table_that_is_built_has_what_one_that_has_grown_has() {
    for count in [10, 1_023, 5_000] {
        let mut twin = Twin::default();
        for n in 0..count {
            let (key, len) = spread(n);
            twin.insert(key, len, id(n));
        }
        let routes = twin.routes.iter();
        let routes = routes.map(|route| (join((route.0, route.1)), route.2));
        let mut built = Fib::<Ipv6Addr>::from_routes(routes).unwrap();
        let complete = built.windows.state() == Some(true);
        assert_eq!(complete, twin.routes.len() >= 1_024, "{count} routes");
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 ^ 2).collect();
        check_batch(&built.reader(), &twin, &keys);
    }
}

/// Prefixes of /48, one in each of many /32 that share the `bits` of their hash with `hash`.
fn colliding(hash: u64, bits: u64) -> impl Iterator<Item = (u128, u8)> {
    (0..=u32::MAX)
        .map(|n| u128::from(n) << 96)
        .filter(move |key| (OF_32.hash(halves(*key).0) ^ hash) & bits == 0)
        .map(|key| (key | 3 << 80, 48))
}

#[test]
fn prefixes_made_to_collide_are_found_by_the_trie() {
    let mut rng = Rng(36);
    let mut pair = Pair::large();
    let there = (BASE | 3 << 80, 48);
    pair.insert(there, 1);
    let hash = OF_32.hash(halves(BASE).0);
    // Line and tag of a window that is there: one tag is found for several prefixes.
    let same: Vec<_> = colliding(hash, 0x7_fffc_0000).take(3).collect();
    for (n, route) in (0..).zip(&same) {
        assert_eq!(line_of(OF_32.hash(halves(route.0).0)), line_of(hash));
        check_batch(&pair.fib.reader(), &pair.twin, &[route.0 | 5, there.0 | 5]);
        pair.insert(*route, 1_000 + n);
        pair.check(&mut rng, &[*route, there]);
    }
    // Thirteen bits of the directory and the line: the ninth has no place, however often the page is split.
    let crowd: Vec<_> = colliding(hash, 0xfff8_0007_0000_0000).take(20).collect();
    for (n, route) in (0..).zip(&crowd) {
        pair.insert(*route, 2_000 + n);
        pair.check(&mut rng, &[*route]);
    }
    assert!(!pair.is_complete(), "the windows are given up");
    for n in 0..1_100 {
        pair.insert(spread(n), n);
        pair.check(&mut rng, &[]);
    }
    for route in &crowd {
        pair.remove(*route);
    }
    for n in 0..2_000 {
        pair.insert(spread(n % 1_500), n);
    }
    assert!(pair.is_complete(), "they are tried again");
    pair.check(&mut rng, &crowd);
}

#[test]
fn a_window_without_a_place_is_given_back() {
    let mut pair = Pair::large();
    let hash = OF_32.hash(halves(BASE).0);
    let crowd: Vec<_> = colliding(hash, 0xfff8_0007_0000_0000).take(20).collect();
    for (n, route) in (0..).zip(&crowd) {
        pair.insert(*route, n);
    }
    assert!(!pair.is_complete(), "the windows are given up");
    for route in pair.twin.routes.clone() {
        pair.remove((route.0, route.1));
    }
    assert_eq!(pair.fib.windows.octets(), 0, "all is given back");
}

#[test]
fn a_table_that_tries_to_have_a_hash_keeps_its_windows() {
    let mut pair = Pair::large();
    for n in 0..2_200 {
        pair.insert(spread(n % 1_500), n);
        assert!(pair.is_complete(), "after change {n}");
    }
}

#[test]
fn a_table_goes_to_and_fro_over_the_least_size() {
    let mut rng = Rng(38);
    let mut pair = Pair::default();
    for _ in 0..3 {
        for n in 0..1_100 {
            pair.insert(spread(n), n);
            if n % 64 == 0 {
                pair.check(&mut rng, &[]);
            }
        }
        assert!(pair.is_complete());
        for n in 400..1_100 {
            pair.remove(spread(n));
            if n % 64 == 0 {
                pair.check(&mut rng, &[]);
            }
        }
        assert_eq!(pair.fib.windows.state(), None);
    }
}

/// A crowd of routes by number.
type Draw = fn(u64) -> (u128, u8);

#[test]
fn tables_of_every_shape_agree_with_a_scanned_list() {
    let shapes: [(Draw, bool); 4] = [
        // Nothing that a window holds.
        (
            |n| {
                (
                    u128::from(n.wrapping_mul(0x9e37_79b1)) << 96,
                    13 + (n % 12) as u8,
                )
            },
            true,
        ),
        (|n| (BASE | u128::from(n) << 40, 128), false),
        // All lengths nested, at many addresses.
        (
            |n| {
                (
                    u128::from(n / 49).wrapping_mul(0x9e37_79b9_7f4a_7c15_1234_5678_9abc_def1),
                    (n % 49) as u8,
                )
            },
            true,
        ),
        // Neighbours with one next hop each, to the end of the address space.
        (|n| (u128::MAX << 92 | u128::from(n * 3) << 80, 48), true),
    ];
    for (at, (draw, windows)) in shapes.into_iter().enumerate() {
        let mut rng = Rng(40 + at as u64);
        let mut pair = Pair::default();
        // Of too many lengths for a hash.
        for len in 0..12 {
            pair.insert((1 << 126, len), 3);
        }
        let mut n = 0;
        while pair.twin.routes.len() < 1_100 {
            pair.insert(draw(n), n);
            n += 1;
        }
        assert_eq!(pair.is_complete(), windows, "shape {at}");
        let last: Vec<_> = (n - 20..n).map(draw).collect();
        pair.check(&mut rng, &last);
        pair.remove((0, 0));
        pair.check(&mut rng, &last);
        pair.insert((0, 0), 4);
        pair.fib.compact().unwrap();
        assert_eq!(pair.is_complete(), windows, "shape {at}, built");
        pair.check(&mut rng, &last);
        let reader = pair.fib.reader();
        let Pair { fib, twin } = pair;
        drop(fib);
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 | 1).collect();
        check_batch(&reader, &twin, &keys);
    }
}

#[test]
fn a_32_that_must_be_split_at_once_is_filled_again() {
    let mut rng = Rng(50);
    let mut pair = Pair::large();
    for half in [BASE, BASE | 1 << 95] {
        pair.insert((half, 33), 7);
    }
    let routes: Vec<_> = (0..250_u128)
        .map(|n| (BASE | n << 88 | 9 << 80, 48))
        .collect();
    for route in &routes {
        pair.insert(*route, 7);
    }
    assert!(pair.is_complete());
    pair.check(&mut rng, &routes);
    let cells = cells_written(|| pair.insert((BASE, 33), 8));
    assert!(cells <= MOST, "{cells}");
    assert!(!pair.is_complete(), "too much for one change");
    let mut changes = 0;
    while !pair.is_complete() {
        // Behind the filling and before it.
        pair.remove(routes[changes % 125]);
        pair.check(&mut rng, &routes);
        pair.insert(routes[249 - changes % 125], 9);
        pair.check(&mut rng, &routes);
        changes += 1;
    }
    assert!(changes <= 1 + pair.twin.routes.len() / 32);
    pair.insert((BASE | 1 << 95, 33), 9);
    pair.check(&mut rng, &routes);
}

#[test]
fn a_full_32_is_filled_a_share_a_change() {
    let mut rng = Rng(51);
    let mut twin = Twin::default();
    for n in 0..16_384_u64 {
        twin.insert(BASE | u128::from(n) << 82, 48, id(n));
    }
    for n in 0..1_500 {
        let (key, len) = spread(n);
        twin.insert(key, len, id(n));
    }
    let routes = twin.routes.iter();
    let routes = routes.map(|route| (join((route.0, route.1)), route.2));
    let fib = Fib::<Ipv6Addr>::from_routes(routes).unwrap();
    let mut pair = Pair { fib, twin };
    assert!(pair.is_complete());
    pair.check(&mut rng, &[]);
    // Windows go and come again.
    let long = |n: u128| (0x3000 << 112 | n << 68, 60);
    let mut n = 0;
    while pair.fib.windows.state().is_some() {
        pair.insert(long(n), 1);
        n += 1;
    }
    let mut most = 0;
    while n > 0 {
        n -= 1;
        let cells = cells_written(|| pair.remove(long(n)));
        most = most.max(cells);
    }
    while !pair.is_complete() {
        let cells = cells_written(|| pair.insert(spread(0), 1));
        most = most.max(cells);
    }
    std::eprintln!("IPv6, windows of a full /32: most {most} cells in one change");
    assert!(most <= MOST, "{most}");
    pair.check(&mut rng, &[]);
}

#[test]
fn a_32_full_of_longer_routes_is_split() {
    let mut rng = Rng(52);
    let mut twin = Twin::default();
    for n in 0..18_000 {
        let (key, len) = spread(n);
        twin.insert(key, len, id(n));
    }
    let crowd = 0x3fff_u128 << 112;
    for n in 0..1_100 {
        twin.insert(crowd | n << 80, 49, id(5));
    }
    let routes = twin.routes.iter();
    let routes = routes.map(|route| (join((route.0, route.1)), route.2));
    let fib = Fib::<Ipv6Addr>::from_routes(routes).unwrap();
    let mut pair = Pair { fib, twin };
    assert!(pair.is_complete());
    for n in [0, 3, 255, 256, 1_099] {
        pair.check(&mut rng, &[(crowd | n << 80, 49), (crowd | n << 80, 48)]);
        pair.insert((crowd | n << 80, 48), 6);
        pair.check(&mut rng, &[(crowd | n << 80, 49), (crowd | n << 80, 48)]);
        pair.remove((crowd | n << 80, 49));
        pair.check(&mut rng, &[(crowd | n << 80, 49), (crowd | n << 80, 48)]);
    }
}

#[test]
fn no_change_writes_more_than_a_split_32() {
    let mut fib = Fib::<Ipv6Addr>::new();
    let mut rng = Rng(37);
    let mut most = 0;
    let mut newest = fib.reader();
    // A /48 in each /40 first, so that splits find many of them.
    let routes: Vec<_> = (0..256_u128)
        .map(|n| (BASE | n << 88 | n << 80, 48))
        .chain((0..2_000).map(spread))
        .chain((0..4_000).map(|_| crowd(&mut rng)))
        .collect();
    for round in 0..2 {
        for (n, route) in (0..).zip(&routes) {
            let growth = 3 * 4_096 + 6 * fib.arena.segments().len();
            let cells = cells_written(|| {
                fib.insert(join(*route), id(n + round)).unwrap();
            });
            most = most.max(cells.saturating_sub(growth));
            drop(core::mem::replace(&mut newest, fib.reader()));
        }
        for route in &routes {
            let cells = cells_written(|| {
                fib.remove(join(*route));
            });
            most = most.max(cells);
            drop(core::mem::replace(&mut newest, fib.reader()));
        }
    }
    std::eprintln!("IPv6 with windows: most {most} cells in one change");
    assert!(most <= MOST, "{most}");
}
