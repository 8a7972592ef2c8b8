//! Warren core.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod fib;
pub mod units;
pub mod wire;
