//! How many packets of its own the engine makes: token buckets in virtual time.
//!
//! ICMP errors must be limited (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)). A bucket
//! holds up to `burst` messages and gains `per_second` of them; it counts in nanoseconds so that
//! no fraction is lost.
//!
//! There is one bucket for all, and one for each of a few groups of senders, which holds and gains
//! half as much: a sender that never listens to "too big" cannot use up what others need to learn
//! their path MTU. A sender's group follows from its address and the seed.

use core::net::IpAddr;

use crate::units::Time;

/// The buckets of an engine.
#[derive(Clone, Debug)]
pub(super) struct Limiters {
    all: Limiter,
    groups: [Limiter; GROUPS],
    seed: u64,
}

impl Limiters {
    pub(super) fn new(per_second: u32, burst: u32, seed: u64) -> Self {
        let half = |n: u32| n.div_ceil(2);
        Self {
            all: Limiter::new(per_second, burst),
            groups: [Limiter::new(half(per_second), half(burst)); GROUPS],
            seed,
        }
    }

    /// Takes the price of one message to `sender` and returns whether there was enough.
    pub(super) fn take(&mut self, sender: IpAddr, now: Time) -> bool {
        let index = self.group(sender);
        let group = self.groups.get_mut(index);
        group.is_some_and(|group| group.take(now)) && self.all.take(now)
    }

    fn group(&self, sender: IpAddr) -> usize {
        let bits = match sender {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let mixed = (bits ^ u128::from(self.seed)).wrapping_mul(MULTIPLIER);
        // The top bits depend on all others. GROUPS is a power of two below 2^7.
        usize::from((mixed >> 121).to_le_bytes()[0]) % GROUPS
    }
}

/// 64 buckets of 32 octets: more senders than that seldom err at once.
const GROUPS: usize = 64;
/// An odd number without a pattern: 2^128 divided by the golden ratio.
const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

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
    fn one_sender_cannot_use_up_what_all_have() {
        let mut limiters = Limiters::new(100, 20, 7);
        let now = Time::from_nanos(5 * NANOS_PER_SECOND);
        let noisy = IpAddr::from([10, 0, 0, 1]);
        assert_eq!((0..50).filter(|_| limiters.take(noisy, now)).count(), 10);
        // The others, apart from the few of its group, have what is left.
        let others = (2..=255).map(|n| IpAddr::from([10, 0, 0, n]));
        assert_eq!(
            others.filter(|other| limiters.take(*other, now)).count(),
            10
        );
        // Neighbours do not share a group, in either family.
        for base in [IpAddr::from([10, 0, 0, 0]), "fd00::".parse().unwrap()] {
            let groups: alloc::collections::BTreeSet<usize> = (0..200_u8)
                .map(|n| match base {
                    IpAddr::V4(_) => IpAddr::from([10, 0, 0, n]),
                    IpAddr::V6(_) => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
                })
                .map(|address| limiters.group(address))
                .collect();
            assert!(groups.len() > GROUPS * 3 / 4, "{}", groups.len());
        }
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
