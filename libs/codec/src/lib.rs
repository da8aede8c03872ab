//! Bytes to typed messages and back. No I/O, no async.
//!
//! - [`event`]: what patient-service publishes and analytics-service reads;
//! - [`headers`]: the CloudEvents headers of a record;
//! - [`dead_letter`]: what the headers of a dead letter say.

pub mod dead_letter;
pub mod event;
pub mod headers;
