//! See [`warren_fuzz::config::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::config::config(bytes));
