//! A library that looks innocent and uses `std`.
//!
//! With the feature `std-canary` the no-OS build depends on it, and then must fail: that failure
//! is what shows that the build would notice a real dependency of this kind.

/// How long a call of the operating system's clock took.
#[must_use]
pub fn clock_cost() -> core::time::Duration {
    std::time::Instant::now().elapsed()
}
