//! See `fuzz::patient_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: fuzz::patient_requests::Input| fuzz::patient_requests::check(input));
