//! See [`warren_fuzz::wire::ipv4`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::wire::ipv4(bytes));
