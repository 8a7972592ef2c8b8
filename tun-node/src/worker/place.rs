//! Which CPUs a worker runs on.
//!
//! The scheduler puts a thread that is woken where it thinks best: for one packet after the other
//! that is a CPU which is idle, which suits an idle worker. A busy one is better off where it was:
//! while it waits for that CPU its queue grows, and it carries more each time, for less CPU time
//! (measured: `benches/profile.md`). So each direction can have CPUs of its own, but only while it is
//! busy: for single packets, to wait for somebody else who runs there takes longer than to wake an
//! idle CPU.
//!
//! A worker that has both directions gains by it while it carries bulk, and loses a tenth of its packet
//! rate while it does not; so it is kept only while what it reads and writes at its device is large.
//!
//! Busy is who used more than a quarter of a CPU lately, looking for packets (`busy.rs`) apart; who used
//! less than a tenth is not.

use std::time::{Duration, Instant};

use crate::sys::schedule;

/// Where a worker may run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Placement {
    /// Wherever the process may.
    Anywhere,
    /// On this CPU.
    Pinned(usize),
    /// On these CPUs while it is busy, and anywhere otherwise.
    WhileBusy(Vec<usize>),
    /// On these CPUs while it is busy with bulk, and anywhere otherwise.
    WhileBulk(Vec<usize>),
}

/// What a worker has carried since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    /// Octets read from the device and written to it.
    pub(super) octets: u64,
    /// Calls that did it.
    pub(super) calls: u64,
}

impl Carried {
    /// Whether what was carried since `before` was bulk.
    const fn is_bulk_since(self, before: Self) -> bool {
        let calls = self.calls.saturating_sub(before.calls);
        self.octets.saturating_sub(before.octets) > calls.saturating_mul(BULK_OCTETS)
    }
}

/// Where the calling thread, a worker, is kept.
#[derive(Debug)]
pub(super) struct Place {
    /// CPUs of its own, and all; `None` where there is nothing to decide.
    choice: Option<(Vec<usize>, Vec<usize>)>,
    only_bulk: bool,
    is_kept: bool,
    /// Turns until the next look.
    turns: u32,
    /// When it was last decided, and the thread's CPU time then without that of looking for packets.
    since: Instant,
    used: Duration,
    carried: Carried,
}

impl Place {
    /// For the calling thread.
    pub(super) fn new(placement: Placement, number: u32) -> Self {
        let mut choice = None;
        let only_bulk = matches!(placement, Placement::WhileBulk(_));
        match placement {
            Placement::Anywhere => {}
            Placement::Pinned(cpu) => {
                if let Err(error) = schedule::keep_to(&[cpu]) {
                    tracing::warn!("worker {number} is not pinned to CPU {cpu}: {error}");
                }
            }
            Placement::WhileBusy(own) | Placement::WhileBulk(own) => {
                choice = schedule::cpus().ok().map(|all| (own, all));
            }
        }
        Self {
            choice,
            only_bulk,
            is_kept: false,
            turns: TURNS,
            since: Instant::now(),
            used: schedule::cpu_time().unwrap_or_default(),
            carried: Carried::default(),
        }
    }

    /// To be called once a turn; looks at the clock in few of them. `looked` is for how long the worker
    /// has looked for packets and found none, since it began.
    pub(super) fn turn(&mut self, looked: Duration, carried: impl Fn() -> Carried) {
        if self.choice.is_none() {
            return;
        }
        self.turns -= 1;
        if self.turns == 0 {
            self.turns = TURNS;
            self.look(looked, carried(), Instant::now());
        }
    }

    #[cold]
    fn look(&mut self, looked: Duration, carried: Carried, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let (Some((own, all)), Ok(used)) = (&self.choice, schedule::cpu_time()) else {
            return;
        };
        let used = used.saturating_sub(looked);
        let fits = !self.only_bulk || carried.is_bulk_since(self.carried);
        let is_busy = fits && is_busy(self.is_kept, used.saturating_sub(self.used), passed);
        (self.since, self.used, self.carried) = (now, used, carried);
        if is_busy == self.is_kept {
            return;
        }
        // CPUs may have been taken from the process since; then the scheduler decides from here on.
        match schedule::keep_to(if is_busy { own } else { all }) {
            Ok(()) => self.is_kept = is_busy,
            Err(_) => self.choice = None,
        }
    }
}

