//! Route sets and address traces, the same in every run.
//!
//! - `full`: a real full table, from the file that `WARREN_ROUTES` names (one prefix a line, plain or gzip), or a
//!   generated one with the published distribution of prefix lengths. 251 next hops by a hash of the prefix.
//! - `cluster`: what an overlay of 5,000 nodes knows: 5,000 pod /24 (IPv6 /64), 5,000 node host routes, 2,000 host
//!   routes of pods that moved.
//! - traces of 2^20 addresses: `uniform` (IPv6 inside 2000::/3), `matched` (a random prefix, random host bits), `zipf`
//!   (262,144 destinations drawn like `matched`, popularity Zipf 1.0).
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "fixtures of known sizes"
)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::{env, fs};

use warren_core::fib::Address;

/// An address family, with what fixtures need of it.
pub trait Family: Address {
    /// The name of the family in results.
    const NAME: &'static str;

    /// Routes of a full table, by length: what /8 to /24 (IPv4) or /19 to /64 (IPv6) have in a full table.
    const LENGTHS: &'static [(u8, u32)];

    /// The key of a random address of the public Internet.
    fn public(rng: &mut Rng) -> u128;

    /// The address with its last bits changed by `bits`.
    fn mixed(self, bits: u16) -> Self;

    /// A cluster's pods, nodes and moved pods as keys and lengths.
    fn cluster(rng: &mut Rng) -> Vec<(u128, u8)>;
}

impl Family for Ipv4Addr {
    const NAME: &'static str = "ipv4";
    const LENGTHS: &'static [(u8, u32)] = &[
        (8, 16),
        (9, 13),
        (10, 39),
        (11, 100),
        (12, 296),
        (13, 586),
        (14, 1_170),
        (15, 2_100),
        (16, 13_490),
        (17, 8_200),
        (18, 13_798),
        (19, 24_870),
        (20, 42_611),
        (21, 50_750),
        (22, 108_623),
        (23, 96_510),
        (24, 537_698),
        (32, 886),
    ];

    fn public(rng: &mut Rng) -> u128 {
        u128::from(rng.next() >> 32) << 96
    }

    #[inline]
    fn mixed(self, bits: u16) -> Self {
        Self::from_bits(self.to_bits() ^ u32::from(bits))
    }

    fn cluster(rng: &mut Rng) -> Vec<(u128, u8)> {
        let pods: Vec<u128> = (0..5_000)
            .map(|n: u128| (0x0a00_0000 + (n << 8)) << 96)
            .collect();
        let nodes = (0..5_000).map(|n: u128| ((0xc0a8_0000 + n + 10) << 96, 32));
        let moved = (0..2_000).map(|_| {
            (
                pods[rng.below(5_000)] | u128::from(rng.next() & 0xff) << 96,
                32,
            )
        });
        let moved: Vec<_> = moved.collect();
        pods.iter()
            .map(|pod| (*pod, 24))
            .chain(nodes)
            .chain(moved)
            .collect()
    }
}

impl Family for Ipv6Addr {
    const NAME: &'static str = "ipv6";
    const LENGTHS: &'static [(u8, u32)] = &[
        (19, 10),
        (20, 40),
        (22, 30),
        (24, 60),
        (26, 40),
        (28, 300),
        (29, 4_371),
        (30, 1_000),
        (31, 400),
        (32, 22_548),
        (33, 2_500),
        (34, 2_200),
        (35, 1_000),
        (36, 5_996),
        (38, 1_800),
        (40, 13_418),
        (42, 2_500),
        (44, 14_365),
        (45, 900),
        (46, 4_500),
        (47, 2_600),
        (48, 75_488),
        (56, 1_400),
        (64, 400),
    ];

    fn public(rng: &mut Rng) -> u128 {
        let high = rng.next() >> 3 | 1 << 61;
        u128::from(high) << 64 | u128::from(rng.next())
    }

    #[inline]
    fn mixed(self, bits: u16) -> Self {
        // Both halves: a table that reads only the first would not wait for the second.
        let bits = u128::from(bits);
        Self::from_bits(self.to_bits() ^ (bits | bits << 64))
    }

    fn cluster(rng: &mut Rng) -> Vec<(u128, u8)> {
        let pods: Vec<u128> = (0..5_000)
            .map(|n: u128| 0xfd00_0010_0244_0000_u128 << 64 | n << 64)
            .collect();
        let nodes = (0..5_000).map(|n: u128| (0xfd00_0010_0001_0000_u128 << 64 | (n + 10), 128));
        let moved: Vec<_> = (0..2_000)
            .map(|_| (pods[rng.below(5_000)] | u128::from(rng.next()), 128))
            .collect();
        pods.iter()
            .map(|pod| (*pod, 64))
            .chain(nodes)
            .chain(moved)
            .collect()
    }
}

