//! The progress of a consumer, committed to a consumer group.

use std::collections::BTreeMap;

use config::HostPort;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        FindCoordinatorRequest, FindCoordinatorResponse, GroupId, OffsetCommitRequest, OffsetCommitResponse,
        OffsetFetchRequest, OffsetFetchResponse, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
    },
};

use crate::{
    Error, Settings,
    call::{Deadline, call, text},
    connection::Connection,
    metadata::{Answer, MetadataCache, host_port, of_bootstrap_broker},
    unreachable::Address,
    versions::requests,
};

requests! {
    // Since version 1 there is a kind of coordinator; since version 4 a request has several groups.
    FindCoordinatorRequest => FindCoordinatorResponse, FindCoordinator, 1..=3;
    // Since version 10 with topic ids, which kafka-protocol does not have yet.
    OffsetCommitRequest => OffsetCommitResponse, OffsetCommit, 2..=9;
    // Since version 3 with a throttle time; since version 8 a request has several groups.
    OffsetFetchRequest => OffsetFetchResponse, OffsetFetch, 3..=7;
}

/// The key type of a group coordinator.
const GROUP: i8 = 0;

/// The coordinator of a group, with a connection between calls.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) settings: Settings,
    pub(crate) group: GroupId,
    pub(crate) metadata_cache: MetadataCache,
    connection: Option<Connection>,
}

impl Coordinator {
    pub(crate) fn new(settings: Settings, group: &str) -> Self {
        Self { settings, group: GroupId(text(group)), metadata_cache: MetadataCache::default(), connection: None }
    }

    /// The deadline of a call that begins now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::new(self.settings.deadline)
    }

    /// Takes the connection, or connects. After an error it is not [kept](Self::keep).
    pub(crate) async fn connect(&mut self, deadline: Deadline) -> Result<Connection, Error> {
        match self.connection.take() {
            Some(connection) => connection.reuse(&self.settings, deadline).await,
            None => connect_to_coordinator(&self.settings, &self.group, deadline, &mut self.metadata_cache).await,
        }
    }

    /// Keeps the connection for the next call.
    pub(crate) fn keep(&mut self, connection: Connection) {
        self.connection = Some(connection);
    }
}

/// Commits offsets of a topic to a group without being a member of it, for programs that show a group's lag.
///
/// Brokers accept them as long as the group has no members. The caller keeps the offsets that it reads from itself: these are
/// never read back.
#[derive(Debug)]
pub struct GroupProgress {
    coordinator: Coordinator,
    topic: TopicName,
}

impl GroupProgress {
    /// Connects at its first commit, and again after an error.
    pub fn new(settings: Settings, group: &str, topic: &str) -> Self {
        Self { coordinator: Coordinator::new(settings, group), topic: TopicName(text(topic)) }
    }

    /// Commits the offset of the next record of each partition.
    ///
    /// # Errors
    /// [`Error::RequestRejected`] if the group or the topic is not permitted; [`Error::UnknownTopic`] if there is no such
    /// topic or partition; otherwise if the coordinator is unavailable, or the group has members (`UnknownMemberId`).
    pub async fn commit(&mut self, next: &BTreeMap<i32, i64>) -> Result<(), Error> {
        let coordinator = &mut self.coordinator;
        if let Some(until) = coordinator.connection.as_ref().and_then(Connection::throttled_until) {
            smol::Timer::at(until).await;
        }
        let topics = vec![committed_topic(&self.topic, next)];
        let request = OffsetCommitRequest::default().with_group_id(coordinator.group.clone()).with_topics(topics);
        let deadline = coordinator.deadline();
        let work = async {
            let mut connection = coordinator.connect(deadline).await?;
            let response = connection.call(&request).await?;
            let committed = response.topics.iter().flat_map(|topic| &topic.partitions);
            if let Some(error) = committed.into_iter().find_map(|partition| partition.error_code.err()) {
                return Err(connection.broker_error::<OffsetCommitRequest>(error, None));
            }
            coordinator.keep(connection);
            Ok(())
        };
        // Boxed, because a connection is large, and would be part of every caller's future.
        call("commit_progress", deadline, Box::pin(work)).await
    }
}

/// The offset of the next record of each partition, for OffsetCommit.
pub(crate) fn committed_topic(topic: &TopicName, next: &BTreeMap<i32, i64>) -> OffsetCommitRequestTopic {
    let partition = |(partition, offset): (&i32, &i64)| {
        let committed = OffsetCommitRequestPartition::default();
        committed.with_partition_index(*partition).with_committed_offset(*offset)
    };
    OffsetCommitRequestTopic::default().with_name(topic.clone()).with_partitions(next.iter().map(partition).collect())
}

/// The partitions of OffsetFetch.
pub(crate) fn requested_topic(topic: &TopicName, partitions: &[i32]) -> OffsetFetchRequestTopic {
    OffsetFetchRequestTopic::default().with_name(topic.clone()).with_partition_indexes(partitions.to_vec())
}

/// The committed offsets in a response to OffsetFetch; where none was committed there is none.
pub(crate) fn committed_in(response: &OffsetFetchResponse) -> Result<BTreeMap<i32, i64>, ResponseError> {
    let partitions = || response.topics.iter().flat_map(|topic| &topic.partitions);
    let mut errors = std::iter::once(response.error_code).chain(partitions().map(|partition| partition.error_code));
    if let Some(error) = errors.find_map(|code| code.err()) {
        return Err(error);
    }
    let committed = partitions().filter(|partition| partition.committed_offset >= 0);
    Ok(committed.map(|partition| (partition.partition_index, partition.committed_offset)).collect())
}

/// A connection to the group's coordinator, which the first bootstrap broker that answers names.
async fn connect_to_coordinator(
    settings: &Settings,
    group: &GroupId,
    deadline: Deadline,
    cache: &mut MetadataCache,
) -> Result<Connection, Error> {
    let request = FindCoordinatorRequest::default().with_key(group.0.clone()).with_key_type(GROUP);
    let request = &request;
    let find = |broker: &HostPort, part| {
        let broker = broker.clone();
        async move {
            let mut connection = Connection::open(&Address::bootstrap(&broker), settings, part).await?;
            let response = connection.call(request).await?;
            if let Some(error) = response.error_code.err() {
                let message = response.error_message.as_deref();
                return Err(connection.broker_error::<FindCoordinatorRequest>(error, message));
            }
            let address = Address { broker: host_port(&response.host, response.port)?, advertised_by: Some(broker) };
            Ok(Answer::Certain(address))
        }
    };
    let coordinator = of_bootstrap_broker(settings, deadline, cache.next_bootstrap(), find).await?;
    Connection::open(&coordinator, settings, deadline).await
}
