//! Counts what happens to patients.
//!
//! Data flow one way: [`ingest`] fetches records, decodes them and folds them into a [`counts`]; [`state`] keeps the counts
//! and the next offset in one transaction; [`read_model`] is what of it is shown; [`http`] shows it. Records that are no events
//! wait in the state until [`dead_letters`] has put them on their topic.

pub mod counts;
pub mod dead_letters;
mod http;
pub mod ingest;
pub mod read_model;
mod service;
mod settings;
pub mod state;

pub use service::Service;
pub use settings::{Assignment, OnOffsetLoss, Settings};
