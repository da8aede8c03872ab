use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use config::HostPort;
use kafka_protocol::error::ResponseError;
use rskafka::client::error::{Error as Rskafka, ProtocolError};
use uuid::Uuid;

use crate::{Malformed, Remedy, unreachable::Unreachable};

/// Characters of a broker's own words that are kept.
const LONGEST_MESSAGE: usize = 300;

/// Why a call to Kafka failed, by what the caller can do about it.
#[derive(Clone, Debug)]
pub enum Error {
    /// The broker will never take these records as they are: too large, or invalid in its eyes. Of a batch of several it may
    /// be one that is to blame, or their sum.
    Refused(BrokerError),
    /// The broker rejects what was asked until a clock, a configuration, a right or a version is changed ([`Remedy`]). There
    /// is nothing wrong with the records: they are to be kept and tried again.
    Rejected(BrokerError),
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
    Late(Late),
}

/// An error that a broker answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    code: ResponseError,
    /// The broker's own words, if it has some.
    message: Option<String>,
    broker: Option<HostPort>,
}

/// The time of a call that was over before its answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The time that there was.
    pub limit: Duration,
    /// Who was waited for.
    pub broker: Option<HostPort>,
}

/// What each of several brokers failed with.
#[derive(Debug)]
pub(crate) struct NoneAnswered(pub(crate) Vec<Error>);

impl BrokerError {
    /// An error by its code alone.
    pub(crate) fn new(code: ResponseError) -> Self {
        Self { code, message: None, broker: None }
    }

    /// The same error in the broker's own words, as far as they are short.
    pub(crate) fn saying(self, message: Option<&str>) -> Self {
        let message = message.filter(|message| !message.is_empty());
        Self { message: message.map(|message| message.chars().take(LONGEST_MESSAGE).collect()), ..self }
    }

    /// The same error of this broker.
    pub(crate) fn at(self, broker: &HostPort) -> Self {
        Self { broker: Some(broker.clone()), ..self }
    }

    /// Its name in Kafka's documentation, such as `InvalidTimestamp`.
    pub fn name(&self) -> String {
        self.code.to_string()
    }

    /// What ends it.
    pub fn remedy(&self) -> Remedy {
        Remedy::of(self.code)
    }

    pub(crate) fn code(&self) -> ResponseError {
        self.code
    }
}

impl Error {
    /// Whether the partition's leader is about to be another one; nothing was done.
    pub(crate) fn is_of_moving_leaders(&self) -> bool {
        let Self::Away(error) = self else { return false };
        let code = error.downcast_ref::<BrokerError>().map(BrokerError::code);
        matches!(code, Some(ResponseError::NotLeaderOrFollower | ResponseError::LeaderNotAvailable))
    }

    /// A short name for metrics and traces.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Rejected(_) => "rejected",
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

    /// What tells one cause of an outage from another: the name of the broker's error where an operator has to act on it,
    /// otherwise the [`outcome`](Self::outcome).
    pub fn cause(&self) -> String {
        match self {
            Self::Rejected(error) => error.name(),
            other => other.outcome().to_owned(),
        }
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, broker } = self;
        write!(f, "{code}")?;
        if let Some(broker) = broker {
            write!(f, " from {broker}")?;
        }
        match message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

impl StdError for BrokerError {}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.limit.as_millis();
        match &self.broker {
            Some(broker) => write!(f, "the broker {broker} gave no answer within {milliseconds} ms"),
            None => write!(f, "the broker gave no answer within {milliseconds} ms"),
        }
    }
}

impl fmt::Display for NoneAnswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none of the bootstrap brokers can be asked")?;
        self.0.iter().zip([": "].into_iter().chain(std::iter::repeat("; "))).try_for_each(|(error, separator)| {
            f.write_str(separator)?;
            match error {
                Error::Away(error) => write!(f, "{error}"),
                error => write!(f, "{error}"),
            }
        })
    }
}

impl StdError for NoneAnswered {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "the broker refuses the records for good: {error}"),
            Self::Rejected(error) => write!(f, "the broker rejects the request: {error}; {}", error.remedy()),
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
            Self::Late(late) => write!(f, "{late}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Away(error) => Some(&**error),
            Self::Malformed(error) => Some(error),
            Self::Refused(error) | Self::Rejected(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Rskafka> for Error {
    fn from(error: Rskafka) -> Self {
        match &error {
            Rskafka::ServerError { protocol_error: ProtocolError::UnknownTopicOrPartition, .. } => Self::UnknownTopic,
            Rskafka::ServerError { protocol_error, error_message, .. } => {
                // The same names as kafka-protocol's, so that what ends it is known here too.
                let code = by_name(&format!("{protocol_error:?}")).map(BrokerError::new);
                let rejected = code.filter(|error| error.remedy() != Remedy::Time);
                match rejected {
                    Some(rejected) => Self::Rejected(rejected.saying(error_message.as_deref())),
                    None => Self::Away(Arc::new(error)),
                }
            }
            _ => Self::Away(Arc::new(error)),
        }
    }
}

/// The code with this name.
fn by_name(name: &str) -> Option<ResponseError> {
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
                Remedy::Record => Self::Refused(error),
                Remedy::Time => Self::Away(Arc::new(error)),
                _ => Self::Rejected(error),
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
        Self::Away(Arc::new(error))
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<Late> for Error {
    fn from(late: Late) -> Self {
        Self::Late(late)
    }
}
