//! The forwarding table as a state machine: a script of changes and publications against a plain ordered map.
//!
//! The first octet says the family (bit 0: IPv6) and, when its upper half is all ones, that the table starts with so
//! many routes that its root is laid out slot by slot, and in IPv6 of so few lengths that it has a hash; with bit 1 set
//! they are of too many for one, and with bit 2 set they are so many of so many lengths that it has windows. In IPv4
//! they are for flat chunks, with bit 3 set so many that workers have a copy of their own; with bit 1 set they are below too many root slots for those, and the table is told that it
//! is large enough for pushed chunks. With bit 2 set next hops come from both sides of the largest that fits a leaf of
//! one octet. With bits 1 and 3 set so many of the routes are longer than /24 that with few of the others less their
//! tails are too many to be spread.
//!
//! Each step after it is an operation, a prefix length, a next hop and an address; an operation of [`MANY_FROM`] or
//! more is done to [`MANY`] neighbours. The next hop of a publication says whether a table that began with pushed
//! chunks is large enough for them from then on ([`limit`]), so that they go and come again within a few changes.
//!
//! What must hold: every change gives back what the map gives back; every publication says what the map says, asked
//! address by address and in a batch at every instruction level, whatever it has beside its trie and whichever part of
//! that has been filled, given up or widened before; it still says so at the end, when all changes have been made; and
//! its routes are the map's, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use warren_core::fib::{Address, Fib, FibReader, FibReplica, NextHopId, SimdLevel};

/// Plays a script against the table and the map.
///
/// # Panics
///
/// When the two disagree.
pub fn fib(octets: &[u8]) {
    let Some((flags, script)) = octets.split_first() else {
        return;
    };
    if flags & 1 == 0 {
        play::<Ipv4Addr>(&Start::v4(*flags), script).check();
    } else {
        play::<Ipv6Addr>(&Start::v6(*flags), script).check();
    }
}

type Twin = BTreeMap<(u128, u8), NextHopId>;

/// What a script begins with.
#[derive(Default)]
struct Start {
    crowd: Twin,
    /// Whether the table has pushed chunks.
    pushed: bool,
    /// Whether next hops of the script may need more than an octet.
    wide: bool,
}

impl Start {
    fn v4(flags: u8) -> Self {
        if flags & CROWDED != CROWDED {
            return Self::default();
        }
        let pushed = flags & 2 != 0;
        Self {
            crowd: match (pushed, flags & 8) {
                (false, 0) => alike::<Ipv4Addr>(CROWD, false),
                (false, _) => alike::<Ipv4Addr>(LARGE + CROWD, false),
                (true, 0) => spread(FEW_TAILS),
                (true, _) => spread(MANY_TAILS),
            },
            pushed,
            wide: flags & 4 != 0,
        }
    }

    fn v6(flags: u8) -> Self {
        let crowd = match (flags & CROWDED == CROWDED, flags & 2, flags & 4) {
            (false, ..) => Twin::new(),
            (true, mixed, 0) => alike::<Ipv6Addr>(CROWD, mixed != 0),
            (true, _, _) => large(),
        };
        Self {
            crowd,
            ..Self::default()
        }
    }

    /// The next hop number `n` of a change.
    fn hop(&self, n: u16) -> NextHopId {
        if self.wide {
            hop(WIDE_HOPS[usize::from(n) % WIDE_HOPS.len()])
        } else {
            hop(n % 4)
        }
    }
}

