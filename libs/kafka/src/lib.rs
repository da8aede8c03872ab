//! Kafka for services.
//!
//! What is fetched comes over connections of our own on smol, and its records are read where they were received
//! ([`Consumer`], [`Records`]); the messages around them are kafka-protocol's. rskafka, behind the tokio compat bridge,
//! produces and looks after topics.
//!
//! Every call has a deadline. rskafka has no time-outs of its own and retries for minutes, so a client that failed is
//! thrown away and made anew with the next call, which also ends its loops on stale metadata. A consumer's connection is
//! treated in the same way.
//!
//! What it does not do: consumer groups (a consumer is given its partitions), transactions, idempotent production. A
//! call that timed out may still reach the broker, so records are delivered at least once.

mod batch;
mod bridge;
mod call;
mod connection;
mod consumer;
mod cursor;
mod error;
mod leader;
mod malformed;
mod producer;
mod record;
mod records;
mod settings;
mod topics;

pub use consumer::{Consumer, Fetched};
pub use error::Error;
pub use malformed::Malformed;
pub use producer::Producer;
pub use record::RecordRef;
pub use records::Records;
pub use rskafka::record::{Record, RecordAndOffset};
pub use settings::Settings;
pub use topics::{create_topic, delete_topic, partitions};
