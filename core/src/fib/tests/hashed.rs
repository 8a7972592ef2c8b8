//! The hash of IPv6 tables: tables that come to have it, keep it up to date, and lose it again.

extern crate std;

use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::super::Fib;
use super::super::address::{Address, prefix_mask};
use super::rng::Rng;
use super::{Twin, check_batch, churn, id};

/// An overlay's prefixes: pods' blocks, nodes and moved pods.
fn overlay(rng: &mut Rng) -> (u128, u8) {
    let pod = 0xfd00_0010_0244_0000_u128 << 64 | u128::from(rng.below(2_000)) << 64;
    match rng.below(8) {
        0..4 => (pod, 64),
        4..6 => (
            0xfd00_0010_0001_0000_u128 << 64 | u128::from(rng.below(2_000)),
            128,
        ),
        6 => (pod | u128::from(rng.below(4) * 3), 128),
        _ => (pod | u128::from(rng.below(8)) << 6, 122),
    }
}

#[test]
fn random_changes_agree_with_a_scanned_list_for_routes_of_three_lengths() {
    churn::<Ipv6Addr>(11, 6_000, 700, overlay);
}

#[test]
fn random_changes_agree_with_a_scanned_list_while_lengths_come_and_go() {
    // One in three hundred is of any length, the default route among them.
    churn::<Ipv6Addr>(12, 8_000, 500, |rng| match rng.below(300) {
        0 => (rng.wide(), rng.below(129) as u8),
        1 => (0, 0),
        2 => (0xfd00_0010_0244_0000_u128 << 64, 48),
        _ => overlay(rng),
    });
}
