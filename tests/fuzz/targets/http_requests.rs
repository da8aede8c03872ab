//! See `fuzz::http_requests`.
#![no_main]

use fuzz::http_requests::{Conversation, check};

libfuzzer_sys::fuzz_target!(|conversation: Conversation<'_>| check(conversation));
