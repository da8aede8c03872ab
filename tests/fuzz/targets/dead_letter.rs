//! See `fuzz::dead_letter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: fuzz::dead_letter::Input| fuzz::dead_letter::check(input));
