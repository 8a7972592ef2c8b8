//! A worker's copy of large IPv6 tables: what follows is the same as what is made anew, and both say what the trie does.

use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::super::address::{Address, prefix_mask};
use super::super::strides::{Strides, line_of};
use super::super::{Fib, FibReader, FibReplica, SimdLevel};
use super::id;
use super::rng::Rng;

/// Prefixes close to each other, of all lengths, in few /13; many of their nodes have few runs, some very many.
fn draw(rng: &mut Rng) -> (u128, u8) {
    let dense = rng.below(4) == 0;
    let mut key = (0x2001 + 0x400 * u128::from(rng.below(3))) << 112;
    for octet in 2..8 {
        let spread = if dense {
            [1, 2, 3, 256][rng.below(4) as usize]
        } else {
            3
        };
        key |= u128::from(rng.below(spread) * 83 % 256) << (120 - 8 * octet);
    }
    let len = match rng.below(32) {
        0 => rng.below(14) as u8,
        1 | 2 => 14 + rng.below(11) as u8,
        3 => 49 + rng.below(80) as u8,
        _ => 25 + rng.below(24) as u8,
    };
    ((key | rng.wide() >> 64) & prefix_mask(len), len)
}

fn prefix((key, len): (u128, u8)) -> ipnet::Ipv6Net {
    Ipv6Addr::join(key, len)
}

/// Asks the copy of `replica` and the trie for addresses in and around `routes`.
fn compare(replica: &mut FibReplica<Ipv6Addr>, routes: &[(u128, u8)], rng: &mut Rng) {
    let mut keys = alloc::vec![0, u128::MAX, rng.wide()];
    for (key, len) in routes {
        let last = key | !prefix_mask(*len);
        keys.extend([*key, last, key.wrapping_sub(1), last.wrapping_add(1)]);
        keys.push(key ^ rng.wide() & !prefix_mask(*len));
    }
    let addresses: Vec<Ipv6Addr> = keys.iter().map(|key| Ipv6Addr::from_key(*key)).collect();
    let trie = replica.reader().clone().by_trie();
    // Of every length up to a group and some more.
    for addresses in addresses.chunks(1 + rng.below(70) as usize) {
        let mut answers = alloc::vec![Some(id(77)); addresses.len()];
        replica.lookup_batch(addresses, &mut answers);
        for (address, answer) in addresses.iter().zip(answers) {
            assert_eq!(answer, trie.lookup(*address), "{address}");
            assert_eq!(answer, replica.lookup(*address), "{address}");
        }
    }
}

/// The snapshot at the level that has copies, where the machine has it.
fn leveled(fib: &mut Fib<Ipv6Addr>) -> FibReader<Ipv6Addr> {
    fib.reader().with_simd_level(SimdLevel::Avx512Gather)
}

/// What a copy of `reader` says of every node, in order, without where it is.
fn content(reader: &FibReader<Ipv6Addr>) -> Option<Vec<u64>> {
    Some(Strides::of(&reader.view(), reader.len())?.content())
}

fn churned(seed: u64, most: u64, steps: usize, hops: u64) {
    let mut rng = Rng(seed);
    let mut fib = Fib::<Ipv6Addr>::new();
    let mut routes: Vec<(u128, u8)> = Vec::new();
    while routes.len() < 1_400 {
        let route = draw(&mut rng);
        if fib
            .insert(prefix(route), id(rng.below(hops)))
            .unwrap()
            .is_none()
        {
            routes.push(route);
        }
    }
    let mut replica = FibReplica::new(leveled(&mut fib));
    let mut strides = Strides::of(&replica.reader().view(), fib.len()).unwrap();
    let mut older = replica.reader().clone();
    for step in 0..steps {
        let mut changed = Vec::new();
        for _ in 0..rng.below(most) {
            // To and fro between 1,200 and 1,600 routes.
            let grows = routes.len() < 1_200 + 400 * (step / 40 % 2);
            let route = if grows || rng.below(3) == 0 {
                let route = draw(&mut rng);
                if fib
                    .insert(prefix(route), id(rng.below(hops)))
                    .unwrap()
                    .is_none()
                {
                    routes.push(route);
                }
                route
            } else {
                let route = routes.swap_remove(rng.below(routes.len() as u64) as usize);
                fib.remove(prefix(route)).unwrap();
                route
            };
            changed.push(route);
        }
        let reader = leveled(&mut fib);
        let noted = reader.noted().unwrap();
        let whole = noted.since(older.noted().unwrap(), |changes| {
            strides.follow(&reader.view(), changes).unwrap();
        });
        assert!(whole);
        older = reader.clone();
        if step % 8 == 0 {
            assert_eq!(Some(strides.content()), content(&reader));
        }
        replica.follow(reader);
        changed.extend((0..20).filter_map(|_| routes.get(rng.below(routes.len() as u64) as usize)));
        compare(&mut replica, &changed, &mut rng);
    }
    // All of one /16, tops with it.
    let (gone, left): (Vec<_>, Vec<_>) = routes.iter().partition(|(key, _)| key >> 112 == 0x2401);
    let mut reader = older.clone();
    for gone in gone.chunks(100) {
        for route in gone {
            fib.remove(prefix(*route)).unwrap();
        }
        reader = leveled(&mut fib);
        let (noted, before) = (reader.noted().unwrap(), older.noted().unwrap());
        assert!(noted.since(before, |changes| {
            strides.follow(&reader.view(), changes).unwrap();
        }));
        assert_eq!(Some(strides.content()), content(&reader));
        older = reader.clone();
    }
    assert_eq!(left.len(), reader.len());
    replica.follow(reader);
    compare(&mut replica, &gone, &mut rng);
}

