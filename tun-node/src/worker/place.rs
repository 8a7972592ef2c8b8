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

use super::steer::Steering;
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
    /// On these CPUs while it is busy with bulk, and anywhere otherwise; the others take in what answers bulk that
    /// leaves.
    WhileBulk(Vec<usize>),
}

/// What a worker has carried through its device since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    /// From the device.
    pub(super) read: Calls,
    /// To the device.
    pub(super) written: Calls,
}

/// Calls, and what they carried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) octets: u64,
    pub(super) calls: u64,
}

impl Carried {
    /// What was carried since `before`.
    const fn since(self, before: Self) -> Self {
        Self {
            read: self.read.since(before.read),
            written: self.written.since(before.written),
        }
    }

    /// Whether it was bulk.
    const fn is_bulk(self) -> bool {
        let Self { read, written } = self;
        let both = Calls {
            octets: read.octets + written.octets,
            calls: read.calls + written.calls,
        };
        both.is_bulk()
    }

    /// Whether it was bulk that left, and what arrived was not.
    const fn leaves_in_bulk(self) -> bool {
        self.read.is_bulk() && self.written.calls > 0 && !self.written.is_bulk()
    }
}

impl Calls {
    const fn since(self, before: Self) -> Self {
        Self {
            octets: self.octets.saturating_sub(before.octets),
            calls: self.calls.saturating_sub(before.calls),
        }
    }

    const fn is_bulk(self) -> bool {
        self.octets > self.calls.saturating_mul(BULK_OCTETS)
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
    steering: Steering,
}

impl Place {
    /// For the calling thread. `steering` makes what steers packets away from the CPUs of its own to those that it is
    /// given.
    pub(super) fn new(
        placement: Placement,
        number: u32,
        steering: impl FnOnce(&[usize]) -> Steering,
    ) -> Self {
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
        let steering = match &choice {
            Some((own, all)) if only_bulk => {
                let others = all.iter().filter(|cpu| !own.contains(cpu));
                steering(&others.copied().collect::<Vec<_>>())
            }
            Some(_) | None => Steering::off(),
        };
        Self {
            choice,
            only_bulk,
            is_kept: false,
            turns: TURNS,
            since: Instant::now(),
            used: schedule::cpu_time().unwrap_or_default(),
            carried: Carried::default(),
            steering,
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
        let lately = carried.since(self.carried);
        let fits = !self.only_bulk || lately.is_bulk();
        let is_busy = fits && is_busy(self.is_kept, used.saturating_sub(self.used), passed);
        (self.since, self.used, self.carried) = (now, used, carried);
        match is_busy {
            true => self.steering.follow(lately.leaves_in_bulk()),
            false => self.steering.end(),
        }
        if is_busy == self.is_kept {
            return;
        }
        // CPUs may have been taken from the process since; then the scheduler decides from here on.
        match schedule::keep_to(if is_busy { own } else { all }) {
            Ok(()) => self.is_kept = is_busy,
            Err(_) => {
                self.choice = None;
                self.steering = Steering::off();
            }
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

    fn carried(read: (u64, u64), written: (u64, u64)) -> Carried {
        let [read, written] = [read, written].map(|(octets, calls)| Calls { octets, calls });
        Carried { read, written }
    }

    #[test]
    fn bulk_is_what_takes_more_than_8_kib_a_call() {
        let before = carried((1_000_000, 10), (500, 5));
        for (octets, calls, expected) in [
            (62_000, 1, true),
            (8_192, 1, false),
            (8_193, 1, true),
            (6_000, 1, false),
            (620_000, 100, false),
            (0, 0, false),
        ] {
            for (read, written) in [((octets, calls), (0, 0)), ((0, 0), (octets, calls))] {
                let now = carried(
                    (1_000_000 + read.0, 10 + read.1),
                    (500 + written.0, 5 + written.1),
                );
                let is_bulk = now.since(before).is_bulk();
                assert_eq!(is_bulk, expected, "{octets} octets, {calls} calls");
            }
        }
    }

    #[test]
    fn a_stream_leaves_in_bulk_where_small_packets_answer_it() {
        for (read, written, expected) in [
            ((620_000, 10), (400, 8), true),
            ((620_000, 10), (0, 0), false),
            ((400, 8), (620_000, 10), false),
            ((620_000, 10), (620_000, 10), false),
            ((400, 8), (400, 8), false),
        ] {
            let lately = carried(read, written);
            assert_eq!(lately.leaves_in_bulk(), expected, "{lately:?}");
        }
    }

    #[test]
    fn a_busy_thread_is_kept_to_its_cpus_and_an_idle_one_is_let_go() {
        let all = schedule::cpus().unwrap();
        let own = vec![*all.last().unwrap()];
        let thread = std::thread::spawn(move || {
            let mut place = Place::new(Placement::WhileBusy(own.clone()), 0, |_| Steering::off());
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
            let mut place = Place::new(Placement::WhileBulk(own.clone()), 0, |_| Steering::off());
            let end = Instant::now() + Duration::from_secs(60);
            let mut so_far = Carried::default();
            for (octets, is_bulk) in [(6_000, false), (62_000, true), (6_000, false)] {
                // Spinning all the while, so that it is the size that decides; some windows each.
                let (mut windows, mut since) = (0, place.since);
                while (windows < 5 || place.is_kept != is_bulk) && Instant::now() < end {
                    so_far.read.octets += octets;
                    so_far.read.calls += 1;
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
                let mut place = Place::new(placement, 0, |_| Steering::off());
                place.turn(Duration::ZERO, Carried::default);
                assert!(!place.is_kept);
                schedule::cpus().unwrap()
            });
            assert_eq!(thread.join().unwrap(), expected);
        }
    }
}
