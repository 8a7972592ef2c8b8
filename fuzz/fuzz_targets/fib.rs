//! See [`warren_fuzz::fib::fib`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::fib::fib(bytes));