/// Routes for a root slot by slot.
fn alike<A: Address>(routes: u16, mixed: bool) -> Twin {
    let mut twin = Twin::new();
    for n in 0..routes {
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

/// Routes for pushed chunks: in four chunks, of too few routes each for flat ones, with `tails` third-level nodes.
fn spread(tails: u16) -> Twin {
    let mut twin = Twin::new();
    let place = |n: u16| (CHUNKS[usize::from(n) % CHUNKS.len()] + (u128::from(n / 4) << 8)) << 96;
    for n in 0..4 {
        for len in [8, 11, 13, 14, 18, 22] {
            let key = place(n) >> (128 - len) << (128 - len);
            twin.insert((key, len), hop(u16::from(len) % 5));
        }
    }
    for n in 0..tails {
        // From the last /24 of 128 on downwards, so that some are below a /24 and some beside them.
        let len = if n / 4 % 2 == 0 { 26 } else { 32 };
        twin.insert((place(4 * 127 - n) + (0x40 << 96), len), hop(n % 5));
    }
    for n in 0..CROWD - u16::try_from(twin.len()).expect("a small crowd") {
        twin.insert((place(n), 24), hop((n + n / 4) % 5));
    }
    twin
}

/// What a script has left behind.
struct Played<A> {
    /// Every snapshot, and what it is to say.
    held: Vec<(FibReader<A>, Twin)>,
    /// The addresses that are asked for.
    asked: Vec<u128>,
}

fn play<A: Address>(start: &Start, script: &[u8]) -> Played<A> {
    let mut twin = start.crowd.clone();
    let routes = twin
        .iter()
        .map(|((key, len), hop)| (A::join(*key, *len), *hop));
    let mut fib = Fib::<A>::from_routes(routes).expect("a small table fits");
    let mut asked = vec![0, 0x0a07_ff80 << 96, u128::MAX];
    let mut held: Vec<(FibReader<A>, Twin)> = Vec::new();
    if start.pushed {
        fill_pushed(&mut fib, &twin);
        asked.extend(twin.keys().step_by(23).map(|(key, _)| key | 0x40 << 96));
        held.push((fib.reader(), twin.clone()));
        assert!(held[0].0.has_pushed(), "the crowd is one for pushed chunks");
    }
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
            if let Some(least) = limit(step[2]).filter(|_| start.pushed) {
                fib.set_pushed_limits(least, SHARE);
            }
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
                    let next_hop = start.hop(u16::from(step[2]) + n);
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
    Played { held, asked }
}

/// Lets a table of `twin`'s routes have pushed chunks, and fills them by changes that change nothing.
fn fill_pushed<A: Address>(fib: &mut Fib<A>, twin: &Twin) {
    fib.set_pushed_limits(LEAST, SHARE);
    let ((key, len), hop) = twin.first_key_value().expect("a crowd");
    // One to begin, and one for each share.
    for _ in 0..=ROOT_SLOTS / SHARE {
        let old = fib.insert(A::join(*key, *len), *hop);
        assert_eq!(old, Ok(Some(*hop)));
    }
}

/// From how many routes on a table has pushed chunks after a publication of next hop `n`, if that says so.
fn limit(n: u8) -> Option<usize> {
    match n % 4 {
        1 => Some(usize::MAX),
        2 => Some(LEAST),
        _ => None,
    }
}

impl<A: Address> Played<A> {
    /// Asks every snapshot.
    fn check(&self) {
        let addresses: Vec<A> = self.asked.iter().map(|key| A::from_key(*key)).collect();
        let last = self.held.len() - 1;
        let mut replica: Option<FibReplica<A>> = None;
        for (at, (reader, twin)) in self.held.iter().enumerate() {
            let lens: BTreeSet<u8> = twin.keys().map(|(_, len)| *len).collect();
            let expected: Vec<Option<NextHopId>> = addresses
                .iter()
                .map(|address| longest(twin, &lens, address.to_key()))
                .collect();
            // To make one takes as long as the rest of a script: one in four has one, which follows once.
            if self.held.len() % 4 == 2 && at + 2 > last {
                // The level that has copies of tables of both families.
                let reader = reader.clone().with_simd_level(SimdLevel::Avx512Gather);
                match &mut replica {
                    Some(replica) => replica.follow(reader),
                    none => *none = Some(FibReplica::new(reader)),
                }
            }
            if let Some(replica) = &mut replica {
                let mut answers = vec![None; addresses.len()];
                replica.lookup_batch(&addresses, &mut answers);
                assert_eq!(answers, expected, "{addresses:?} by a replica");
            }
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

/// The upper half of the first octet of a script that starts with many routes.
const CROWDED: u8 = 0xf0;
/// Enough routes for a root slot by slot, and below few enough of its slots for flat chunks in IPv4.
const CROWD: u16 = 540;
/// Where the chunks of a crowd for pushed chunks are, one in each share of the root's slots. With 1,024 routes they are
/// few enough for flat ones.
const CHUNKS: [u128; 4] = [0x0a07_0000, 0x4a00_0000, 0xac10_0000, 0xc0a8_0000];
/// From how many routes on its table has pushed chunks; with half as many it gives them up.
const LEAST: usize = 512;
const ROOT_SLOTS: usize = 8_192;
/// Root slots that a change fills or gives up: so many that a short script goes through all of it.
const SHARE: usize = ROOT_SLOTS / 4;
/// Third-level nodes of a crowd for pushed chunks: of spread ones a table has no more than one for two routes.
const FEW_TAILS: u16 = 24;
const MANY_TAILS: u16 = 268;
/// Next hops on both sides of 253, the largest that a leaf of one octet can say.
const WIDE_HOPS: [u16; 8] = [0, 1, 252, 253, 254, 255, 1_000, NextHopId::MAX_INDEX];
/// The /48 of a table that has windows, and the /24 from which on one of flat chunks has copies.
const LARGE: u16 = 1_024;
/// Operations from this one on are of [`MANY`] neighbours.
const MANY_FROM: u8 = 0xf8;
const MANY: u16 = 64;
/// Steps of one script.
const STEPS: usize = 40;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Whether lookups go by pushed chunks in each snapshot of a seed.
    fn pushed(seed: &str) -> Vec<bool> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/fib");
        let octets = fs::read(folder.join(seed)).unwrap();
        let (flags, script) = octets.split_first().unwrap();
        let played = play::<Ipv4Addr>(&Start::v4(*flags), script);
        let held = played.held.iter();
        held.map(|(reader, _)| reader.has_pushed()).collect()
    }

    #[test]
    fn a_seed_has_a_copy_of_flat_chunks_that_follows() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/fib");
        let octets = fs::read(folder.join("v4-copied")).unwrap();
        let (flags, script) = octets.split_first().unwrap();
        let played = play::<Ipv4Addr>(&Start::v4(*flags), script);
        assert_eq!(played.held.len(), 2);
        for (reader, _) in &played.held {
            let reader = reader.clone().with_simd_level(SimdLevel::Avx512Gather);
            let has_copies = reader.simd_level() == SimdLevel::Avx512Gather;
            assert_eq!(FibReplica::new(reader).octets() > 0, has_copies);
        }
    }

    #[test]
    fn the_seeds_have_pushed_chunks_gain_them_and_lose_them() {
        assert_eq!(pushed("v4-pushed"), [true; 6]);
        assert_eq!(pushed("v4-pushed-tails"), [true; 6]);
        assert_eq!(
            pushed("v4-pushed-to-and-fro"),
            [true, true, false, false, true, true, false, false]
        );
        assert_eq!(
            pushed("v4-pushed-two-octets"),
            [true, true, false, true, true, true, true]
        );
        assert_eq!(
            pushed("v4-pushed-or-flat"),
            [true, true, false, false, true]
        );
        assert_eq!(pushed("v4-crowded"), [false; 2]);
    }
}
