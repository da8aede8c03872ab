//! Kafka for services.
//!
//! Records go and come over connections of our own on smol ([`Producer`], [`Consumer`]), and those that come are read
//! where they were received ([`Records`]); the messages around them are kafka-protocol's. rskafka, behind the tokio
//! compat bridge, looks after topics, and a record that is sent or kept is its [`Record`].
//!
//! On each connection the broker is asked which versions it speaks (ApiVersions), and each request is sent in the highest
//! version that both ends speak. Tested are Apache Kafka 3.9 and 4.1, and Nisshi; from Apache Kafka 0.11 on, every broker
//! has versions that this client speaks.
//!
//! Every call has a deadline. A connection that failed is thrown away, and what was known of who leads is asked anew.
//! rskafka has no time-outs of its own and retries for minutes, so each of its clients serves one call.
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
mod versions;

pub use consumer::{Consumer, Fetched};
pub use error::Error;
pub use leader::{brokers, leaders};
pub use malformed::Malformed;
pub use producer::Producer;
pub use record::RecordRef;
pub use records::Records;
pub use rskafka::record::{Record, RecordAndOffset};
pub use settings::Settings;
pub use topics::{create_topic, delete_topic, partitions};
