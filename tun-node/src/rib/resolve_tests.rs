//! The quick way against the walk, and the rules one by one.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers below small limits"
)]

use std::sync::Arc;

use warren_core::units::Vni;

use super::*;
use crate::rib::update::RemoteRoute;

/// A generator of numbers that are the same on every run: splitmix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn order(source: SourceKind, rank: u64, key: u64) -> Order {
    Order {
        remembered: false,
        preference: source as u8,
        rank,
        source,
        key: Arc::from(format!("k{key:03}")),
    }
}

fn offer(prefix: &str, remote: &str, mac: u8) -> Offer {
    let via = Via {
        remote: remote.parse().unwrap(),
        encapsulation: Some(Encapsulation::Vxlan {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            mac: MacAddr::new([2, 0, 0, 0, 0, mac]),
        }),
        underlay_mtu: None,
    };
    let prefix = prefix.parse().unwrap();
    Offer {
        remote: Arc::new(Remote {
            node: Arc::from(remote),
            routes: vec![RemoteRoute { prefix, via }],
        }),
        whose: Whose::Another,
    }
}

fn names(resolver: &Resolver) -> Vec<(String, Option<&'static str>)> {
    let orders = resolver.candidates.keys();
    orders
        .map(|order| {
            let name = match resolver.verdict(order).unwrap() {
                Verdict::Accepted => None,
                Verdict::Rejected { refusal, .. } => Some(refusal.name),
            };
            (order.key.to_string(), name)
        })
        .collect()
}

/// Everything decided again from nothing, the slow way: by comparing each with each.
fn slow(candidates: &BTreeMap<Order, Candidate>) -> BTreeSet<Order> {
    let mut accepted: Vec<(&Order, &Offer)> = Vec::new();
    for (order, candidate) in candidates {
        let clashes = |(other, taken): &(&Order, &Offer)| {
            let (mine, theirs) = (&candidate.offer.remote.routes, &taken.remote.routes);
            mine.iter().any(|a| {
                theirs.iter().any(|b| {
                    let nested = a.prefix.contains(&b.prefix) || b.prefix.contains(&a.prefix);
                    let (whose, theirs) = (candidate.offer.whose, taken.whose);
                    if whose == Whose::Own && theirs == Whose::Feigned {
                        return false;
                    }
                    let (own, their_own) = (whose == Whose::Own, theirs == Whose::Own);
                    let is_feigned = whose == Whose::Feigned && order.source == other.source;
                    let by_address = !(own || their_own) || (their_own && is_feigned);
                    let any_own = own || their_own;
                    // What this host's files say of another node may lie around what is its own.
                    let meant = (order.source.is_local() && !own)
                        || (other.source.is_local() && !their_own);
                    let strict = (any_own && !meant)
                        || (order.source == other.source && order.source.is_exclusive());
                    let one_address = a.via.remote == b.via.remote;
                    let one_mac = a.via.vtep() == b.via.vtep() && a.via.vtep().is_some();
                    a.prefix == b.prefix
                        || (nested && strict)
                        || (by_address && one_address && a.via.encapsulation != b.via.encapsulation)
                        || (by_address && one_mac && !one_address)
                })
            })
        };
        if !accepted.iter().any(clashes) {
            accepted.push((order, &candidate.offer));
        }
    }
    accepted
        .into_iter()
        .filter(|(_, offer)| offer.whose != Whose::Feigned)
        .map(|(order, _)| order.clone())
        .collect()
}

#[test]
fn quick_way_agrees_with_comparing_each_with_each() {
    for seed in 0..60 {
        let mut numbers = Numbers(seed);
        let mut resolver = Resolver::default();
        let mut routes: BTreeMap<IpNet, LiveRoute> = BTreeMap::new();
        let mut keys: Vec<Order> = Vec::new();
        for step in 0..200 {
            for _ in 0..=numbers.below(3) {
                if numbers.below(3) == 0 && !keys.is_empty() {
                    let at = numbers.below(keys.len() as u64) as usize;
                    let order = keys.swap_remove(at);
                    resolver.remove(&order);
                    continue;
                }
                let source = SourceKind::ALL[1 + numbers.below(3) as usize];
                let mut order = order(source, numbers.below(6), numbers.below(40));
                order.remembered = numbers.below(8) == 0;
                if keys.contains(&order) {
                    continue;
                }
                let len = [22, 24, 24, 24, 26][numbers.below(5) as usize];
                let octets = [
                    10,
                    0,
                    numbers.below(10) as u8,
                    (numbers.below(4) * 64) as u8,
                ];
                let net = ipnet::Ipv4Net::new(octets.into(), len).unwrap().trunc();
                let node = numbers.below(12);
                let mac = if numbers.below(10) == 0 {
                    1
                } else {
                    node as u8
                };
                let mut offer = offer(&net.to_string(), &format!("192.0.2.{}", 1 + node), mac);
                offer.whose = match numbers.below(20) {
                    0 => Whose::Own,
                    1 | 2 => Whose::Feigned,
                    _ => Whose::Another,
                };
                resolver.insert(order.clone(), offer);
                keys.push(order);
            }
            for change in resolver.settle() {
                assert_eq!(routes.get(&change.prefix), change.before.as_ref());
                match change.after {
                    Some(after) => routes.insert(change.prefix, after),
                    None => routes.remove(&change.prefix),
                };
            }
            let accepted: BTreeSet<Order> = resolver
                .candidates
                .keys()
                .filter(|order| resolver.is_accepted(order))
                .cloned()
                .collect();
            assert_eq!(
                accepted,
                slow(&resolver.candidates),
                "seed {seed} step {step}"
            );
            let live: Vec<&LiveRoute> = resolver.routes().collect();
            assert_eq!(live, routes.values().collect::<Vec<_>>());
            for source in SourceKind::ALL {
                let count = live
                    .iter()
                    .filter(|r| r.source == source && r.via.is_some());
                assert_eq!(resolver.remote_routes(source), count.count());
            }
        }
    }
}

