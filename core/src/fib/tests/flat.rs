//! Flat chunks: tables that come to have them, keep them up to date, and lose them again.

use core::net::Ipv4Addr;

use super::super::flat::Flatness;
use super::super::{Fib, FibReader, SimdLevel};
use super::rng::Rng;
use super::{Twin, check_batch, churn, id};
use crate::fib::address::{Address, prefix_mask};

#[test]
fn random_changes_agree_with_a_scanned_list_for_routes_below_few_root_slots() {
    // 10.0.0.0/12 is two root slots; one route in sixteen ends in the root or lies elsewhere.
    churn::<Ipv4Addr>(5, 4_000, 900, |rng| match rng.below(16) {
        0 => (rng.wide(), rng.below(14) as u8),
        _ => (
            0x0a00_0000_u128 << 96 | rng.wide() >> 12 & 0x0fff_07ff << 96,
            [24, 32, 14 + rng.below(19) as u8][rng.below(3) as usize],
        ),
    });
}

/// A /24 and a host route inside, the `n`th of its kind in root slot `slot`.
fn routes_of(slot: u32, n: u32) -> [(u128, u8); 2] {
    let address = (slot << 19) + ((n % 2_000) << 8) + n % 251;
    let key = u128::from(address) << 96;
    [(key & prefix_mask(24), 24), (key, 32)]
}

fn check(reader: &FibReader<Ipv4Addr>, twin: &Twin, rng: &mut Rng) {
    let mut keys = alloc::vec::Vec::new();
    for _ in 0..70 {
        let (key, len, _) = twin.routes[rng.below(twin.routes.len() as u64) as usize];
        keys.push(key ^ rng.wide() & !prefix_mask(len));
        keys.push(key.wrapping_sub(1 << 96));
        keys.push(rng.wide());
    }
    check_batch(reader, twin, &keys);
}

#[test]
fn a_table_that_spreads_loses_its_flat_chunks_and_one_that_shrinks_together_gains_them() {
    let mut rng = Rng(8);
    let mut fib = Fib::<Ipv4Addr>::new();
    let mut twin = Twin::default();
    let mut held = alloc::vec::Vec::new();
    let mut seen = [false; 3];
    let mut step = |fib: &mut Fib<Ipv4Addr>, twin: &Twin, rng: &mut Rng, n: u32| {
        let memory = fib.memory();
        let a_tail = if fib.flats.wide { 528 } else { 272 };
        assert!(
            fib.flats.octets() <= 150 * fib.len() + a_tail * fib.tails.count,
            "{memory:?} for {} routes",
            fib.len()
        );
        let flatness = fib.flats.flatness();
        seen[flatness as usize] = true;
        if n.is_multiple_of(50) || flatness == Flatness::Some {
            let reader = fib.reader();
            check(&reader, twin, rng);
            if n.is_multiple_of(400) || flatness == Flatness::Some {
                held.push((reader, twin.clone()));
            }
        }
    };
    let insert = |fib: &mut Fib<Ipv4Addr>, twin: &mut Twin, route: (u128, u8), n: u32| {
        let prefix = Ipv4Addr::join(route.0, route.1);
        let old = twin.insert(route.0, route.1, id(u64::from(n)));
        assert_eq!(fib.insert(prefix, id(u64::from(n))), Ok(old));
    };
    for n in 0..1_000 {
        for route in routes_of((0x0a << 5) + n % 3, n) {
            insert(&mut fib, &mut twin, route, n);
        }
        step(&mut fib, &twin, &mut rng, n);
    }
    assert_eq!(fib.flats.flatness(), Flatness::All);
    for n in 0..100 {
        for route in routes_of(7 * n, n) {
            insert(&mut fib, &mut twin, route, n);
        }
        step(&mut fib, &twin, &mut rng, n);
    }
    assert_eq!(fib.flats.flatness(), Flatness::None);
    for n in 0..100 {
        for (key, len) in routes_of(7 * n, n) {
            assert_eq!(fib.remove(Ipv4Addr::join(key, len)), twin.remove(key, len));
        }
        step(&mut fib, &twin, &mut rng, n);
    }
    // Those with many tails come with the publication.
    drop(fib.reader());
    assert_eq!(fib.flats.flatness(), Flatness::All);
    assert_eq!(seen, [true; 3]);
    // Snapshots of all three kinds still say what they said.
    for (reader, twin) in &held {
        check(reader, twin, &mut rng);
    }
    for (key, len, next_hop) in core::mem::take(&mut twin.routes) {
        assert_eq!(fib.remove(Ipv4Addr::join(key, len)), Some(next_hop));
    }
    assert_eq!(fib.flats, Fib::<Ipv4Addr>::new().flats);
    assert_eq!(fib.live, Fib::<Ipv4Addr>::new().live);
}

