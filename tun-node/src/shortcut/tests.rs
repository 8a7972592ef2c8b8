//! Tests of what needs no second node; the short way itself is tested against kernels in
//! `tests/shortcut.rs`.

use std::net::{Ipv4Addr, Ipv6Addr};

use warren_core::packet::FlowKey;

use super::layout::Key;
use super::*;

#[test]
fn the_key_of_a_flow_is_what_its_packets_have() {
    let flow = FlowKey {
        source: Ipv4Addr::new(10, 0, 0, 1).into(),
        destination: Ipv4Addr::new(10, 0, 0, 2).into(),
        protocol: 6,
        source_port: 0x1234,
        destination_port: 0x5678,
    };
    let key = Key::of(&flow);
    assert_eq!(key.source[..5], [10, 0, 0, 1, 0]);
    assert_eq!(key.destination[..5], [10, 0, 0, 2, 0]);
    assert_eq!(key.ports, [0x12, 0x34, 0x56, 0x78]);
    assert_eq!((key.protocol, key.version), (6, 4));
    let flow = FlowKey {
        source: Ipv6Addr::LOCALHOST.into(),
        destination: Ipv6Addr::UNSPECIFIED.into(),
        ..flow
    };
    assert_eq!(Key::of(&flow).source[15], 1);
    assert_eq!(Key::of(&flow).version, 6);
}

#[test]
fn without_the_capabilities_the_error_says_what_is_missing() {
    let outcome = std::thread::spawn(|| {
        if nix::unistd::geteuid().is_root() {
            crate::testing::become_nobody_on_this_thread();
        }
        SharedNumbers::new(NonZeroUsize::MIN)
    });
    let Err(error) = outcome.join().unwrap() else {
        eprintln!("skipped: whoever runs this may make maps");
        return;
    };
    let error = failed("map of numbers")(error).to_string();
    assert!(
        error.ends_with("(give the node CAP_BPF and CAP_NET_ADMIN)"),
        "{error}"
    );
}

#[test]
fn a_generation_is_shown_only_while_it_is_on_and_is_never_zero() {
    let Ok(numbers) = SharedNumbers::new(NonZeroUsize::MIN) else {
        eprintln!("skipped: maps need CAP_BPF");
        return;
    };
    let numbers = Arc::new(numbers);
    let shown = || numbers.numbers()[global::GENERATION].load(Ordering::Relaxed);
    let generation = Generation::new(Arc::clone(&numbers), Epoch(0));
    assert_eq!(shown(), 0);
    generation.turn(true);
    assert_eq!(shown(), 1);
    generation.publish(Epoch(7));
    assert_eq!(shown(), 8);
    generation.turn(false);
    generation.publish(Epoch(8));
    assert_eq!(shown(), 0);
    generation.turn(true);
    assert_eq!(shown(), 9);
}
