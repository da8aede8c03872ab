//! Encoding and decoding of messages. No I/O, no async.
//!
//! - [`event`]: what patient-service publishes and analytics-service reads;
//! - [`headers`]: CloudEvents headers of records;
//! - [`dead_letter`]: headers of dead letters.

pub mod dead_letter;
pub mod event;
pub mod headers;