#[test]
fn first_claim_wins_whatever_comes_first() {
    let cases = [
        ("10.1.0.0/24", "192.0.2.9", 9, "duplicate-prefix"),
        ("10.1.0.0/16", "192.0.2.9", 9, "overlap"),
        ("10.1.0.128/25", "192.0.2.9", 9, "overlap"),
        ("10.2.0.0/24", "192.0.2.1", 9, "duplicate-underlay-address"),
        ("10.2.0.0/24", "192.0.2.9", 1, "duplicate-vtep-mac"),
    ];
    for (prefix, remote, mac, name) in cases {
        let first = (
            order(SourceKind::Etcd, 5, 1),
            offer("10.1.0.0/24", "192.0.2.1", 1),
        );
        let second = (order(SourceKind::Etcd, 6, 2), offer(prefix, remote, mac));
        for turned in [false, true] {
            let mut resolver = Resolver::default();
            let mut both = vec![first.clone(), second.clone()];
            if turned {
                both.reverse();
            }
            for (order, offer) in both {
                resolver.insert(order, offer);
                resolver.settle();
            }
            let expected = [("k001".to_owned(), None), ("k002".to_owned(), Some(name))];
            assert_eq!(names(&resolver), expected);
            // The winner gone, the other is let in.
            resolver.remove(&first.0);
            let changes = resolver.settle();
            assert!(changes.iter().any(|change| change.after.is_some()));
            assert_eq!(names(&resolver), [("k002".to_owned(), None)]);
        }
    }
}

/// Two that lie: one feigns to be this node, one names the same underlay address with the VTEP MAC
/// of a third node. On other nodes the first lie beats the second; here too.
#[test]
fn who_feigns_to_be_this_node_beats_whom_it_beats_elsewhere() {
    let mut feigned = offer("10.3.0.0/24", "192.0.2.7", 1);
    feigned.whose = Whose::Feigned;
    let all = [
        (2, feigned),
        (3, offer("10.4.0.0/24", "192.0.2.7", 8)),
        (4, offer("10.8.0.0/24", "192.0.2.8", 8)),
    ];
    for turned in [false, true] {
        let mut resolver = Resolver::default();
        let mut own = offer("10.1.0.0/24", "192.0.2.1", 1);
        own.whose = Whose::Own;
        let mut entries: Vec<(u64, Offer)> = all.to_vec();
        entries.push((9, own));
        if turned {
            entries.reverse();
        }
        for (rank, offer) in entries {
            resolver.insert(order(SourceKind::Etcd, rank, rank), offer);
            resolver.settle();
        }
        let routes = resolver.routes().map(|route| route.prefix.to_string());
        assert_eq!(routes.collect::<Vec<_>>(), ["10.1.0.0/24", "10.8.0.0/24"]);
        // This node claimed its address first: then the lie loses everywhere, and the next wins.
        let mut own = offer("10.1.0.0/24", "192.0.2.1", 1);
        own.whose = Whose::Own;
        resolver.remove(&order(SourceKind::Etcd, 9, 9));
        resolver.insert(order(SourceKind::Etcd, 1, 1), own);
        resolver.settle();
        let routes = resolver.routes().map(|route| route.prefix.to_string());
        assert_eq!(routes.collect::<Vec<_>>(), ["10.1.0.0/24", "10.4.0.0/24"]);
    }
}

#[test]
fn one_node_may_have_many_subnets_and_both_families() {
    let mut resolver = Resolver::default();
    resolver.insert(
        order(SourceKind::Etcd, 1, 1),
        offer("10.1.0.0/24", "192.0.2.1", 1),
    );
    resolver.insert(
        order(SourceKind::Etcd, 2, 2),
        offer("10.2.0.0/24", "192.0.2.1", 1),
    );
    resolver.insert(
        order(SourceKind::Etcd, 3, 3),
        offer("fc00::/64", "fd99::1", 1),
    );
    assert_eq!(resolver.settle().len(), 3);
}

#[test]
fn preferred_source_shadows_without_a_quarantine() {
    let mut resolver = Resolver::default();
    resolver.insert(
        order(SourceKind::Etcd, 1, 1),
        offer("10.1.0.0/24", "192.0.2.1", 1),
    );
    resolver.insert(
        order(SourceKind::Config, 9, 2),
        offer("10.1.0.0/24", "192.0.2.2", 2),
    );
    // Inside another source's prefix: the longest wins in the data path.
    resolver.insert(
        order(SourceKind::Config, 9, 3),
        offer("10.0.0.0/8", "192.0.2.3", 3),
    );
    resolver.settle();
    let verdict = resolver.verdict(&order(SourceKind::Etcd, 1, 1)).unwrap();
    assert!(matches!(verdict, Verdict::Rejected { shadowed: true, .. }));
    assert_eq!(resolver.routes().count(), 2);
}
