//! The forwarding table as a state machine: a script of changes and publications against a plain ordered map.
//!
//! The first octet says the family (bit 0: IPv6) and, when its upper half is all ones, that the table starts with so
//! many routes that its root is laid out slot by slot, and in IPv6 of so few lengths that it has a hash; with bit 1 set
//! they are of too many for one, and with bit 2 set they are so many of so many lengths that it has windows. Each step
//! after it is an operation, a prefix length, a next hop and an address; an operation of [`MANY_FROM`] or more is done
//! to [`MANY`] neighbours. Every publication is asked at every instruction level, and must still say the same at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use warren_core::fib::{Address, Fib, FibReader, NextHopId, SimdLevel};

/// Plays a script against the table and the map.
///
/// # Panics
///
/// When the two disagree.
pub fn fib(octets: &[u8]) {
    let Some((flags, script)) = octets.split_first() else {
        return;
    };
    let crowded = flags & 0xf0 == 0xf0;
    let crowd = match (crowded, flags & 1, flags & 2, flags & 4) {
        (false, ..) => Twin::new(),
        (true, 0, ..) => alike::<Ipv4Addr>(false),
        (true, _, mixed, 0) => alike::<Ipv6Addr>(mixed != 0),
        (true, _, _, _) => large(),
    };
    if flags & 1 == 0 {
        play::<Ipv4Addr>(crowd, script);
    } else {
        play::<Ipv6Addr>(crowd, script);
    }
}

type Twin = BTreeMap<(u128, u8), NextHopId>;

/// Routes for a root slot by slot.
fn alike<A: Address>(mixed: bool) -> Twin {
    let mut twin = Twin::new();
    for n in 0..CROWD {
        // /24 and /48 beside each other, across two root slots.
        let len = if A::BITS == 32 { 24 } else { 48 };
        let key = 0x0a07_ff00_u128 << 96;
        let key = (key >> (128 - len) << (128 - len)) + (u128::from(n) << (128 - len));
        twin.insert((key, u8::try_from(len).expect("24 or 48")), hop(n % 5));
    }
    if mixed {
        for len in 60..64 {
            twin.insert((0x0a00_u128 << 112, len), hop(1));
        }
    }
    twin
}

/// Routes for windows: most in one /32, so that there are few to make.
fn large() -> Twin {
    let mut twin = Twin::new();
    let base = 0x0a07_ff00_u128 << 96;
    for n in 0..LARGE {
        twin.insert((base + (u128::from(n) << 80), 48), hop(n % 5));
    }
    for len in 25..48 {
        let key = base >> (128 - u32::from(len)) << (128 - u32::from(len));
        twin.insert((key, len), hop(u16::from(len % 5)));
        let beside = 0x0a07_fe80_u128 << 96;
        twin.insert((beside, len.max(32)), hop(1));
    }
    for n in 0..8 {
        twin.insert((base + (n << 81), 56), hop(2));
    }
    twin
}

fn play<A: Address>(mut twin: Twin, script: &[u8]) {
    let routes = twin
        .iter()
        .map(|((key, len), hop)| (A::join(*key, *len), *hop));
    let mut fib = Fib::<A>::from_routes(routes).expect("a small table fits");
    let mut asked = vec![0, 0x0a07_ff80 << 96, u128::MAX];
    let mut held: Vec<(FibReader<A>, Twin)> = Vec::new();
    for step in script
        .chunks_exact(3 + usize::from(A::BITS / 8))
        .take(STEPS)
    {
        let mut octets = [0; 16];
        octets[..step.len() - 3].copy_from_slice(&step[3..]);
        let len = step[1] % (A::BITS + 1);
        let first = u128::from_be_bytes(octets);
        let count = if step[0] < MANY_FROM { 1 } else { MANY };
        let operation = step[0] % 8;
        if operation == 7 {
            held.push((fib.reader(), twin.clone()));
        }
        for n in 0..count {
            let apart = 1_u128.checked_shl(128 - u32::from(len)).unwrap_or(0);
            let address = first.wrapping_add(apart.wrapping_mul(u128::from(n)));
            let prefix = A::join(address, len);
            let (key, len) = A::split(prefix);
            if n == 0 || n + 1 == count {
                asked.extend([address, key, key.wrapping_sub(1)]);
            }
            match operation {
                0..4 => {
                    let next_hop = hop((u16::from(step[2]) + n) % 4);
                    let old = twin.insert((key, len), next_hop);
                    assert_eq!(fib.insert(prefix, next_hop), Ok(old), "insert {prefix}");
                }
                4..7 => {
                    assert_eq!(
                        fib.remove(prefix),
                        twin.remove(&(key, len)),
                        "remove {prefix}"
                    );
                }
                _ => {}
            }
        }
        assert_eq!(fib.len(), twin.len());
    }
    held.push((fib.reader(), twin));
    let addresses: Vec<A> = asked.iter().map(|key| A::from_key(*key)).collect();
    let last = held.len() - 1;
    for (at, (reader, twin)) in held.iter().enumerate() {
        let lens: BTreeSet<u8> = twin.keys().map(|(_, len)| *len).collect();
        let expected: Vec<Option<NextHopId>> = addresses
            .iter()
            .map(|address| longest(twin, &lens, address.to_key()))
            .collect();
        for level in SimdLevel::ALL {
            let reader = reader.clone().with_simd_level(level);
            let mut answers = vec![None; addresses.len()];
            reader.lookup_batch(&addresses, &mut answers);
            for ((address, answer), expected) in addresses.iter().zip(answers).zip(&expected) {
                assert_eq!(answer, *expected, "{level:?}: {address} in a batch");
                assert_eq!(reader.lookup(*address), *expected, "{level:?}: {address}");
            }
        }
        // All of a large table takes as long as the rest of a script.
        if at < last && twin.len() >= usize::from(LARGE) {
            continue;
        }
        let routes = reader.iter().map(|(prefix, hop)| (A::split(prefix), hop));
        assert!(
            routes.eq(twin.iter().map(|(route, hop)| (*route, *hop))),
            "the routes are the twin's, in order"
        );
    }
}

/// The next hop of the longest prefix, of all of whose lengths `lens` is the list, that holds `key`.
fn longest(twin: &Twin, lens: &BTreeSet<u8>, key: u128) -> Option<NextHopId> {
    lens.iter()
        .rev()
        .find_map(|len| {
            let unused = 128 - u32::from(*len);
            let network = key.checked_shr(unused)?.checked_shl(unused);
            twin.get(&(network.unwrap_or(0), *len)).copied()
        })
        .or_else(|| twin.get(&(0, 0)).copied())
}

fn hop(n: u16) -> NextHopId {
    NextHopId::new(n).expect("a small number")
}

/// Enough routes for a root slot by slot, and below few enough of its slots for flat chunks in IPv4.
const CROWD: u16 = 540;
/// The /48 of a table that has windows.
const LARGE: u16 = 1_024;
/// Operations from this one on are of [`MANY`] neighbours.
const MANY_FROM: u8 = 0xf8;
const MANY: u16 = 64;
/// Steps of one script.
const STEPS: usize = 40;
