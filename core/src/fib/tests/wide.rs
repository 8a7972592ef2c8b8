//! Ways through IPv6 nodes: every number of skipped octets, right ones and wrong ones, in batches of every length.

use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::super::address::{Address, prefix_mask};
use super::super::table::{MAX_SKIP, skippable};
use super::super::{Fib, SimdLevel};
use super::rng::Rng;
use super::{Twin, check_batch, id};

/// A table with its root slot by slot, and below /24s of their own routes of all lengths from 25 on: first one alone,
/// then, when `paired`, another that leaves it in octet 3 and later.
fn table(paired: bool) -> (Fib<Ipv6Addr>, Twin) {
    let mut fib = Fib::new();
    let mut twin = Twin::default();
    let mut insert = |key: u128, len: u8, n: u64| {
        let key = key & prefix_mask(len);
        let old = twin.insert(key, len, id(n));
        assert_eq!(fib.insert(Ipv6Addr::join(key, len), id(n)), Ok(old));
    };
    for n in 0..600_u64 {
        insert(0x2001 << 112 | u128::from(n) << 80, 48, n);
    }
    for len in 25..=128_u8 {
        let key = alone(len);
        insert(key, len, u64::from(len));
        if paired {
            let octet = 3 + len % 13;
            insert(key ^ 1 << (8 * (15 - octet)), len, 1_000 + u64::from(len));
        }
    }
    (fib, twin)
}

/// The key of a route of `len` bits, the only one in its /24.
fn alone(len: u8) -> u128 {
    (0x0030_0000 | u128::from(len)) << 104 | 0x0011_2233_4455_6677_8899_aabb_ccdd
}

#[test]
fn skipped_octets_are_told_from_others_in_each_place() {
    let skips: Vec<u8> = (25..=128).map(|len| skippable(24, len)).collect();
    assert!((0..=MAX_SKIP).all(|skip| skips.contains(&skip)));
    for paired in [false, true] {
        let (mut fib, twin) = table(paired);
        let reader = fib.reader();
        for len in 25..=128 {
            let mut keys = Vec::from([alone(len)]);
            keys.extend((0..128).map(|bit| alone(len) ^ 1 << bit));
            check_batch(&reader, &twin, &keys);
        }
    }
}

#[test]
fn batches_of_every_length_are_answered_each_in_its_place() {
    let (mut fib, twin) = table(true);
    let reader = fib.reader();
    let mut rng = Rng(9);
    for count in 0..=100 {
        let keys: Vec<u128> = (0..count)
            .map(|_| match rng.below(3) {
                0 => rng.wide(),
                1 => alone(25 + rng.below(104) as u8) ^ 1 << rng.below(100),
                _ => 0x2001 << 112 | u128::from(rng.below(700)) << 80,
            })
            .collect();
        check_batch(&reader, &twin, &keys);
    }
}

#[test]
fn a_walk_ends_at_the_last_octet() {
    // Nodes with one octet each, all the way down.
    let mut fib = Fib::new();
    let key = 0xfd11_1111_1111_1111_1111_1111_1111_1111_u128;
    for n in 0..600_u64 {
        let prefix = Ipv6Addr::join(0x2001 << 112 | u128::from(n) << 80, 48);
        fib.insert(prefix, id(n)).unwrap();
    }
    for len in (24..=128_u8).step_by(8) {
        let prefix = Ipv6Addr::join(key & prefix_mask(len), len);
        fib.insert(prefix, id(u64::from(len))).unwrap();
    }
    let reader = fib.reader();
    for level in SimdLevel::ALL {
        let reader = reader.clone().with_simd_level(level);
        let mut answers = [None; 33];
        reader.lookup_batch(&[Ipv6Addr::from_bits(key); 33], &mut answers);
        assert_eq!(answers, [Some(id(128)); 33]);
        reader.lookup_batch(&[Ipv6Addr::from_bits(key ^ 1); 33], &mut answers);
        assert_eq!(answers, [Some(id(120)); 33]);
    }
}

#[test]
fn a_table_that_was_built_counts_its_long_routes() {
    let long = |n: u16| Ipv6Addr::join(u128::from(n) << 112, 64);
    let routes = (0..20).map(|n| (long(n), id(1)));
    let mut fib = Fib::<Ipv6Addr>::from_routes(routes).unwrap();
    for n in 0..20 {
        assert_eq!(fib.remove(long(n)), Some(id(1)));
    }
    assert!(fib.is_empty());
}
