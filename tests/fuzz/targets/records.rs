//! See `fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: fuzz::records::Input| drop(fuzz::records::check(input)));
