//! The forwarding table as a state machine: a script of changes and publications against a plain ordered map.
//!
//! The first octet says the family (bit 0: IPv6) and, when its upper half is all ones, that the table starts with so
//! many routes that its root is laid out slot by slot, and in IPv6 of so few lengths that it has a hash; with bit 1 set
//! they are of too many for one. Each step after it is an operation, a prefix length, a next hop
//! and an address. Every publication is asked at every instruction level, and must still say the same at the end.

use std::collections::BTreeMap;
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
    if flags & 1 == 0 {
        play::<Ipv4Addr>(crowded, false, script);
    } else {
        play::<Ipv6Addr>(crowded, flags & 2 == 2, script);
    }
}

type Twin = BTreeMap<(u128, u8), NextHopId>;

fn play<A: Address>(crowded: bool, mixed: bool, script: &[u8]) {
    let mut twin = Twin::new();
    if crowded {
        for n in 0..CROWD {
            // /24 and /48 beside each other, across two root slots.
            let len = if A::BITS == 32 { 24 } else { 48 };
            let key = 0x0a07_ff00_u128 << 96;
            let key = (key >> (128 - len) << (128 - len)) + (u128::from(n) << (128 - len));
            twin.insert((key, u8::try_from(len).expect("24 or 48")), hop(n % 5));
        }
    }
    if crowded && mixed {
        for len in 60..64 {
            twin.insert((0x0a00_u128 << 112, len), hop(1));
        }
    }
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
        let prefix = A::join(u128::from_be_bytes(octets), len);
        let (key, len) = A::split(prefix);
        asked.extend([u128::from_be_bytes(octets), key, key.wrapping_sub(1)]);
        match step[0] % 8 {
            0..4 => {
                let next_hop = hop(u16::from(step[2] % 4));
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
            _ => held.push((fib.reader(), twin.clone())),
        }
        assert_eq!(fib.len(), twin.len());
    }
    held.push((fib.reader(), twin));
    let addresses: Vec<A> = asked.iter().map(|key| A::from_key(*key)).collect();
    for (reader, twin) in &held {
        for level in SimdLevel::ALL {
            let reader = reader.clone().with_simd_level(level);
            let mut answers = vec![None; addresses.len()];
            reader.lookup_batch(&addresses, &mut answers);
            for (address, answer) in addresses.iter().zip(answers) {
                let expected = longest(twin, address.to_key(), A::BITS);
                assert_eq!(answer, expected, "{level:?}: {address} in a batch");
                assert_eq!(reader.lookup(*address), expected, "{level:?}: {address}");
            }
        }
        let routes = reader.iter().map(|(prefix, hop)| (A::split(prefix), hop));
        assert!(
            routes.eq(twin.iter().map(|(route, hop)| (*route, *hop))),
            "the routes are the twin's, in order"
        );
    }
}

fn longest(twin: &Twin, key: u128, bits: u8) -> Option<NextHopId> {
    (0..=bits)
        .rev()
        .find_map(|len| {
            let unused = 128 - u32::from(len);
            let network = key.checked_shr(unused)?.checked_shl(unused);
            twin.get(&(network.unwrap_or(0), len)).copied()
        })
        .or_else(|| twin.get(&(0, 0)).copied())
}

fn hop(n: u16) -> NextHopId {
    NextHopId::new(n).expect("a small number")
}

/// Enough routes for a root slot by slot, and below few enough of its slots for flat chunks in IPv4.
const CROWD: u16 = 540;
/// Steps of one script.
const STEPS: usize = 40;