#[test]
fn an_answer_past_the_addresses_stays_as_it_was() {
    let mut fib = Fib::<Ipv4Addr>::new();
    let mut wide = Fib::<core::net::Ipv6Addr>::new();
    for n in 0..600_u32 {
        let key = u128::from(n) << 111 | 1 << 125;
        fib.insert(Ipv4Addr::join(key, 24), id(1)).unwrap();
        wide.insert(core::net::Ipv6Addr::join(key, 48), id(1))
            .unwrap();
    }
    let (fib, wide) = (fib.reader(), wide.reader());
    for level in SimdLevel::ALL {
        for count in [0, 1, 31, 32, 33, 40] {
            let mut answers = [Some(id(9)); 50];
            let any = [Ipv4Addr::UNSPECIFIED; 40];
            fib.clone()
                .with_simd_level(level)
                .lookup_batch(&any[..count], &mut answers);
            assert!(answers[..count].iter().all(Option::is_none));
            assert!(answers[count..].iter().all(|answer| *answer == Some(id(9))));
            // By its hash, and by its trie.
            for wide in [wide.clone(), wide.clone().by_trie()] {
                let mut answers = [Some(id(9)); 50];
                let any = [core::net::Ipv6Addr::UNSPECIFIED; 40];
                wide.with_simd_level(level)
                    .lookup_batch(&any[..count], &mut answers);
                assert!(answers[..count].iter().all(Option::is_none));
                assert!(answers[count..].iter().all(|answer| *answer == Some(id(9))));
            }
        }
    }
}

/// Every length from 0 to 100, at every level, from several places of the addresses.
fn check_lengths(fib: &mut Fib<Ipv4Addr>, twin: &Twin, rng: &mut Rng) {
    let keys: alloc::vec::Vec<u128> = (0..100)
        .map(|n| {
            let (key, len, _) = twin.routes[rng.below(twin.routes.len() as u64) as usize];
            match n % 4 {
                0 => rng.wide() & prefix_mask(32),
                1 => key.wrapping_sub(1 << 96),
                _ => key | rng.wide() & !prefix_mask(len) & prefix_mask(32),
            }
        })
        .collect();
    let addresses: alloc::vec::Vec<_> = keys.iter().map(|key| Ipv4Addr::from_key(*key)).collect();
    let expected: alloc::vec::Vec<_> = keys
        .iter()
        .map(|key| twin.longest(*key).map(|route| route.2))
        .collect();
    let reader = fib.reader();
    for level in SimdLevel::ALL {
        let reader = reader.clone().with_simd_level(level);
        for count in 0..=100 {
            let first = rng.below(101 - count) as usize;
            let asked = first..first + count as usize;
            let mut answers = [Some(id(7_777)); 100];
            reader.lookup_batch(&addresses[asked.clone()], &mut answers);
            assert_eq!(
                answers[..count as usize],
                expected[asked],
                "{level:?} {count}"
            );
            assert!(
                answers[count as usize..]
                    .iter()
                    .all(|answer| *answer == Some(id(7_777))),
                "{level:?} {count}"
            );
        }
    }
}

