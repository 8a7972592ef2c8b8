//! Single cases, each a claim.

use core::net::{Ipv4Addr, Ipv6Addr};

use super::super::{Fib, NextHopId};
use super::id;

#[test]
fn the_longest_prefix_wins() {
    let mut fib = Fib::<Ipv4Addr>::new();
    fib.insert("10.0.0.0/8".parse().unwrap(), id(1)).unwrap();
    fib.insert("10.1.0.0/16".parse().unwrap(), id(2)).unwrap();
    let reader = fib.reader();
    fib.remove("10.1.0.0/16".parse().unwrap());
    assert_eq!(reader.lookup(Ipv4Addr::new(10, 1, 0, 1)), Some(id(2)));
    assert_eq!(fib.lookup(Ipv4Addr::new(10, 1, 0, 1)), Some(id(1)));
}

#[test]
fn host_bits_are_cleared() {
    let mut fib = Fib::<Ipv4Addr>::new();
    fib.insert("10.1.2.3/16".parse().unwrap(), id(1)).unwrap();
    assert_eq!(fib.exact("10.1.0.0/16".parse().unwrap()), Some(id(1)));
    assert_eq!(fib.lookup(Ipv4Addr::new(10, 1, 255, 255)), Some(id(1)));
}

#[test]
fn a_next_hop_takes_two_octets_and_keeps_its_index() {
    assert_eq!(size_of::<Option<NextHopId>>(), 2);
    assert_eq!(NextHopId::new(0).unwrap().index(), 0);
    assert_eq!(
        NextHopId::new(NextHopId::MAX_INDEX).unwrap().index(),
        0x7ffe
    );
    assert_eq!(NextHopId::new(NextHopId::MAX_INDEX + 1), None);
}

#[test]
fn all_lengths_nested_answer_each_by_its_own() {
    let mut fib = Fib::<Ipv6Addr>::new();
    let address: Ipv6Addr = "2001:db8:5555:aaaa:5555:aaaa:5555:aaaa".parse().unwrap();
    for len in 0..=128 {
        fib.insert(
            ipnet::Ipv6Net::new(address, len).unwrap(),
            id(u64::from(len)),
        )
        .unwrap();
    }
    for len in 0..=128_u32 {
        // The first `len` bits agree, the next does not.
        let flipped = address.to_bits() ^ 1_u128.checked_shl(127 - len.min(127)).unwrap();
        let expected = if len == 128 { 127 } else { len };
        assert_eq!(
            fib.lookup(Ipv6Addr::from_bits(flipped)),
            Some(id(u64::from(expected))),
            "{len}"
        );
    }
    assert_eq!(fib.lookup(address), Some(id(128)));
    assert_eq!(
        fib.covering(
            "2001:db8:5555:aaaa:5555:aaaa:5555:aaaa/128"
                .parse()
                .unwrap()
        )
        .count(),
        129
    );
}

#[test]
fn a_full_table_refuses_and_stays_as_it_was() {
    let mut fib = Fib::<Ipv4Addr>::new();
    fib.insert("10.0.0.0/24".parse().unwrap(), id(1)).unwrap();
    fib.arena.limit_segments(16);
    assert!(fib.insert("10.0.1.0/24".parse().unwrap(), id(2)).is_err());
    assert_eq!(fib.len(), 1);
    assert_eq!(fib.lookup(Ipv4Addr::new(10, 0, 1, 1)), None);
    assert_eq!(fib.lookup(Ipv4Addr::new(10, 0, 0, 1)), Some(id(1)));
}
