use std::{error::Error as StdError, sync::Arc, time::Duration};

use config::HostPort;
use kafka_protocol::error::ResponseError;
use rskafka::client::error::{Error as Rskafka, ProtocolError};
use thiserror::Error;
use uuid::Uuid;

use crate::{Malformed, Remedy, unreachable::Unreachable};

/// Characters of a broker's error message that are kept.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a call to Kafka failed, by what the caller can do about it.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The broker will never accept these records as they are: too large, or invalid. In a batch of several, it may be one
    /// of them, or their total size.
    #[error("the broker rejects the records for good: {0}")]
    RecordRejected(#[source] BrokerError),
    /// The broker rejects the request until a clock, a configuration, a permission or a version is changed ([`Remedy`]). The
    /// records are valid: keep them and retry.
    #[error("the broker rejects the request: {0}; {remedy}", remedy = .0.remedy())]
    RequestRejected(#[source] BrokerError),
    /// The topic or the partition does not exist.
    #[error("the topic or partition does not exist")]
    UnknownTopic,
    /// The offset is before the earliest or after the latest one.
    #[error("the offset does not exist")]
    OffsetOutOfRange,
    /// The topic was deleted and created again, so its offsets mean something else. The error repeats until the caller
    /// chooses the topic to read.
    #[error("the topic was deleted and created again: its id was {expected} and is {found}")]
    TopicChanged {
        /// The id of the topic that was read.
        expected: Uuid,
        /// The id of the topic that has the name now.
        found: Uuid,
    },
    /// The leader does not know the topic id: the topic was deleted, or its metadata have not reached the leader. The next
    /// call refreshes the metadata and returns [`Error::UnknownTopic`], [`Error::TopicChanged`] or succeeds.
    #[error("the partition's leader does not have the topic with the id that is read")]
    UnknownTopicId,
    /// The leader's log of the partition belongs to a topic with another id. As [`Error::UnknownTopicId`].
    #[error("the partition's log belongs to another topic than the one that is read")]
    InconsistentTopicId,
    /// The leader epoch is outdated: another leader was elected. The next call refreshes the metadata.
    #[error("another leader of the partition was elected")]
    FencedLeaderEpoch,
    /// The leader epoch is lower than one of which records were read: the broker is cut off from the others and still acts
    /// as the leader, or the cluster was restored from a backup. The next call asks another bootstrap broker.
    #[error(
        "the partition's leader has epoch {found}, and records of epoch {read} were read: it is cut off from the other brokers, \
         or the cluster was restored from a backup"
    )]
    OutdatedLeader {
        /// The leader epoch.
        found: i32,
        /// The epoch of what was read.
        read: i32,
    },
    /// The broker cannot be reached or cannot serve now. Retry later.
    #[error("the broker is unavailable: {0}")]
    Unavailable(#[source] Arc<dyn StdError + Send + Sync>),
    /// The response cannot be decoded. A retry may return the same bytes.
    #[error("the broker's response cannot be decoded: {0}")]
    Malformed(#[from] Malformed),
    /// There was no response in time. The broker may have executed the request.
    #[error(transparent)]
    Timeout(#[from] Timeout),
}

/// An error code in a response, with the broker's message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{code}{}{}",
    .broker.as_ref().map(|broker| format!(" from {broker}")).unwrap_or_default(),
    .message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default()
)]
pub struct BrokerError {
    code: ResponseError,
    message: Option<String>,
    broker: Option<HostPort>,
}

/// There was no response within the deadline of a call.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the broker{} did not respond within {} ms",
    .broker.as_ref().map(|broker| format!(" {broker}")).unwrap_or_default(),
    .limit.as_millis()
)]
pub struct Timeout {
    /// The time of the call, from its beginning.
    pub limit: Duration,
    /// The broker, if it is known.
    pub broker: Option<HostPort>,
}

/// The errors of all bootstrap brokers.
#[derive(Debug, Error)]
#[error("no bootstrap broker is available: {}", joined(.0))]
pub(crate) struct NoBootstrapBroker(pub(crate) Vec<Error>);

impl BrokerError {
    /// An error with this code alone.
    pub(crate) fn new(code: ResponseError) -> Self {
        Self { code, message: None, broker: None }
    }

    /// The error with the beginning of the broker's message.
    pub(crate) fn with_message(self, message: Option<&str>) -> Self {
        let message = message.filter(|message| !message.is_empty());
        Self { message: message.map(|message| message.chars().take(MAX_MESSAGE_CHARS).collect()), ..self }
    }

    /// The error with the broker that sent it.
    pub(crate) fn with_broker(self, broker: &HostPort) -> Self {
        Self { broker: Some(broker.clone()), ..self }
    }

