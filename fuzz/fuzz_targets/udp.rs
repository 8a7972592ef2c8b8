//! See [`warren_fuzz::wire::udp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::wire::udp(bytes));
