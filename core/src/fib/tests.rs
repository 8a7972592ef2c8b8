//! Tests of the table against slow twins.

use core::net::Ipv4Addr;

use super::{Fib, NextHopId};

#[test]
fn the_longest_prefix_wins() {
    let id = |n| NextHopId::new(n).unwrap();
    let mut fib = Fib::<Ipv4Addr>::new();
    fib.insert("10.0.0.0/8".parse().unwrap(), id(1)).unwrap();
    fib.insert("10.1.0.0/16".parse().unwrap(), id(2)).unwrap();
    let reader = fib.reader();
    fib.remove("10.1.0.0/16".parse().unwrap());
    assert_eq!(reader.lookup(Ipv4Addr::new(10, 1, 0, 1)), Some(id(2)));
    assert_eq!(fib.lookup(Ipv4Addr::new(10, 1, 0, 1)), Some(id(1)));
}
