//! Looking for packets a while before sleeping, as long as that finds some.
//!
//! A thread that sleeps is woken by an interrupt, which costs tens of microseconds where the CPU
//! sleeps too. Looking on costs the CPU. So a worker looks on for as long as it would have paid: the
//! time grows to the configured one as soon as a packet comes within that, and halves each time
//! that nothing has come. A worker without packets sleeps.

use std::time::{Duration, Instant};

/// How long a worker looks on.
#[derive(Debug)]
pub(super) struct BusyPoll {
    limit: Duration,
    current: Duration,
    /// When a packet was last there.
    last_busy: Instant,
    /// Whether nothing has come since the worker last gave up.
    sleeps: bool,
    /// When it last began to look without having found anything before, if it did.
    looking: Option<Instant>,
    /// For how long it has looked and found nothing, all in all.
    spent: Duration,
}

impl BusyPoll {
    pub(super) const fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            current: limit,
            last_busy: now,
            sleeps: false,
            looking: None,
            spent: Duration::ZERO,
        }
    }

    /// For how long the worker has looked and found nothing since it began.
    pub(super) const fn spent(&self) -> Duration {
        self.spent
    }

    /// Whether the worker never looks on, and need not ask what time it is.
    pub(super) const fn is_off(&self) -> bool {
        self.limit.is_zero()
    }

    /// Whether to look on rather than sleep, where there is work, or was in the turn before
    /// (`is_busy`), or neither.
    pub(super) fn looks_on(&mut self, is_busy: bool, now: Instant) -> bool {
        if let Some(since) = self.looking.take() {
            self.spent += now.saturating_duration_since(since);
        }
        let waited = now.saturating_duration_since(self.last_busy);
        if is_busy {
            if waited <= self.limit {
                self.current = self.limit;
            }
            self.last_busy = now;
            self.sleeps = false;
            return true;
        }
        if waited < self.current {
            self.looking = Some(now);
            return true;
        }
        if !self.sleeps {
            self.sleeps = true;
            self.current /= 2;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(64);

    #[test]
    fn a_worker_looks_on_as_long_as_packets_come_soon() {
        let mut now = Instant::now();
        let mut poll = BusyPoll::new(LIMIT, now);
        for _ in 0..10 {
            assert!(poll.looks_on(true, now));
            assert!(poll.looks_on(false, now + LIMIT / 2));
            now += LIMIT * 3 / 4;
        }
        assert!(!poll.looks_on(false, now + LIMIT));
    }

    #[test]
    fn one_whose_packets_come_seldom_gives_up_sooner_and_sooner() {
        let mut now = Instant::now();
        let mut poll = BusyPoll::new(LIMIT, now);
        let mut looked = Vec::new();
        for _ in 0..8 {
            assert!(poll.looks_on(true, now));
            let micros = (0..).find(|us| !poll.looks_on(false, now + Duration::from_micros(*us)));
            looked.push(micros.unwrap());
            now += Duration::from_millis(10);
        }
        assert_eq!(looked, [64, 32, 16, 8, 4, 2, 1, 1]);
        // And at once looks on for long when it would have paid.
        assert!(poll.looks_on(true, now));
        assert!(!poll.looks_on(false, now + LIMIT / 4));
        assert!(poll.looks_on(true, now + LIMIT / 2));
        assert!(poll.looks_on(false, now + LIMIT));
    }

    #[test]
    fn only_the_time_without_packets_counts_as_spent() {
        let start = Instant::now();
        let mut poll = BusyPoll::new(LIMIT, start);
        let micros = Duration::from_micros;
        for (at, is_busy) in [
            (0, true),
            (5, false),
            (15, false),
            (20, true),
            (50, false),
            (53, true),
            (90, false),
            // Longer than it may: it sleeps, and that is not looking.
            (200, false),
            (900, true),
        ] {
            poll.looks_on(is_busy, start + micros(at));
        }
        assert_eq!(poll.spent(), micros((20 - 5) + (53 - 50) + (200 - 90)));
    }

    #[test]
    fn one_that_may_not_look_on_sleeps_at_once() {
        let now = Instant::now();
        let mut poll = BusyPoll::new(Duration::ZERO, now);
        assert!(poll.is_off());
        assert!(!poll.looks_on(false, now));
    }
}