#[test]
fn batches_of_every_length_are_right_at_every_level_and_flatness() {
    let mut rng = Rng(21);
    let mut fib = Fib::<Ipv4Addr>::new();
    let mut twin = Twin::default();
    let mut seen = [false; 3];
    // Few routes, then many below three root slots, then some below many; one in four has a shorter route above.
    let counts = [40, 1_500, 1_700, 1_702, 2_600];
    let mut n = 0;
    for count in counts {
        while twin.routes.len() < count {
            let slot = if n < 1_000 { 0x140 + n % 3 } else { 5 * n };
            let [route, host] = routes_of(slot % 8_000, n);
            let above = (route.0 & prefix_mask(11), 11);
            for (key, len) in [Some(route), Some(host), Some(above).filter(|_| n % 4 == 0)]
                .into_iter()
                .flatten()
            {
                let next_hop = id(u64::from(n % 300));
                let old = twin.insert(key, len, next_hop);
                assert_eq!(fib.insert(Ipv4Addr::join(key, len), next_hop), Ok(old));
            }
            let flatness = fib.flats.flatness() as usize;
            if !seen[flatness] {
                seen[flatness] = true;
                check_lengths(&mut fib, &twin, &mut rng);
            }
            n += 1;
        }
        check_lengths(&mut fib, &twin, &mut rng);
    }
    assert_eq!(seen, [true; 3]);
    assert!(fib.arena.segments().len() > 1);
}

#[test]
fn where_addresses_do_not_fit_the_answers_are_the_same() {
    let mut rng = Rng(34);
    // Below three root slots, which are flat, and below many.
    for slots in [3, 1_000] {
        let mut fib = Fib::<Ipv4Addr>::new();
        let mut twin = Twin::default();
        for n in 0..3_000 {
            if n == 2_000 {
                check_lengths(&mut fib, &twin, &mut rng);
                assert!(fib.direct.octets() > 0 || !cfg!(target_arch = "x86_64"));
                fib.direct.turn_off();
                check_lengths(&mut fib, &twin, &mut rng);
            }
            for (key, len) in routes_of(0x140 + n % slots, n) {
                let next_hop = id(u64::from(n % 300));
                let old = twin.insert(key, len, next_hop);
                assert_eq!(fib.insert(Ipv4Addr::join(key, len), next_hop), Ok(old));
            }
            if n % 500 == 499 || n == 2_000 {
                check_lengths(&mut fib, &twin, &mut rng);
            }
        }
        assert_eq!(fib.direct.octets(), 0);
    }
}

#[test]
fn a_root_in_registers_says_what_the_trie_says() {
    let mut rng = Rng(21);
    for (spread, chunks) in [
        (1, 1),
        (1, 8),
        (613, 3),
        (613, 8),
        (1, 17),
        (97, 14),
        (1, 32),
    ] {
        let mut fib = Fib::<Ipv4Addr>::new();
        let mut twin = Twin::default();
        let insert = |fib: &mut Fib<Ipv4Addr>, twin: &mut Twin, key, len, n| {
            twin.insert(key, len, id(n));
            assert!(fib.insert(Ipv4Addr::join(key, len), id(n)).is_ok());
        };
        for n in 0..800 * chunks {
            let slot = 0x140 + n % chunks * spread;
            let [pod, host] = routes_of(slot, n / chunks);
            insert(&mut fib, &mut twin, pod.0, pod.1, u64::from(n));
            if n / chunks % 8 == 0 {
                insert(&mut fib, &mut twin, host.0, host.1, u64::from(n) + 1);
            }
        }
        for step in 0..4 {
            let reader = fib.reader();
            let flatness = fib.flats.flatness();
            assert_eq!(flatness, Flatness::All, "{chunks} chunks, step {step}");
            assert_eq!(reader.has_few(), step < 3, "{chunks} chunks, step {step}");
            check(&reader, &twin, &mut rng);
            match step {
                0 => insert(&mut fib, &mut twin, 0, 0, 77),
                1 => {
                    // A chunk goes.
                    let gone = |key: u128| key >> 115 == 0x140;
                    let routes = twin.routes.clone();
                    for (key, len, _) in routes.iter().filter(|(key, ..)| gone(*key)) {
                        twin.remove(*key, *len);
                        assert!(fib.remove(Ipv4Addr::join(*key, *len)).is_some());
                    }
                    if chunks == 1 {
                        break;
                    }
                }
                // A route of the root that not all slots share.
                _ => insert(&mut fib, &mut twin, 0x0a << 120, 8, 78),
            }
        }
    }
}

