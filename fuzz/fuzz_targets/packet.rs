//! See [`warren_fuzz::packet::packet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::packet::packet(bytes));
