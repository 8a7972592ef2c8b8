//! How many packets of its own the engine makes: a token bucket in virtual time.
//!
//! ICMP errors must be limited (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)). The bucket
//! holds up to `burst` messages and gains `per_second` of them; it counts in nanoseconds so that
//! no fraction is lost.

use crate::units::Time;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limiter {
    /// Nanoseconds that one message costs; zero when none may be made.
    cost: u64,
    capacity: u64,
    credit: u64,
    filled_at: Time,
}

impl Limiter {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let cost = NANOS_PER_SECOND
            .checked_div(u64::from(per_second))
            .unwrap_or(0);
        let capacity = cost.saturating_mul(u64::from(burst.max(1)));
        Self {
            cost,
            capacity,
            credit: capacity,
            filled_at: Time::ZERO,
        }
    }

    /// Takes the price of one message and returns whether there was enough.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let gained = now.as_nanos().saturating_sub(self.filled_at.as_nanos());
        self.filled_at = self.filled_at.max(now);
        self.credit = self.credit.saturating_add(gained).min(self.capacity);
        let enough = self.cost > 0 && self.credit >= self.cost;
        if enough {
            self.credit -= self.cost;
        }
        enough
    }
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_the_burst_through_and_then_the_rate() {
        let mut limiter = Limiter::new(100, 10);
        let start = Time::from_nanos(5 * NANOS_PER_SECOND);
        assert_eq!((0..50).filter(|_| limiter.take(start)).count(), 10);
        // One second at 1 kHz lets 100 through, and one that the tenth of a second before earned.
        let passed = (1..=1000)
            .filter(|ms| limiter.take(Time::from_nanos(start.as_nanos() + ms * 1_000_000)))
            .count();
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_clock_that_stands_or_runs_backwards_gains_nothing() {
        let mut limiter = Limiter::new(1000, 1);
        assert!(limiter.take(Time::from_nanos(NANOS_PER_SECOND)));
        assert!(!limiter.take(Time::from_nanos(0)));
        assert!(!limiter.take(Time::from_nanos(NANOS_PER_SECOND)));
        assert!(!Limiter::new(0, 10).take(Time::from_nanos(u64::MAX)));
    }
}
