use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use kafka_protocol::error::ResponseError;
use rskafka::client::error::{Error as Rskafka, ProtocolError};
use runtime::Elapsed;
use uuid::Uuid;

use crate::Malformed;

/// Why a call to Kafka failed, by what the caller can do about it.
#[derive(Clone, Debug)]
pub enum Error {
    /// The broker will never take these records: too large, or malformed in its eyes.
    Refused(ResponseError),
    /// The topic or the partition does not exist.
    UnknownTopic,
    /// There is no such offset (any more, or yet).
    OffsetOutOfRange,
    /// Another topic has the name of the one that was read, which was deleted and made again. Its offsets mean nothing in
    /// this one. It stays so until the caller decides which topic to read.
    TopicChanged {
        /// The topic that was read.
        expected: Uuid,
        /// The topic that there is.
        found: Uuid,
    },
    /// The leader does not have the topic that is read: it was deleted, or the leader does not know it yet. What it is turns
    /// out at the next call, which asks anew: [`Error::UnknownTopic`], [`Error::TopicChanged`] or success.
    UnknownTopicId,
    /// The leader's log of the partition belongs to another topic than the one that is read. As [`Error::UnknownTopicId`].
    InconsistentTopicId,
    /// Another leader was elected since this one became known. The next call asks who leads.
    FencedLeaderEpoch,
    /// The broker cannot be reached or cannot serve now. Trying again later may help.
    Away(Arc<dyn StdError + Send + Sync>),
    /// What the broker sent cannot be read. It may be sent the same way again.
    Malformed(Malformed),
    /// There was no answer in time. The broker may have done what it was asked.
    Late(Duration),
}

impl Error {
    /// Whether the partition's leader is about to be another one; nothing was done.
    pub(crate) fn is_of_moving_leaders(&self) -> bool {
        let Self::Away(error) = self else { return false };
        let error = error.downcast_ref::<ResponseError>();
        matches!(error, Some(ResponseError::NotLeaderOrFollower | ResponseError::LeaderNotAvailable))
    }

    /// A short name for metrics and traces.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::UnknownTopic => "unknown_topic",
            Self::OffsetOutOfRange => "offset_out_of_range",
            Self::TopicChanged { .. } => "topic_changed",
            Self::UnknownTopicId => "unknown_topic_id",
            Self::InconsistentTopicId => "inconsistent_topic_id",
            Self::FencedLeaderEpoch => "fenced_leader_epoch",
            Self::Away(_) => "away",
            Self::Malformed(_) => "malformed",
            Self::Late(_) => "late",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "the broker refuses the records for good: {error:?}"),
            Self::UnknownTopic => f.write_str("the topic or partition does not exist"),
            Self::OffsetOutOfRange => f.write_str("the offset does not exist"),
            Self::TopicChanged { expected, found } => {
                write!(f, "the topic was deleted and made again: its id was {expected} and is {found}")
            }
            Self::UnknownTopicId => {
                f.write_str("the partition's leader does not have the topic with the id that is read")
            }
            Self::InconsistentTopicId => {
                f.write_str("the partition's log belongs to another topic than the one that is read")
            }
            Self::FencedLeaderEpoch => f.write_str("another leader of the partition was elected"),
            Self::Away(error) => write!(f, "the broker is away: {error}"),
            Self::Malformed(error) => write!(f, "the broker's answer cannot be read: {error}"),
            Self::Late(limit) => write!(f, "the broker gave no answer within {} ms", limit.as_millis()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Away(error) => Some(&**error),
            Self::Malformed(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Rskafka> for Error {
    fn from(error: Rskafka) -> Self {
        match error {
            Rskafka::ServerError { protocol_error, .. } => match protocol_error {
                ProtocolError::UnknownTopicOrPartition => Self::UnknownTopic,
                _ => Self::Away(Arc::new(error)),
            },
            error => Self::Away(Arc::new(error)),
        }
    }
}

impl From<ResponseError> for Error {
    fn from(error: ResponseError) -> Self {
        match error {
            ResponseError::MessageTooLarge
            | ResponseError::RecordListTooLarge
            | ResponseError::InvalidRecord
            | ResponseError::InvalidTimestamp => Self::Refused(error),
            ResponseError::UnknownTopicOrPartition => Self::UnknownTopic,
            ResponseError::OffsetOutOfRange => Self::OffsetOutOfRange,
            ResponseError::UnknownTopicId => Self::UnknownTopicId,
            ResponseError::InconsistentTopicId => Self::InconsistentTopicId,
            ResponseError::FencedLeaderEpoch => Self::FencedLeaderEpoch,
            error => Self::Away(Arc::new(error)),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Away(Arc::new(error))
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<Elapsed> for Error {
    fn from(Elapsed(limit): Elapsed) -> Self {
        Self::Late(limit)
    }
}