#[test]
fn a_copy_that_follows_is_one_made_anew() {
    churned(71, 40, 160, 5);
}

#[test]
fn a_copy_follows_single_changes() {
    churned(72, 3, 400, 200);
}

#[test]
fn so_does_one_with_codes_of_two_octets() {
    churned(74, 40, 160, 3_000);
}

#[test]
fn a_copy_whose_codes_come_to_take_two_octets_is_made_anew() {
    let mut rng = Rng(75);
    let mut fib = Fib::<Ipv6Addr>::new();
    let mut routes = Vec::new();
    for _ in 0..1_500 {
        let route = draw(&mut rng);
        fib.insert(prefix(route), id(rng.below(255))).unwrap();
        routes.push(route);
    }
    let mut replica = FibReplica::new(leveled(&mut fib));
    let mut strides = Strides::of(&replica.reader().view(), fib.len()).unwrap();
    for (route, hop) in routes.iter().zip([254, 255, 256, 0x7ffe, 3]) {
        // In a node whose leaves lead on: those of the last ones take two octets in any case.
        let route = (route.0 & prefix_mask(32), 32);
        let before = replica.reader().clone();
        fib.insert(prefix(route), id(hop)).unwrap();
        replica.follow(leveled(&mut fib));
        let view = replica.reader().view();
        let mut follows = true;
        let whole = replica
            .reader()
            .noted()
            .unwrap()
            .since(before.noted().unwrap(), |changes| {
                follows &= strides.follow(&view, changes).is_some();
            });
        assert!(whole);
        // The code is one more.
        assert_eq!(follows, strides.is_wide() || hop < 255);
        if !follows {
            strides = Strides::of(&view, replica.reader().len()).unwrap();
            assert!(strides.is_wide());
        }
        compare(&mut replica, &routes, &mut rng);
    }
    assert!(strides.is_wide());
}

/// Prefixes of no more than 31 bits, enough for a table that has a copy.
fn short(rng: &mut Rng) -> Vec<(u128, u8)> {
    let routes = (0..2_000).map(|_| {
        let len = 25 + rng.below(7) as u8;
        (
            0x2401_u128 << 112 | u128::from(rng.below(1 << 16)) << 96,
            len,
        )
    });
    routes
        .map(|(key, len)| (key & prefix_mask(len), len))
        .collect()
}

/// Prefixes of /40 in as many /32, all of one line of the hash of these unless that has more than 64 lines.
fn colliding(count: usize) -> Vec<(u128, u8)> {
    let keys = (0x2001_0000_u32..).filter(|key| line_of(*key) >> 6 & 63 == 5);
    keys.take(count)
        .map(|key| (u128::from(key) << 96 | 0x77 << 88, 40))
        .collect()
}

