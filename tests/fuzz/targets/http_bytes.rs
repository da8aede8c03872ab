//! See `fuzz::http_bytes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::http_bytes::check(bytes));
