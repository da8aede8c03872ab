//! Counts patient events.
//!
//! Data flows one way: [`ingest`] fetches records, decodes them and counts them ([`counts`], by
//! partition: [`partition_counts`]); [`state`] commits the counts and
//! the next offsets in one transaction; [`read_model`] has a copy in memory, which [`http`] serves. Records that cannot be
//! decoded wait in the state until [`dead_letters`] has forwarded them to the dead letter topic.

pub mod counts;
pub mod dead_letters;
mod http;
pub mod ingest;
mod member_client;
mod members;
pub mod partition_counts;
pub mod read_model;
mod service;
mod settings;
pub mod state;

pub use member_client::MemberSettings;
pub use service::Service;
pub use settings::{Assignment, ConsumerGroup, MembershipSettings, OnOffsetLoss, Settings};
