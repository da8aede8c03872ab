//! See `fuzz::patient_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::patient_body::check(bytes));
