//! Kafka for services: rskafka behind the tokio compat bridge.
//!
//! rskafka has no time-outs of its own and retries for minutes. Here every call has a deadline, and a client that failed
//! is thrown away and made anew with the next call, which also ends its loops on stale metadata.
//!
//! What it does not do: consumer groups (a consumer is given its partitions), transactions, idempotent production. A
//! call that timed out may still reach the broker, so records are delivered at least once.

mod bridge;
mod consumer;
mod error;
mod producer;
mod settings;
mod topics;

pub use consumer::{Consumer, Fetched};
pub use error::Error;
pub use producer::Producer;
pub use rskafka::record::{Record, RecordAndOffset};
pub use settings::Settings;
pub use topics::{create_topic, delete_topic, partitions};
