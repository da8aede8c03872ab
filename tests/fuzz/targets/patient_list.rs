//! See `fuzz::patient_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::patient_list::check(bytes));
