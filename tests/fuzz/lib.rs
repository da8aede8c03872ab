//! Hostile input: for each target a function that is given anything and panics if what must hold does not.
//!
//! `just fuzz` has libFuzzer look for such input; `replay.rs` gives them what lies in `seeds`, without libFuzzer, in every
//! run of the tests. An input that libFuzzer has found belongs there once its cause is mended.
//!
//! - [`http_bytes`]: any bytes on a connection of `libs/web`;
//! - [`http_requests`]: requests of which it is known what they mean;
//! - [`patient_body`]: the JSON body of a patient;
//! - [`patient_list`]: the query of a list, with its cursor, at the route table of patient-service;
//! - [`patient_requests`]: requests of every kind, with a PostgreSQL behind the service;
//! - [`event`]: the value of a record, up to what analytics counts;
//! - [`dead_letter`]: the headers of a record on the topic of dead letters;
//! - [`records`]: what a broker sends for a fetch: transactions, bombs, damage.

mod answers;
pub mod dead_letter;
mod edge;
pub mod event;
pub mod http_bytes;
pub mod http_requests;
pub mod patient_body;
pub mod patient_list;
pub mod patient_requests;
pub mod records;
