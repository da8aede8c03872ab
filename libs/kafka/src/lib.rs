//! Kafka for services.
//!
//! Records go and come over connections of our own on smol ([`Producer`], [`Consumer`]), and those that come are read
//! where they were received ([`Records`]); the messages around them are kafka-protocol's. rskafka, behind the tokio
//! compat bridge, looks after topics; its records have their headers in a map, which loses what is repeated or null, so that
//! a record that is sent or kept is our own [`Record`].
//!
//! On each connection the broker is asked which versions it speaks (ApiVersions), and each request is sent in the highest
//! version that both ends speak. Tested are Apache Kafka 3.9 and 4.1, and Nisshi; from Apache Kafka 0.11 on, every broker
//! has versions that this client speaks.
//!
//! Every call has a deadline, for all that belongs to it: finding who leads, connecting, asking. A connection that failed is
//! thrown away, and what was known of who leads is asked anew.
//! rskafka has no time-outs of its own and retries for minutes, so each of its clients serves one call.
//!
//! # Quotas
//!
//! A broker whose quota a client has used up answers at once, says how long the client has to be silent, and reads nothing of
//! the connection meanwhile (KIP-219). The next call over that connection waits so long before its deadline begins:
//! throttled is not unavailable. Brokers before Apache Kafka 2.0 delay the answer itself, which may cost a deadline.
//!
//! # Memory
//!
//! A consumer holds an answer of about as many bytes as it asked for, and beside it up to 2 MiB of decompressed records. A
//! single batch may be larger, up to 16 MiB as it is sent and as it is decompressed; of those there is one at a time in the
//! whole process, as long as its [`Records`] live. What is larger than that is never taken into memory, whatever its codec:
//! it is told as [`Unreadable`] and passed. A fetch gives 16,384 records at most.
//!
//! What it does not do: consumer groups (a consumer is given its partitions), transactions, idempotent production. A
//! call that timed out may still reach the broker, so records are delivered at least once.

mod batch;
mod bridge;
mod call;
mod connection;
mod consumer;
mod cursor;
mod decompress;
mod encode;
mod error;
mod fetch_answer;
mod leader;
mod malformed;
mod memory;
pub mod partitioner;
mod producer;
mod record;
mod records;
mod remedy;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;
mod topics;
mod unreachable;
mod versions;

pub use consumer::{Consumer, Fetched};
pub use error::{BrokerError, Error, Late};
pub use leader::{brokers, leaders, partitions};
pub use malformed::Malformed;
pub use producer::Producer;
pub use record::{Headers, Record, RecordAndOffset, RecordRef};
pub use records::{Records, Unreadable};
pub use remedy::Remedy;
pub use settings::Settings;
pub use topics::{create_topic, delete_topic};
