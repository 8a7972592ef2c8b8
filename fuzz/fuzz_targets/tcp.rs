//! See [`warren_fuzz::wire::tcp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::wire::tcp(bytes));