/// Whether a worker is busy that was so before or was not, and used that much of the time.
fn is_busy(was_busy: bool, used: Duration, passed: Duration) -> bool {
    let least = if was_busy { passed / 10 } else { passed / 4 };
    used > least
}

/// Turns from one look at the clock to the next: some microseconds each at least.
const TURNS: u32 = 16;
/// Octets a call from which on it is bulk: super-packets have up to 64 KiB, small packets that were joined some 6.
const BULK_OCTETS: u64 = 8 * 1024;
/// The shortest time of which it is asked how busy a worker was.
const WINDOW: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_busy_above_a_quarter_and_idle_below_a_tenth() {
        let passed = Duration::from_millis(100);
        for (was_busy, used_ms, expected) in [
            (false, 0, false),
            (false, 20, false),
            (false, 26, true),
            (true, 26, true),
            (true, 20, true),
            (true, 9, false),
        ] {
            let used = Duration::from_millis(used_ms);
            assert_eq!(is_busy(was_busy, used, passed), expected, "{used_ms} ms");
        }
    }

    #[test]
    fn bulk_is_what_takes_more_than_8_kib_a_call() {
        let before = Carried {
            octets: 1_000_000,
            calls: 10,
        };
        for (octets, calls, expected) in [
            (62_000, 1, true),
            (8_192, 1, false),
            (8_193, 1, true),
            (6_000, 1, false),
            (620_000, 100, false),
            (0, 0, false),
        ] {
            let now = Carried {
                octets: before.octets + octets,
                calls: before.calls + calls,
            };
            assert_eq!(
                now.is_bulk_since(before),
                expected,
                "{octets} octets, {calls} calls"
            );
        }
    }

    #[test]
    fn a_busy_thread_is_kept_to_its_cpus_and_an_idle_one_is_let_go() {
        let all = schedule::cpus().unwrap();
        let own = vec![*all.last().unwrap()];
        let thread = std::thread::spawn(move || {
            let mut place = Place::new(Placement::WhileBusy(own.clone()), 0);
            assert_eq!(schedule::cpus().unwrap(), all);
            // Until it is seen: a machine that has no time for this thread may take a while.
            let end = Instant::now() + Duration::from_secs(60);
            while !place.is_kept && Instant::now() < end {
                place.turn(Duration::ZERO, Carried::default);
            }
            assert_eq!(schedule::cpus().unwrap(), own);
            while place.is_kept && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
                place.turn(Duration::ZERO, Carried::default);
            }
            assert_eq!(schedule::cpus().unwrap(), all);
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_busy_thread_that_is_to_carry_bulk_is_kept_only_while_it_does() {
        let all = schedule::cpus().unwrap();
        let own = vec![*all.last().unwrap()];
        let thread = std::thread::spawn(move || {
            let mut place = Place::new(Placement::WhileBulk(own.clone()), 0);
            let end = Instant::now() + Duration::from_secs(60);
            let mut so_far = Carried::default();
            for (octets, is_bulk) in [(6_000, false), (62_000, true), (6_000, false)] {
                // Spinning all the while, so that it is the size that decides; some windows each.
                let (mut windows, mut since) = (0, place.since);
                while (windows < 5 || place.is_kept != is_bulk) && Instant::now() < end {
                    so_far.octets += octets;
                    so_far.calls += 1;
                    place.turn(Duration::ZERO, || so_far);
                    windows += u32::from(place.since != since);
                    since = place.since;
                    if !is_bulk && windows > 1 {
                        assert!(!place.is_kept, "{octets} octets a call");
                    }
                }
                assert_eq!(place.is_kept, is_bulk, "{octets} octets a call");
                let expected = if is_bulk { &own } else { &all };
                assert_eq!(&schedule::cpus().unwrap(), expected);
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_pinned_thread_stays_and_one_that_may_run_anywhere_is_left_alone() {
        let all = schedule::cpus().unwrap();
        let last = *all.last().unwrap();
        for (placement, expected) in [
            (Placement::Pinned(last), vec![last]),
            (Placement::Anywhere, all),
        ] {
            let thread = std::thread::spawn(move || {
                let mut place = Place::new(placement, 0);
                place.turn(Duration::ZERO, Carried::default);
                assert!(!place.is_kept);
                schedule::cpus().unwrap()
            });
            assert_eq!(thread.join().unwrap(), expected);
        }
    }
}
