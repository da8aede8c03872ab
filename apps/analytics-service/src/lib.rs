//! Counts what happens to patients.
//!
//! Data flow one way: [`intake`] fetches records, decodes them and folds them into a [`tally`]; [`state`] keeps the tally
//! and the next offset in one transaction; [`view`] is what of it is shown; [`http`] shows it. Records that are no events
//! wait in the state until [`dead_letters`] has put them on their topic.

pub mod dead_letters;
mod http;
pub mod intake;
mod service;
mod settings;
pub mod state;
pub mod tally;
pub mod view;

pub use service::Service;
pub use settings::{Assignment, OnOffsetLoss, Settings};