/// The routes of the full table: real when `WARREN_ROUTES` names a file.
///
/// # Panics
///
/// When the file cannot be read.
#[must_use]
pub fn full<A: Family>() -> Vec<(A::Prefix, u16)>
where
    A::Prefix: std::str::FromStr,
{
    let Ok(path) = env::var("WARREN_ROUTES") else {
        return generated::<A>(1.0);
    };
    let text = if path.ends_with(".gz") {
        let output = Command::new("gzip")
            .args(["-dc", &path])
            .output()
            .expect("gzip is installed");
        assert!(
            output.status.success(),
            "gzip -dc {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    } else {
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    text.lines()
        .filter_map(|line| line.trim().parse::<A::Prefix>().ok())
        .map(with_next_hop::<A>)
        .collect()
}

/// Whether [`full`] is the real table.
#[must_use]
pub fn full_is_real() -> bool {
    env::var_os("WARREN_ROUTES").is_some()
}

/// A table with the published distribution of prefix lengths, `scale` times the full size.
#[must_use]
pub fn generated<A: Family>(scale: f64) -> Vec<(A::Prefix, u16)> {
    let mut rng = Rng(0x5eed);
    let mut set = BTreeSet::new();
    // Real tables are crowded: most prefixes lie beside others. Half of the prefixes are drawn near the last.
    let mut near = A::public(&mut rng);
    for (len, count) in A::LENGTHS {
        let wanted = (f64::from(*count) * scale).ceil() as usize;
        let before = set.len();
        let mut tries = 0;
        while set.len() < before + wanted && tries < 20 * wanted {
            tries += 1;
            let unused = 128 - u32::from(*len);
            near = if rng.below(4) == 0 {
                A::public(&mut rng)
            } else {
                near.wrapping_add(1 << unused)
            };
            set.insert((near >> unused << unused, *len));
        }
    }
    set.into_iter()
        .map(|(key, len)| with_next_hop::<A>(A::join(key, len)))
        .collect()
}

/// The routes of a cluster of 5,000 nodes.
#[must_use]
pub fn cluster<A: Family>() -> Vec<(A::Prefix, u16)> {
    let mut rng = Rng(0xc1);
    let set: BTreeSet<_> = A::cluster(&mut rng).into_iter().collect();
    set.into_iter()
        .map(|(key, len)| with_next_hop::<A>(A::join(key, len)))
        .collect()
}

/// 2^20 addresses from all over the family's public space.
#[must_use]
pub fn uniform<A: Family>() -> Vec<A> {
    let mut rng = Rng(1);
    (0..TRACE)
        .map(|_| A::from_key(A::public(&mut rng)))
        .collect()
}

/// 2^20 addresses, each in a random prefix of `routes`.
#[must_use]
pub fn matched<A: Family>(routes: &[(A::Prefix, u16)]) -> Vec<A> {
    let mut rng = Rng(2);
    (0..TRACE).map(|_| in_a_route(routes, &mut rng)).collect()
}

/// 2^20 addresses of 262,144 destinations like [`matched`]'s, their popularity Zipf 1.0.
#[must_use]
pub fn zipf<A: Family>(routes: &[(A::Prefix, u16)]) -> Vec<A> {
    let mut rng = Rng(3);
    let destinations: Vec<A> = (0..1 << 18).map(|_| in_a_route(routes, &mut rng)).collect();
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=destinations.len())
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    (0..TRACE)
        .map(|_| {
            let draw = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
            destinations[cumulative
                .partition_point(|edge| *edge < draw)
                .min(destinations.len() - 1)]
        })
        .collect()
}

/// The next hop that fixtures give a prefix: one of 251, without locality.
#[must_use]
pub fn with_next_hop<A: Family>(prefix: A::Prefix) -> (A::Prefix, u16) {
    (prefix, next_hop::<A>(prefix, 251))
}

/// Gives all routes next hops anew: one of `count`, which is not zero, without locality.
pub fn spread_next_hops<A: Family>(routes: &mut [(A::Prefix, u16)], count: u16) {
    for (prefix, hop) in routes {
        *hop = next_hop::<A>(*prefix, count);
    }
}

fn next_hop<A: Family>(prefix: A::Prefix, count: u16) -> u16 {
    let (key, len) = A::split(prefix);
    let mut rng = Rng((key >> 64) as u64 ^ key as u64 ^ (u64::from(len) << 56));
    (rng.next() % u64::from(count)) as u16
}

fn in_a_route<A: Family>(routes: &[(A::Prefix, u16)], rng: &mut Rng) -> A {
    let (key, len) = A::split(routes[rng.below(routes.len())].0);
    let host = (u128::from(rng.next()) << 64 | u128::from(rng.next()))
        .checked_shr(u32::from(len))
        .unwrap_or(0);
    A::from_key(key | host)
}

/// Addresses in a trace.
pub const TRACE: usize = 1 << 20;

/// A seeded generator (splitmix64).
#[derive(Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