    /// Its name in Kafka's documentation, such as `InvalidTimestamp`.
    pub fn name(&self) -> String {
        self.code.to_string()
    }

    /// What has to change before the request can succeed.
    pub fn remedy(&self) -> Remedy {
        Remedy::of(self.code)
    }

    pub(crate) fn code(&self) -> ResponseError {
        self.code
    }
}

impl Error {
    /// Whether the partition has no leader at the moment. Nothing was stored.
    pub(crate) fn is_leader_election(&self) -> bool {
        let Self::Unavailable(_) = self else { return false };
        let code = self.broker_error().map(BrokerError::code);
        matches!(code, Some(ResponseError::NotLeaderOrFollower | ResponseError::LeaderNotAvailable))
    }

    /// Whether the broker is available and knows that the request cannot succeed now, as far as it knows.
    pub(crate) fn is_rejection(&self) -> bool {
        matches!(self, Self::UnknownTopic | Self::RequestRejected(_)) || self.is_leader_election()
    }

    /// What the broker has answered, unless the kind of this error says it.
    pub fn broker_error(&self) -> Option<&BrokerError> {
        match self {
            Self::RecordRejected(error) | Self::RequestRejected(error) => Some(error),
            Self::Unavailable(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// A short name for metrics and traces.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::RecordRejected(_) => "record_rejected",
            Self::RequestRejected(_) => "rejected",
            Self::UnknownTopic => "unknown_topic",
            Self::OffsetOutOfRange => "offset_out_of_range",
            Self::TopicChanged { .. } => "topic_changed",
            Self::UnknownTopicId => "unknown_topic_id",
            Self::InconsistentTopicId => "inconsistent_topic_id",
            Self::FencedLeaderEpoch => "fenced_leader_epoch",
            Self::OutdatedLeader { .. } => "outdated_leader",
            Self::Unavailable(_) => "unavailable",
            Self::Malformed(_) => "malformed",
            Self::Timeout(_) => "timeout",
        }
    }

    /// Distinguishes the causes of an outage: the name of the broker's error where an operator has to act on it, otherwise
    /// the [`outcome`](Self::outcome).
    pub fn cause(&self) -> String {
        match self {
            Self::RequestRejected(error) => error.name(),
            other => other.outcome().to_owned(),
        }
    }
}

/// Errors in one line. That a broker is unavailable goes without saying.
fn joined(errors: &[Error]) -> String {
    let texts = errors.iter().map(|error| match error {
        Error::Unavailable(error) => error.to_string(),
        error => error.to_string(),
    });
    texts.collect::<Vec<_>>().join("; ")
}

impl From<Rskafka> for Error {
    fn from(error: Rskafka) -> Self {
        match &error {
            Rskafka::ServerError { protocol_error: ProtocolError::UnknownTopicOrPartition, .. } => Self::UnknownTopic,
            Rskafka::ServerError { protocol_error, error_message, .. } => {
                // rskafka and kafka-protocol have the same names, so the remedy is found by the name.
                let code = code_named(&format!("{protocol_error:?}")).map(BrokerError::new);
                let rejected = code.filter(|error| error.remedy() != Remedy::Time);
                match rejected {
                    Some(rejected) => Self::RequestRejected(rejected.with_message(error_message.as_deref())),
                    None => Self::Unavailable(Arc::new(error)),
                }
            }
            _ => Self::Unavailable(Arc::new(error)),
        }
    }
}

fn code_named(name: &str) -> Option<ResponseError> {
    (-1..200).filter_map(ResponseError::try_from_code).find(|code| code.to_string() == name)
}

impl From<BrokerError> for Error {
    fn from(error: BrokerError) -> Self {
        match error.code {
            ResponseError::UnknownTopicOrPartition => Self::UnknownTopic,
            ResponseError::OffsetOutOfRange => Self::OffsetOutOfRange,
            ResponseError::UnknownTopicId => Self::UnknownTopicId,
            ResponseError::InconsistentTopicId => Self::InconsistentTopicId,
            ResponseError::FencedLeaderEpoch => Self::FencedLeaderEpoch,
            _ => match error.remedy() {
                Remedy::Record => Self::RecordRejected(error),
                Remedy::Time => Self::Unavailable(Arc::new(error)),
                _ => Self::RequestRejected(error),
            },
        }
    }
}

impl From<ResponseError> for Error {
    fn from(code: ResponseError) -> Self {
        BrokerError::new(code).into()
    }
}

impl From<Unreachable> for Error {
    fn from(error: Unreachable) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}
