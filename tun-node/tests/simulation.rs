//! The control plane against everything that goes wrong, in virtual time.
//!
//! Each seed is a cluster of 5 to 200 nodes over a model of etcd, with partitions, crashes, pauses,
//! clock jumps, lost answers, repeated events, compaction, backups, a wiped store and hostile keys.
//! No two nodes may ever hold one subnet; no route may be withdrawn whose key did not change; and
//! within 2 s of healing every node must route to every other, as a reference decides.
//!
//! A failure prints its seed; the same seed gives the same run, octet for octet:
//!
//! ```text
//! WARREN_SIM_SEED=17 cargo test -p tun-node --test simulation replay -- --ignored --nocapture
//! ```
//!
//! The long run, 100,000 seeds:
//!
//! ```text
//! cargo test --release -p tun-node --test simulation hundred -- --ignored --nocapture
//! ```

#![allow(
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test ends where its own assumption is wrong"
)]

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Numbers, World};

/// How many nodes a seed has: few as a rule.
fn nodes(seed: u64) -> u16 {
    let mut numbers = Numbers(seed ^ 0x5151);
    let nodes = match seed % 500 {
        0 => 200,
        n if n % 50 == 0 => 20 + numbers.below(40),
        _ => 5 + numbers.below(6),
    };
    u16::try_from(nodes).unwrap()
}

fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed, nodes(seed));
    match world.run() {
        Ok(trace) => (trace, world.steps),
        Err(broken) => panic!(
            "seed {seed} ({} nodes): {broken}\nreplay: WARREN_SIM_SEED={seed} cargo test -p \
             tun-node --test simulation replay -- --ignored --nocapture",
            nodes(seed)
        ),
    }
}

fn run_all(seeds: std::ops::Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let steps = AtomicU64::new(0);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    steps.fetch_add(run(seed).1, Ordering::Relaxed);
                    let done = seed + 1 - seeds.start;
                    if done.is_multiple_of(5000) {
                        eprintln!("{done} seeds, {:.0} s", start.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    eprintln!(
        "{} seeds, {} events, {:.1} s",
        seeds.end - seeds.start,
        steps.into_inner(),
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn two_thousand_seeds_break_nothing() {
    run_all(0..2000);
}

/// About twenty minutes on two cores. `WARREN_SIM_FROM` goes on where another run was ended.
#[test]
#[ignore = "long; run it with the command at the head of this file"]
fn hundred_thousand_seeds_break_nothing() {
    let from = std::env::var("WARREN_SIM_FROM").map_or(0, |from| from.parse().unwrap());
    run_all(from..100_000);
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 1..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// One seed with its story told; the head of the file has the command.
#[test]
#[ignore = "a tool for one seed: WARREN_SIM_SEED=17 cargo test -p tun-node --test simulation replay -- --ignored --nocapture"]
fn replay() {
    let seed = std::env::var("WARREN_SIM_SEED").expect("WARREN_SIM_SEED names a seed");
    let seed = seed.parse().expect("WARREN_SIM_SEED is a number");
    let mut world = World::new(seed, nodes(seed));
    world.log = Some(Vec::new());
    let result = world.run();
    for line in world.log.unwrap_or_default() {
        eprintln!("{line}");
    }
    assert!(result.is_ok(), "seed {seed}: {result:?}");
}
