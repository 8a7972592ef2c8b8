//! See [`warren_fuzz::ctl::ctl`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::ctl::ctl(bytes));
