//! Pushed chunks of IPv4 tables: tables that come to have them, keep them up to date, and lose them again.

extern crate std;

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::super::address::{Address, prefix_mask};
use super::super::pushed::{SHARE, SLOTS};
use super::super::{Fib, FibReader, FibReplica, SimdLevel};
use super::hooks::cells_written;
use super::rng::Rng;
use super::{Twin, check_batch, check_replica, has_line, id};

/// Prefixes of all lengths in many root slots, crowded in some, few of them longer than /24.
fn draw(rng: &mut Rng) -> (u128, u8) {
    let len = match rng.below(64) {
        0..40 => 18 + rng.below(7),
        40..52 => 8 + rng.below(16),
        52..58 => 25 + rng.below(8),
        58 => rng.below(8),
        _ => 14 + rng.below(3),
    };
    // Few distinct bits, so that prefixes nest and neighbour each other.
    let key = rng.wide() & 0xffe7_1f0f_u128 << 96 | u128::from(rng.below(7)) << 108;
    (key & prefix_mask(len as u8), len as u8)
}

/// A table and its twin, changed side by side.
struct Pair {
    fib: Fib<Ipv4Addr>,
    twin: Twin,
    /// Follows what is checked.
    replica: FibReplica<Ipv4Addr>,
    /// One whose addresses come again.
    near: FibReplica<Ipv4Addr>,
}

impl Pair {
    /// An empty table that gets pushed chunks from `least` routes on.
    fn new(least: usize) -> Self {
        let mut fib = Fib::new();
        fib.set_pushed_limits(least, SHARE);
        Self {
            replica: FibReplica::new(fib.reader()),
            near: FibReplica::new(fib.reader()),
            fib,
            twin: Twin::default(),
        }
    }

    /// A table with pushed chunks, of as many routes as they need to be filled meanwhile.
    fn filled(rng: &mut Rng, hops: u64) -> Self {
        let mut pair = Self::new(1);
        while !pair.fib.pushed.is_ready() || pair.twin.routes.len() < 2_500 {
            let hop = rng.below(hops);
            pair.insert(draw(rng), hop);
        }
        pair
    }

    fn insert(&mut self, (key, len): (u128, u8), hop: u64) {
        let old = self.twin.insert(key, len, id(hop));
        assert_eq!(self.fib.insert(Ipv4Addr::join(key, len), id(hop)), Ok(old));
    }

    fn remove(&mut self, (key, len): (u128, u8)) {
        let old = self.twin.remove(key, len);
        assert_eq!(self.fib.remove(Ipv4Addr::join(key, len)), old);
    }

    fn any(&self, rng: &mut Rng) -> (u128, u8) {
        let at = rng.below(self.twin.routes.len() as u64) as usize;
        (self.twin.routes[at].0, self.twin.routes[at].1)
    }

    /// Asks a new snapshot for the edges of some routes, and beside them.
    fn check(&mut self, rng: &mut Rng) {
        let reader = self.fib.reader();
        assert_eq!(reader.has_pushed(), self.fib.pushed.is_ready());
        let mut keys = alloc::vec![rng.wide(), 0, u128::MAX];
        for _ in 0..30 {
            let (key, len) = self.any(rng);
            keys.push(key);
            keys.push(key ^ rng.wide() & !prefix_mask(len));
            keys.push(key | !prefix_mask(len));
            keys.push((key | !prefix_mask(len)).wrapping_add(1));
            keys.push(key.wrapping_sub(1));
        }
        check_batch(&reader, &self.twin, &keys);
        // Three more, so that there is a group of 32, and something besides.
        keys.extend([rng.wide(), rng.wide(), rng.wide()]);
        check_replica(&mut self.replica, &reader, &keys);
        self.near.follow(reader.clone());
        let has_copy = SimdLevel::detect() >= SimdLevel::Avx512 && cfg!(target_arch = "x86_64");
        assert_eq!(self.near.hold_near(), has_copy && reader.has_pushed());
        check_replica(&mut self.near, &reader, &keys);
    }
}

