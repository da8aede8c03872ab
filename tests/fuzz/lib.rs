//! Fuzz targets: each is a function that panics if an input violates an invariant.
//!
//! `just fuzz` runs them with libFuzzer; `replay.rs` runs them with the inputs in `seeds`, without libFuzzer, in every test
//! run. An input that libFuzzer has found is added to `seeds` after the bug is fixed.
//!
//! - [`http_bytes`]: arbitrary bytes on a connection of `libs/web`;
//! - [`http_requests`]: requests with a known meaning;
//! - [`patient_body`]: the JSON body of a patient;
//! - [`patient_list`]: the query of a list, with its cursor, at the route table of patient-service;
//! - [`patient_requests`]: every kind of request to patient-service with a real PostgreSQL;
//! - [`event`]: the value of a record, and the counts of analytics;
//! - [`dead_letter`]: the headers of a record on the dead-letter topic;
//! - [`records`]: the response of a broker to a fetch: transactions, decompression bombs, corrupt batches.

pub mod dead_letter;
mod edge;
pub mod event;
pub mod http_bytes;
pub mod http_requests;
pub mod patient_body;
pub mod patient_list;
pub mod patient_requests;
pub mod records;
mod responses;