/// A table of `pods` /24s below one root slot, each with a host route inside, and what it should say.
fn pods(pods: u32) -> (Fib<Ipv4Addr>, Twin) {
    let (mut fib, mut twin) = (Fib::<Ipv4Addr>::new(), Twin::default());
    for n in 0..pods {
        for (key, len) in routes_of(0x140, n) {
            let next_hop = id(u64::from(n % 250));
            twin.insert(key, len, next_hop);
            assert!(fib.insert(Ipv4Addr::join(key, len), next_hop).is_ok());
        }
    }
    (fib, twin)
}

#[test]
fn leaves_take_two_octets_from_the_first_next_hop_on_that_needs_them() {
    let mut rng = Rng(55);
    let (mut fib, mut twin) = pods(1_000);
    // Two more chunks, so that one is turned after the other.
    for n in 0..200 {
        for (key, len) in routes_of(0x141 + n % 2, n) {
            twin.insert(key, len, id(7));
            assert!(fib.insert(Ipv4Addr::join(key, len), id(7)).is_ok());
        }
    }
    check_lengths(&mut fib, &twin, &mut rng);
    assert_eq!(fib.flats.flatness(), Flatness::All);
    assert!(!fib.flats.wide);
    let narrow = (fib.reader(), twin.clone());
    let octets = fib.flats.octets();
    // 254 is the largest that fits: a code is one more.
    for (large, wide) in [(254, false), (255, true)] {
        let (key, len) = routes_of(0x142, 3)[1];
        let old = twin.insert(key, len, id(large));
        assert_eq!(fib.insert(Ipv4Addr::join(key, len), id(large)), Ok(old));
        assert_eq!(fib.flats.wide, wide);
        let flatness = fib.flats.flatness();
        assert_eq!(flatness == Flatness::All, !wide, "{flatness:?}");
        check_lengths(&mut fib, &twin, &mut rng);
    }
    // The publication found the heavy one waiting, and turned all.
    assert_eq!(fib.flats.flatness(), Flatness::All);
    assert!(fib.flats.octets() > octets + 1_000 * 256);
    check_lengths(&mut fib, &twin, &mut rng);
    check(&narrow.0, &narrow.1, &mut rng);
}

#[test]
fn a_route_above_many_tails_leaves_them_to_the_publication() {
    let mut rng = Rng(89);
    let (mut fib, mut twin) = pods(1_800);
    check_lengths(&mut fib, &twin, &mut rng);
    assert_eq!(fib.flats.flatness(), Flatness::All);
    let (chunk, _) = routes_of(0x140, 0)[0];
    let mut most = [0; 2];
    // /24s have a code of their own; without it, that of the route above is pushed into their tails.
    for n in (0..1_800).step_by(2) {
        let (key, len) = routes_of(0x140, n)[0];
        assert_eq!(fib.remove(Ipv4Addr::join(key, len)), twin.remove(key, len));
    }
    for (n, len) in [(0, 14), (1, 16), (2, 14), (3, 18), (4, 22), (5, 23)] {
        let key = chunk & prefix_mask(len);
        let before = fib.flats.flatness();
        let change = super::hooks::cells_written(|| {
            twin.insert(key, len, id(n));
            assert!(fib.insert(Ipv4Addr::join(key, len), id(n)).is_ok());
        });
        // A /17 has 128 tails at most; what is shorter leaves the flat chunk to the publication.
        assert_eq!(before, Flatness::All);
        let waits = fib.flats.flatness() != Flatness::All;
        assert_eq!(waits, len < 18, "/{len}");
        let publication = super::hooks::cells_written(|| drop(fib.reader()));
        assert_eq!(fib.flats.flatness(), Flatness::All);
        most = [most[0].max(change), most[1].max(publication)];
        check_lengths(&mut fib, &twin, &mut rng);
    }
    extern crate std;
    std::eprintln!(
        "1,800 tails in one chunk: {} cells a change, {} a publication",
        most[0],
        most[1]
    );
    // A copy of the flat chunk, three cells a slot and 128 tails of one octet a leaf; the chunk, its node and those above.
    assert!(most[0] <= 5_700 + 3 * 2_048 + 128 * 34 + 5_000, "{most:?}");
    // The flat chunk and all tails, the root, a segment.
    let flat = 2 * 3_586 + 3 * 2_048 + 1_800 * 34;
    assert!(most[1] <= flat + 8_192 + 17_000, "{most:?}");
}