#[test]
fn random_changes_are_followed_slot_by_slot() {
    let mut rng = Rng(51);
    let mut pair = Pair::filled(&mut rng, 200);
    assert!(pair.fib.pushed_agree(rng.below(31) as u32));
    let mut held = Vec::new();
    for step in 0..3_000 {
        if rng.below(2) == 0 {
            let route = pair.any(&mut rng);
            pair.remove(route);
        } else {
            let hop = rng.below(200);
            pair.insert(draw(&mut rng), hop);
        }
        if step % 50 == 0 {
            pair.check(&mut rng);
        }
        if step % 500 == 0 {
            assert!(pair.fib.pushed.is_ready() && pair.fib.pushed_agree(rng.below(31) as u32));
            held.push((pair.fib.reader(), pair.twin.clone()));
        }
    }
    // Old snapshots still say what they said.
    for (reader, twin) in &held {
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 | 1 << 96).collect();
        check_batch(reader, twin, &keys);
    }
}

#[test]
fn a_replica_follows_whatever_snapshot_comes_and_does_not_grow() {
    let mut rng = Rng(60);
    let mut pair = Pair::filled(&mut rng, 200);
    let mut other = Pair::filled(&mut rng, 90);
    let keys: Vec<u128> = (0..200)
        .map(|n| {
            let of = if n % 2 == 0 { &pair } else { &other };
            let (key, len) = of.any(&mut rng);
            key | rng.wide() & !prefix_mask(len)
        })
        .collect();
    let mut replica = FibReplica::new(pair.fib.reader());
    replica.hold_near();
    let mut held = alloc::vec![pair.fib.reader()];
    let octets = replica.octets();
    let flat = SimdLevel::detect() >= SimdLevel::Avx512 && cfg!(target_arch = "x86_64");
    assert_eq!(octets > 0, flat, "{octets}");
    for step in 0..400 {
        for _ in 0..rng.below(40) {
            let hop = rng.below(200);
            let route = draw(&mut rng);
            pair.insert(route, hop);
            other.insert(draw(&mut rng), hop);
            if rng.below(2) == 0 {
                pair.remove(route);
            }
        }
        // The next one, an old one, one of another table, and one that is looked up without vectors.
        let reader = match step % 16 {
            13 => held[rng.below(held.len() as u64) as usize].clone(),
            14 => other.fib.reader(),
            15 => pair.fib.reader().with_simd_level(SimdLevel::Avx2),
            _ => pair.fib.reader(),
        };
        check_replica(&mut replica, &reader, &keys);
        if step % 50 == 0 {
            held.push(reader);
        }
    }
    assert!(replica.octets() < octets + octets / 4 || !flat);
    // All of it again and again, so that regions of leaves of all sizes come and go.
    for round in 0..20_u64 {
        for n in 0..2_000_u128 {
            let len = 24 - (n % 5) as u8 * u8::from(round % 2 == 0);
            let key = (n * 0x9_1b00) << 96 & prefix_mask(len);
            if round % 3 == 2 {
                pair.fib.remove(Ipv4Addr::join(key, len));
            } else {
                pair.fib
                    .insert(Ipv4Addr::join(key, len), id(rng.below(200)))
                    .unwrap();
            }
        }
        check_replica(&mut replica, &pair.fib.reader(), &keys);
    }
    assert!(replica.octets() < octets + octets / 4 || !flat);
}

#[test]
fn a_root_is_the_same_over_whatever_older_one_it_is_made() {
    let mut rng = Rng(59);
    let mut pair = Pair::filled(&mut rng, 200);
    // Held readers make the copy that is written over one of one to six publications before.
    let mut held = alloc::collections::VecDeque::new();
    let mut asked = 0;
    for step in 0..200 {
        for _ in 0..[0, 1, 40, 300][step % 4] {
            let hop = rng.below(200);
            pair.insert(draw(&mut rng), hop);
        }
        if step % 50 == 0 {
            // More slots than are noted: each of these decides 32 at least.
            for n in 0..64 {
                pair.insert((0x0c00_0000 << 96, 8), n);
            }
        }
        let reader = pair.fib.reader();
        let root = reader.pushed_root().unwrap();
        assert!(pair.fib.pushed_is(root), "step {step}");
        if let Some(before) = held.back().and_then(FibReader::pushed_root)
            && cfg!(target_arch = "x86_64")
            && !root.fresh.is_empty()
        {
            for (was, is) in before.words.iter().zip(&root.words) {
                // What is not new is the block of slots without a chunk.
                let known = was == is || before.words.contains(is);
                assert!(known || has_line(&root.fresh, *is), "step {step}");
            }
            asked += 1;
        }
        reader.ask_for_changes();
        held.push_back(reader);
        while held.len() > step / 20 % 7 + 1 {
            held.pop_front();
        }
    }
    assert!(asked > 50 || !cfg!(target_arch = "x86_64"), "{asked}");
}

