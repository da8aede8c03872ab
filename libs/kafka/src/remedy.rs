//! The remedy of each error code of the Kafka protocol.

use std::fmt;

use kafka_protocol::error::ResponseError;

/// What has to change before a failed request can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// Nothing: a leader is elected, a coordinator loads, a replica returns. Codes that this client does not know are retried
    /// too.
    Time,
    /// The clock of this service or of the broker, or the difference that the topic allows.
    Clock,
    /// A permission (ACL) or credential.
    Access,
    /// A setting of the topic, the broker or this service.
    Configuration,
    /// The version of the broker or of this client.
    Version,
    /// The record itself: it is too large for the topic, or invalid.
    Record,
}

impl Remedy {
    /// A short name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Clock => "clock",
            Self::Access => "access",
            Self::Configuration => "configuration",
            Self::Version => "version",
            Self::Record => "record",
        }
    }

    /// The remedy of an error code. There is no `_` arm, so that a new code does not compile until somebody has decided:
    /// whatever is [`Record`](Self::Record) by mistake dead-letters events that are valid.
    pub(crate) fn of(code: ResponseError) -> Self {
        use ResponseError as E;
        match code {
            E::MessageTooLarge | E::RecordListTooLarge | E::InvalidRecord => Self::Record,

            E::InvalidTimestamp => Self::Clock,

            E::TopicAuthorizationFailed
            | E::GroupAuthorizationFailed
            | E::ClusterAuthorizationFailed
            | E::TransactionalIdAuthorizationFailed
            | E::DelegationTokenAuthorizationFailed
            | E::DelegationTokenAuthDisabled
            | E::DelegationTokenNotFound
            | E::DelegationTokenOwnerMismatch
            | E::DelegationTokenRequestNotAllowed
            | E::DelegationTokenExpired
            | E::SaslAuthenticationFailed
            | E::UnsupportedSaslMechanism
            | E::IllegalSaslState
            | E::SecurityDisabled
            | E::InvalidPrincipalType
            | E::PrincipalDeserializationFailure
            | E::UnacceptableCredential => Self::Access,

            E::InvalidTopicException
            | E::TopicAlreadyExists
            | E::TopicDeletionDisabled
            | E::InvalidPartitions
            | E::InvalidReplicationFactor
            | E::InvalidReplicaAssignment
            | E::InvalidConfig
            | E::PolicyViolation
            | E::InvalidGroupId
            | E::InvalidSessionTimeout
            | E::InvalidTransactionTimeout
            | E::GroupMaxSizeReached
            | E::OffsetMetadataTooLarge
            | E::InvalidCommitOffsetSize
            | E::LogDirNotFound
            | E::OffsetMovedToTieredStorage
            | E::InconsistentClusterId
            | E::MismatchedEndpointType
            | E::ResourceNotFound
            | E::DuplicateResource
            // Another member of the group has another assignor, or two have one instance id.
            | E::InconsistentGroupProtocol
            | E::FencedInstanceId => Self::Configuration,

            E::UnsupportedVersion
            | E::UnsupportedForMessageFormat
            | E::UnsupportedCompressionType
            | E::InvalidRequest
            | E::InvalidRequiredAcks
            | E::InvalidFetchSize
            | E::UnsupportedEndpointType
            | E::UnsupportedAssignor
            | E::InvalidRegularExpression
            | E::InvalidUpdateVersion
            | E::FeatureUpdateFailed
            | E::TelemetryTooLarge
            | E::StreamsInvalidTopology => Self::Version,

            E::Unknown(_)
            | E::UnknownServerError
            | E::OffsetOutOfRange
            | E::CorruptMessage
            | E::UnknownTopicOrPartition
            | E::LeaderNotAvailable
            | E::NotLeaderOrFollower
            | E::RequestTimedOut
            | E::BrokerNotAvailable
            | E::ReplicaNotAvailable
            | E::StaleControllerEpoch
            | E::NetworkException
            | E::CoordinatorLoadInProgress
            | E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::NotEnoughReplicas
            | E::NotEnoughReplicasAfterAppend
            | E::IllegalGeneration
            | E::UnknownMemberId
            | E::RebalanceInProgress
            | E::NotController
            | E::OutOfOrderSequenceNumber
            | E::DuplicateSequenceNumber
            | E::InvalidProducerEpoch
            | E::InvalidTxnState
            | E::InvalidProducerIdMapping
            | E::ConcurrentTransactions
            | E::TransactionCoordinatorFenced
            | E::OperationNotAttempted
            | E::KafkaStorageError
            | E::UnknownProducerId
            | E::ReassignmentInProgress
            | E::NonEmptyGroup
            | E::GroupIdNotFound
            | E::FetchSessionIdNotFound
            | E::InvalidFetchSessionEpoch
            | E::ListenerNotFound
            | E::FencedLeaderEpoch
            | E::UnknownLeaderEpoch
            | E::StaleBrokerEpoch
            | E::OffsetNotAvailable
            | E::MemberIdRequired
            | E::PreferredLeaderNotAvailable
            | E::EligibleLeadersNotAvailable
            | E::ElectionNotNeeded
            | E::NoReassignmentInProgress
            | E::GroupSubscribedToTopic
            | E::UnstableOffsetCommit
            | E::ThrottlingQuotaExceeded
            | E::ProducerFenced
            | E::InconsistentVoterSet
            | E::SnapshotNotFound
            | E::PositionOutOfRange
            | E::UnknownTopicId
            | E::DuplicateBrokerRegistration
            | E::BrokerIdNotRegistered
            | E::InconsistentTopicId
            | E::TransactionalIdNotFound
            | E::FetchSessionTopicIdError
            | E::IneligibleReplica
            | E::NewLeaderElected
            | E::FencedMemberEpoch
            | E::UnreleasedInstanceId
            | E::StaleMemberEpoch
            | E::UnknownControllerId
            | E::UnknownSubscriptionId
            | E::InvalidRegistration
            | E::TransactionAbortable
            | E::InvalidRecordState
            | E::ShareSessionNotFound
            | E::InvalidShareSessionEpoch
            | E::FencedStateEpoch
            | E::InvalidVoterKey
            | E::DuplicateVoter
            | E::VoterNotFound
            | E::RebootstrapRequired
            | E::StreamsInvalidTopologyEpoch
            | E::StreamsTopologyFenced
            | E::ShareSessionLimitReached => Self::Time,
        }
    }
}

