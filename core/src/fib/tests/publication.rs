//! The publication step under [shuttle](https://docs.rs/shuttle): the table's own code, with readers and the writer
//! taking turns at the cells that they read and write, in thousands of random orders that repeat by their seed.
//!
//! Shuttle's threads see each other's writes in order. That relaxed loads are enough rests on the two places where
//! snapshots change hands, both of the standard library: whatever lock hands a reader over, and `Arc::get_mut`, which
//! sees what a dropped reader did before its cells are written again.

extern crate std;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::RandomScheduler;
use shuttle::sync::Mutex;
use shuttle::{Config, FailurePersistence, Runner, thread};

use super::super::address::{Address, prefix_mask};
use super::super::{Fib, SimdLevel};
use super::hooks::Interleaved;
use super::id;

/// Prefixes that share nodes: some nested, some side by side, some deep.
fn group<A: Address>() -> Vec<(u128, u8)> {
    let base = 0x20_u128 << 120;
    [
        (0x0000_u128, 16),
        (0x0001, 24),
        (0x0002, 24),
        (0x0003, 24),
        (0x0301, 32),
        (0x0302, 32),
        (0x0303, A::BITS),
        (0x0304, A::BITS),
    ]
    .map(|(low, len): (u128, u8)| {
        let key = base | low << (128 - u32::from(len.min(32)));
        (key & prefix_mask(len), len)
    })
    .to_vec()
}

/// Plays one writer and two readers in `orders` random orders.
///
/// The writer changes all routes of the group from one generation to the next, removing some first, and publishes
/// each generation at once. Readers see all of one generation, never an older one than before.
fn play<A: Address>(orders: usize, every: usize, careless: bool) {
    let scheduler = RandomScheduler::new_from_seed(0x5eed, orders);
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None;
    let _interleaved = Interleaved::new(every, careless);
    Runner::new(scheduler, config).run(|| {
        let group = group::<A>();
        let mut fib = Fib::<A>::new();
        for (key, len) in &group {
            fib.insert(A::join(*key, *len), id(0)).unwrap();
        }
        let published = Arc::new(Mutex::new(fib.reader()));
        let readers: Vec<_> = [SimdLevel::Portable, SimdLevel::detect()]
            .into_iter()
            .map(|level| {
                let (published, group) = (Arc::clone(&published), group.clone());
                thread::spawn(move || {
                    let mut last = 0;
                    for _ in 0..3 {
                        let reader = published.lock().unwrap().clone().with_simd_level(level);
                        let generation = reader.exact(A::join(group[0].0, group[0].1)).unwrap();
                        assert!(generation.index() >= last, "generations go forward");
                        last = generation.index();
                        for (key, len) in &group {
                            let answer =
                                reader.lookup_prefix(A::from_key(*key | !prefix_mask(*len)));
                            assert_eq!(answer.unwrap().1, generation);
                        }
                        let addresses: Vec<A> =
                            group.iter().map(|(key, _)| A::from_key(*key)).collect();
                        let mut answers = [None; 8];
                        reader.lookup_batch(&addresses, &mut answers);
                        assert_eq!(answers, [Some(generation); 8]);
                    }
                })
            })
            .collect();
        for generation in 1..=GENERATIONS {
            for (at, (key, len)) in (0..).zip(&group) {
                if (at + generation) % 3 == 0 {
                    fib.remove(A::join(*key, *len));
                }
            }
            for (key, len) in &group {
                fib.insert(A::join(*key, *len), id(generation)).unwrap();
            }
            *published.lock().unwrap() = fib.reader();
        }
        for reader in readers {
            reader.join().unwrap();
        }
        drop(published);
        fib.reclaim();
        assert_eq!(
            fib.snapshots(),
            0,
            "every snapshot is taken back in the end"
        );
    });
}

#[test]
fn in_any_order_readers_see_whole_generations() {
    for every in [1, 7, 40] {
        play::<Ipv4Addr>(40, every, false);
        play::<Ipv6Addr>(40, every, false);
    }
}

#[test]
fn taking_memory_back_too_early_is_found() {
    let found = catch_unwind(AssertUnwindSafe(|| play::<Ipv6Addr>(400, 7, true)));
    assert!(found.is_err(), "a fault that is there was not found");
}

const GENERATIONS: u64 = 4;