#[test]
fn routes_of_the_root_are_pushed_and_short_ones_stand_beside() {
    let mut rng = Rng(52);
    let mut pair = Pair::filled(&mut rng, 200);
    for len in (0..=13).chain((0..=13).rev()) {
        let key = 0xa5a8_u128 << 112 & prefix_mask(len);
        pair.insert((key, len), u64::from(len));
        pair.check(&mut rng);
        assert!(pair.fib.pushed_agree(rng.below(31) as u32), "/{len}");
    }
    for len in (0..=13).step_by(2).chain((1..=13).step_by(2)) {
        pair.remove((0xa5a8_u128 << 112 & prefix_mask(len), len));
        pair.check(&mut rng);
        assert!(pair.fib.pushed_agree(rng.below(31) as u32), "/{len}");
    }
}

#[test]
fn a_code_that_needs_two_octets_turns_all_leaves() {
    let mut rng = Rng(53);
    let mut pair = Pair::filled(&mut rng, 254);
    let narrow = pair.fib.pushed.octets();
    // The code is the next hop's number and 1; 255 is the escape.
    pair.insert((0x0a00_0100 << 96, 24), 253);
    assert!(pair.fib.pushed.is_ready(), "254 fits");
    pair.insert((0x0a00_0100 << 96, 24), 254);
    assert!(!pair.fib.pushed.is_ready(), "255 does not");
    let mut changes = 0;
    while !pair.fib.pushed.is_ready() {
        if changes % 100 == 0 {
            pair.check(&mut rng);
        }
        let (route, hop) = (pair.any(&mut rng), rng.below(0x7fff));
        pair.insert(route, hop);
        changes += 1;
    }
    assert!((2_000..6_000).contains(&changes), "{changes} changes");
    pair.check(&mut rng);
    assert!(pair.fib.pushed_agree(rng.below(31) as u32));
    assert!(pair.fib.pushed.octets() > narrow);
    for n in 0..500 {
        let hop = rng.below(0x7fff);
        pair.insert(draw(&mut rng), hop);
        if n % 50 == 0 {
            pair.check(&mut rng);
        }
    }
    assert!(pair.fib.pushed_agree(rng.below(31) as u32));
    // A blank one of two octets, too: a root slot that has nothing but a route of its own.
    pair.insert((0xdf00_u128 << 112, 10), 0x7ffe);
    pair.check(&mut rng);
    assert!(pair.fib.pushed_agree(rng.below(31) as u32));
}

#[test]
fn what_a_short_route_says_is_never_taken_for_the_escape() {
    let mut rng = Rng(58);
    let mut pair = Pair::new(1);
    pair.fib.set_pushed_limits(1, SLOTS);
    // In three chunks, which is too many for flat ones.
    for n in 0..600 {
        pair.insert((0x0a00_0000 << 96 | u128::from(n) << 107, 24), n % 200);
    }
    // The group of 32 /24s has a tail, and nothing else.
    pair.insert((0xc000_0780 << 96, 28), 300);
    let beside: Vec<u128> = (0..64).map(|n| 0xc000_0080 << 96 | n << 103).collect();
    for len in 0..8 {
        // The code of 254 is the escape of leaves of one octet, and no leaf has it.
        pair.insert((0xc000_0000 << 96 & prefix_mask(len), len), 254);
        let reader = pair.fib.reader();
        assert!(reader.has_pushed() && !pair.fib.pushed.is_wide());
        check_batch(&reader, &pair.twin, &beside);
        pair.remove((0xc000_0000 << 96 & prefix_mask(len), len));
    }
    pair.check(&mut rng);
}

#[test]
fn a_table_gains_pushed_chunks_as_it_grows_and_loses_them_as_it_shrinks() {
    let mut rng = Rng(54);
    let mut pair = Pair::new(2_000);
    let mut held = Vec::new();
    let mut readies = 0;
    while pair.twin.routes.len() < 5_000 {
        let hop = rng.below(100);
        pair.insert(draw(&mut rng), hop);
        if pair.twin.routes.len().is_multiple_of(250) {
            pair.check(&mut rng);
            held.push((pair.fib.reader(), pair.twin.clone()));
        }
        readies += usize::from(pair.fib.pushed.is_ready());
    }
    assert!(readies > 0 && pair.fib.pushed.is_ready());
    while pair.twin.routes.len() > 10 {
        let route = pair.any(&mut rng);
        pair.remove(route);
        if pair.twin.routes.len().is_multiple_of(250) {
            pair.check(&mut rng);
        }
    }
    assert!(!pair.fib.pushed.is_ready());
    assert_eq!(pair.fib.pushed.octets(), 0, "all is given back");
    for (reader, twin) in &held {
        let keys: Vec<u128> = twin.routes.iter().map(|route| route.0 | 1).collect();
        check_batch(reader, twin, &keys);
    }
}