/// Advice for an operator.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time => "it is retried, and is expected to succeed later",
            Self::Clock => {
                "it is retried until the clock of this service (or of the broker) is right, or the topic's \
                 message.timestamp.before.max.ms and message.timestamp.after.max.ms (before Apache Kafka 3.6: \
                 message.timestamp.difference.max.ms) allow the difference"
            }
            Self::Access => "it is retried until the permission (ACL) or credential is granted",
            Self::Configuration => {
                "it is retried until the configuration of the topic, the broker or this service is corrected"
            }
            Self::Version => "it is retried until broker and client have a common version",
            Self::Record => "it is never accepted as it is",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BrokerError, Error};

    /// Every known code, and some unknown ones.
    fn codes() -> impl Iterator<Item = ResponseError> {
        (-1..=200).filter_map(ResponseError::try_from_code)
    }

    #[test]
    fn only_errors_of_the_record_itself_reject_it_for_good() {
        let rejected: Vec<i16> = codes()
            .filter(|&code| matches!(Error::from(BrokerError::new(code)), Error::RecordRejected(_)))
            .map(|code| code.code())
            .collect();
        assert_eq!(rejected, [10, 18, 87], "MessageTooLarge, RecordListTooLarge, InvalidRecord");
    }

    #[test]
    fn every_error_code_has_a_remedy() {
        for code in codes() {
            let (remedy, error) = (Remedy::of(code), Error::from(BrokerError::new(code)));
            let text = error.to_string();
            match (remedy, &error) {
                (Remedy::Record, Error::RecordRejected(_)) => {}
                (Remedy::Time, Error::RecordRejected(_) | Error::RequestRejected(_)) => panic!("{code}: {error:?}"),
                (Remedy::Time, _) => assert!(!text.is_empty()),
                (_, Error::RequestRejected(_)) => {
                    assert!(text.contains(&code.to_string()) && text.contains(&remedy.to_string()), "{text}");
                }
                (_, other) => panic!("{code}: {other:?}"),
            }
            // A code that the protocol calls retriable never needs an operator.
            assert!(!code.is_retriable() || remedy == Remedy::Time, "{code}: {remedy:?}");
        }
        for (code, remedy) in [
            (ResponseError::InvalidTimestamp, Remedy::Clock),
            (ResponseError::TopicAuthorizationFailed, Remedy::Access),
            (ResponseError::PolicyViolation, Remedy::Configuration),
            (ResponseError::InvalidTopicException, Remedy::Configuration),
            (ResponseError::FencedInstanceId, Remedy::Configuration),
            (ResponseError::UnsupportedCompressionType, Remedy::Version),
            (ResponseError::UnsupportedVersion, Remedy::Version),
            (ResponseError::ThrottlingQuotaExceeded, Remedy::Time),
            (ResponseError::CorruptMessage, Remedy::Time),
            (ResponseError::UnknownTopicOrPartition, Remedy::Time),
            (ResponseError::Unknown(150), Remedy::Time),
        ] {
            assert_eq!(Remedy::of(code), remedy, "{code}");
        }
    }

    #[test]
    fn an_invalid_timestamp_names_the_clock_and_the_topic_settings() {
        let text = Error::from(BrokerError::new(ResponseError::InvalidTimestamp)).to_string();
        for word in ["clock", "message.timestamp.before.max.ms", "message.timestamp.after.max.ms"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
