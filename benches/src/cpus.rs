//! How far apart two CPUs are: what a cache line takes from one to the other.
//!
//! The CPUs of a virtual machine are threads of its host, which moves them about: now on cores with a common third-level
//! cache, now on others. A line that one has written takes the other some 25 ns in the first case and 210 in the second
//! (Zen 5), and who measures two threads that work together measures that as well.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// In cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Alone<T>(pub T);

/// A line that two threads pass to each other.
#[derive(Debug, Default)]
pub struct Ball(Alone<AtomicU64>);

impl Ball {
    /// Throws the ball a thousand times to whoever is in [`answer`](Self::answer), and gives the nanoseconds of one way: the
    /// least of some parts, since threads are held up at times.
    #[must_use]
    pub fn nanos(&self) -> f64 {
        let part = |first: u64| {
            let start = Instant::now();
            for pass in first..first + PART {
                self.0.0.store(2 * pass + 1, Ordering::Release);
                self.wait(2 * pass + 2);
            }
            start.elapsed().as_secs_f64() * 1e9
        };
        let least = (0..PASSES / PART).map(|number| part(number * PART));
        let least = least.fold(f64::INFINITY, f64::min);
        self.0.0.store(0, Ordering::Release);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred passes")]
        let ways = (2 * PART) as f64;
        least / ways
    }

    /// Throws the ball back as often as it is thrown.
    pub fn answer(&self) {
        for pass in 0..PASSES {
            self.wait(2 * pass + 1);
            self.0.0.store(2 * pass + 2, Ordering::Release);
        }
        self.wait(0);
    }

    fn wait(&self, for_value: u64) {
        while self.0.0.load(Ordering::Acquire) != for_value {
            std::hint::spin_loop();
        }
    }
}

/// The nanoseconds from one CPU to another on a machine that has nothing else to do; `None` where there is one CPU only.
#[must_use]
pub fn line_nanos() -> Option<f64> {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        return None;
    }
    let (ball, is_there) = (Ball::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            is_there.store(true, Ordering::Release);
            ball.answer();
        });
        while !is_there.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        Some(ball.nanos())
    })
}

/// Passes of one measurement, 0.1 ms, and of a part of it.
const PASSES: u64 = 1_000;
const PART: u64 = 100;

/// Nanoseconds below which two CPUs are near.
pub const NEAR: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_time_and_less_than_a_second() {
        if let Some(nanos) = line_nanos() {
            assert!(nanos > 0.0 && nanos < 1e9, "{nanos}");
        }
    }
}