#[test]
fn they_come_and_go_in_shares_of_any_size() {
    let mut rng = Rng(57);
    for share in [0, 3_000, SLOTS / 4, usize::MAX] {
        let mut pair = Pair::new(usize::MAX);
        while pair.twin.routes.len() < 600 {
            let hop = rng.below(200);
            pair.insert(draw(&mut rng), hop);
        }
        let shares = SLOTS.div_ceil(share.clamp(1, SLOTS));
        for least in [1, usize::MAX, 1] {
            pair.fib.set_pushed_limits(least, share);
            // One more to begin, and after it one for each share.
            for change in 0..=shares {
                let at_last = change == shares;
                let (route, hop) = (pair.any(&mut rng), rng.below(200));
                pair.insert(route, hop);
                assert_eq!(pair.fib.pushed.is_ready(), at_last && least == 1);
                assert_eq!(pair.fib.pushed.is_on(), !at_last || least == 1);
                if change % 500 == 0 || at_last {
                    pair.check(&mut rng);
                }
            }
            assert!(pair.fib.pushed_agree(rng.below(31) as u32));
        }
    }
}

#[test]
fn a_table_that_is_built_at_once_has_them_from_the_start() {
    let mut rng = Rng(55);
    // More than 65,536 routes: no test hook says so.
    let mut twin = Twin::default();
    for n in 0..70_000_u128 {
        twin.routes.push((n << 104, 24, id(rng.below(250))));
    }
    twin.routes.push((70_000 << 104 | 7 << 96, 32, id(1)));
    let routes = twin.routes.iter().copied();
    let mut fib =
        Fib::<Ipv4Addr>::from_routes(routes.map(|(key, len, hop)| (Ipv4Addr::join(key, len), hop)))
            .unwrap();
    assert!(fib.pushed.is_ready() && fib.pushed_agree(0));
    let memory = fib.memory();
    assert!(memory.lookup_octets < 3 * fib.len() + 200_000, "{memory:?}");
    let reader = fib.reader();
    let keys: Vec<u128> = (0..100)
        .map(|_| rng.wide() >> 15)
        .chain([70_000 << 104 | 7 << 96, 70_000 << 104])
        .collect();
    check_batch(&reader, &twin, &keys);
}

/// The largest block: a leaf of two octets and an entry for each slot.
const MOST_BLOCK: usize = 66 + 512 + 2_048;

#[test]
fn no_change_writes_more_than_the_blocks_of_a_slash_8_and_a_share() {
    let mut rng = Rng(56);
    let mut pair = Pair::new(1);
    // Every /24 of a /8, with other next hops than its neighbours, and a host route below each of some.
    for n in 0..65_536_u128 {
        pair.fib
            .insert(
                Ipv4Addr::join(0x0a00_0000 << 96 | n << 104, 24),
                id(n as u64 % 300),
            )
            .unwrap();
    }
    // So many chunks that none is flat.
    for n in 0..32_u128 {
        pair.insert((0x0b00_0000 << 96 | n << 115, 24), 1);
    }
    while !pair.fib.pushed.is_ready() {
        pair.insert((0x0c00_0000 << 96, 24), 1);
    }
    let (mut most, mut held) = (0, pair.fib.reader());
    for n in 0..200 {
        let len = [8, 9, 13, 24, 32, 7, 0][n % 7];
        let key = 0x0a00_0000 << 96 | rng.wide() >> 8 & prefix_mask(len);
        let prefix = Ipv4Addr::join(key & prefix_mask(len), len);
        most = most.max(cells_written(|| {
            pair.fib.insert(prefix, id(n as u64)).unwrap();
        }));
        drop(core::mem::replace(&mut held, pair.fib.reader()));
    }
    std::eprintln!("most {most} cells in one change");
    assert!(most <= 32 * MOST_BLOCK + 2 * 4_096 + 40_000, "{most}");
}
