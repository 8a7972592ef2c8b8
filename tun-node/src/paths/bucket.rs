//! A token bucket: so many a second, as many at once after a second of silence.

use warren_core::units::Time;

/// What may still be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: f64,
    credit: f64,
    /// When the credit was counted.
    at: Time,
}

impl Bucket {
    /// A full one.
    pub(super) const fn new(per_second: f64) -> Self {
        Self {
            per_second,
            credit: per_second,
            at: Time::ZERO,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let gained = now.since(self.at).as_secs_f64() * self.per_second;
        self.at = now;
        self.credit = (self.credit + gained).min(self.per_second);
        let may = self.credit >= 1.0;
        if may {
            self.credit -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_a_second_s_worth_at_once_and_then_what_comes_in() {
        let mut bucket = Bucket::new(100.0);
        let ms = |n: u64| Time::from_nanos(n * 1_000_000);
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, ms(0)), 100);
        assert_eq!(taken(&mut bucket, ms(55)), 5);
        assert_eq!(taken(&mut bucket, ms(60)), 1);
        assert_eq!(taken(&mut bucket, ms(60_000)), 100);
    }
}
