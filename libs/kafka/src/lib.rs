//! Kafka client for services: producer, consumer, metadata, topic management and permissions.
//!
//! [`Producer`] and [`Consumer`] use connections of their own on smol and decode records in the buffer that received them
//! ([`Records`]); kafka-protocol encodes and decodes the messages around them. Topics are found and deleted through rskafka,
//! behind the tokio compat bridge. rskafka cannot create a topic with a configuration, so that is ours too. It keeps headers in
//! a map, which loses duplicate names and null values, so records are of our own type [`Record`].
//!
//! Each connection negotiates versions with ApiVersions and sends each request in the highest version that both ends support.
//! Tested are Apache Kafka 3.9 and 4.1, and Nisshi; every broker since Apache Kafka 0.11 has a common version with this client.
//!
//! Each call has one deadline for all its steps: metadata, connecting, the request. After an error the connection and the
//! cached metadata are dropped. rskafka has no time-outs and retries for minutes, so each call uses a new rskafka client.
//!
//! # Quotas
//!
//! A broker whose quota is exceeded responds at once with a throttle time, and mutes the connection for that time (KIP-219).
//! The next call on the connection waits for it before its deadline begins: a throttled broker is not unavailable. Brokers
//! before Apache Kafka 2.0 delay the response instead, which counts against the deadline.
//!
//! # Memory
//!
//! A consumer holds one response of about the requested size, and up to 2 MiB of decompressed records beside it. A single
//! batch may have up to 16 MiB, compressed and decompressed; there is one such at a time in the process, for as long as its
//! [`Records`] live. Of consumers that share a [`FetchMemory`] one at a time has records or a response above the
//! requested size, and the others a buffer of that size: what they take does not grow with the partitions. A larger batch is
//! never read into memory, whatever its codec: it is returned as [`UnreadableBatch`] and skipped. A fetch returns at most
//! 16,384 records. The memory of any response is in proportion to its bytes, whatever lengths it claims.
//!
//! # Consumer groups
//!
//! A consumer is given its partition. [`Member`] shares the partitions of a topic with other members of a group, by the classic
//! protocol; [`GroupProgress`] shows the progress of consumers that are members of none.
//!
//! Not supported: transactions, idempotent production. The broker may have executed a call that timed out, so records are
//! delivered at least once.

mod batch;
mod bounded;
mod bridge;
mod call;
mod connection;
mod consumer;
mod cursor;
mod decompress;
mod encode;
mod error;
mod fetch_response;
mod group;
mod limits;
mod malformed;
mod membership;
mod memory;
mod metadata;
pub mod partitioner;
mod permissions;
mod producer;
mod record;
mod records;
mod remedy;
mod security;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;
mod topics;
mod unreachable;
mod versions;

pub use consumer::{Consumer, Fetched};
pub use error::{BrokerError, Error, Timeout};
pub use group::GroupProgress;
pub use malformed::Malformed;
pub use membership::{AssignedMember, Assignment, Generation, Member, Subscription};
pub use memory::{FetchMemory, FetchPermit};
pub use metadata::{KnownTopic, brokers, leaders, partitions, partitions_of_known};
pub use permissions::{Operation, Permission, Resource, grant};
pub use producer::Producer;
pub use record::{Headers, Record, RecordAndOffset, RecordRef};
pub use records::{Records, UnreadableBatch};
pub use remedy::Remedy;
pub use security::{Credentials, Mechanism, Sasl, Security};
pub use settings::Settings;
pub use topics::{create_topic, create_topic_with, delete_topic, topic_configuration};
