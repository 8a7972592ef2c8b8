//! See [`warren_fuzz::engine::engine`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warren_fuzz::engine::engine(bytes));