#[test]
fn nodes_that_find_their_line_full_are_found_from_the_root() {
    let mut rng = Rng(76);
    let mut fib = Fib::<Ipv6Addr>::new();
    let crowd = colliding(60);
    let mut routes = crowd.clone();
    routes.extend(short(&mut rng));
    for route in &routes {
        fib.insert(prefix(*route), id(rng.below(9))).unwrap();
    }
    let mut replica = FibReplica::new(leveled(&mut fib));
    let mut strides = Strides::of(&replica.reader().view(), fib.len()).unwrap();
    let (had, lost) = strides.check_middles();
    assert_eq!(had + lost, 60);
    assert!(lost > 40, "{lost}");
    compare(&mut replica, &crowd, &mut rng);
    // One goes, another one gets its place when something is about it.
    for (gone, comes) in crowd.iter().zip(crowd.iter().skip(30)) {
        let before = replica.reader().clone();
        fib.remove(prefix(*gone)).unwrap();
        fib.insert(prefix(*comes), id(7)).unwrap();
        replica.follow(leveled(&mut fib));
        let reader = replica.reader();
        let (noted, before) = (reader.noted().unwrap(), before.noted().unwrap());
        assert!(noted.since(before, |changes| {
            strides.follow(&reader.view(), changes).unwrap();
        }));
        strides.check_middles();
        compare(&mut replica, &crowd, &mut rng);
    }
}

#[test]
fn the_hash_of_nodes_grows_with_them() {
    let mut rng = Rng(77);
    let mut fib = Fib::<Ipv6Addr>::new();
    for route in &short(&mut rng) {
        fib.insert(prefix(*route), id(rng.below(9))).unwrap();
    }
    let mut replica = FibReplica::new(leveled(&mut fib));
    let mut strides = Strides::of(&replica.reader().view(), fib.len()).unwrap();
    assert_eq!(strides.check_middles(), (0, 0));
    for step in 0..60 {
        let before = replica.reader().clone();
        let new: Vec<_> = (0..50)
            .map(|n| (0x2001_u128 << 112 | (50 * step + n) << 96 | 5 << 80, 48))
            .collect();
        for route in &new {
            fib.insert(prefix(*route), id(rng.below(9))).unwrap();
        }
        replica.follow(leveled(&mut fib));
        let reader = replica.reader();
        let (noted, before) = (reader.noted().unwrap(), before.noted().unwrap());
        assert!(noted.since(before, |changes| {
            strides.follow(&reader.view(), changes).unwrap();
        }));
        let (had, lost) = strides.check_middles();
        assert_eq!(had + lost, 50 * (step as usize + 1));
        assert!(lost <= had / 8, "{lost} of {had}");
        compare(&mut replica, &new, &mut rng);
    }
}

#[test]
fn a_copy_of_another_table_or_of_one_long_ago_is_made_anew() {
    let mut rng = Rng(73);
    let mut tables = [Fib::<Ipv6Addr>::new(), Fib::new()];
    let mut routes = Vec::new();
    for fib in &mut tables {
        for _ in 0..1_500 {
            let route = draw(&mut rng);
            fib.insert(prefix(route), id(rng.below(9))).unwrap();
            routes.push(route);
        }
    }
    let [one, other] = &mut tables;
    let mut replica = FibReplica::new(leveled(one));
    let has_copy = replica.octets() > 0;
    assert_eq!(
        has_copy,
        replica.reader().simd_level() == SimdLevel::Avx512Gather
    );
    replica.follow(leveled(other));
    compare(&mut replica, &routes, &mut rng);
    let old = leveled(other);
    // More than are noted.
    for n in 0..20_000 {
        let route = routes[n % routes.len()];
        other.insert(prefix(route), id(rng.below(9))).unwrap();
    }
    let new = leveled(other);
    for reader in [new.clone(), old, new] {
        replica.follow(reader);
        compare(&mut replica, &routes, &mut rng);
    }
    // A table that has windows no more has no copy.
    for route in routes {
        other.remove(prefix(route));
    }
    replica.follow(leveled(other));
    assert_eq!(replica.octets(), 0);
}

#[test]
fn tables_that_would_be_too_large_have_no_copy() {
    let mut fib = Fib::<Ipv6Addr>::new();
    // In so many /13 that their tops alone would take a megabyte.
    for n in 0..2_000_u128 {
        let len = [20, 28, 36, 44, 48][n as usize % 5];
        let key = (n * 0x1357 % 0x10000) << 112 | n << 80;
        fib.insert(Ipv6Addr::join(key & prefix_mask(len), len), id(1))
            .unwrap();
    }
    let reader = leveled(&mut fib);
    assert!(reader.noted().is_some(), "large otherwise");
    assert!(Strides::of(&reader.view(), reader.len()).is_none());
    assert_eq!(FibReplica::new(reader).octets(), 0);
}
