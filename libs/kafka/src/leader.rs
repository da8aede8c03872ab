use std::sync::Arc;

use config::HostPort;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use crate::{
    BrokerError, Error, Malformed, Settings,
    call::{Deadline, answered, call},
    connection::Connection,
    error::NoneAnswered,
    unreachable::Address,
};

/// A topic as a broker knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    /// Its id; none where brokers have none.
    pub(crate) id: Option<Uuid>,
    /// The leader of each partition, by number; none where there is none now.
    pub(crate) leaders: Vec<Option<Address>>,
}

/// The leader of a partition.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) broker: Address,
    /// How often a leader was elected before; none where brokers do not tell.
    pub(crate) epoch: Option<i32>,
    /// The topic's id; none where brokers have none.
    pub(crate) topic_id: Option<Uuid>,
}

/// The brokers that there are, as one of those that settings name knows.
///
/// # Errors
/// If none of those can be asked.
pub async fn brokers(settings: &Settings) -> Result<Vec<HostPort>, Error> {
    let deadline = Deadline::new(settings.deadline);
    let brokers = ask(settings, deadline, None, |metadata| metadata.answer.brokers.iter().map(host_port).collect());
    call("brokers", deadline, brokers).await
}

/// How many partitions a topic has.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if the brokers cannot be asked.
pub async fn partitions(settings: &Settings, topic: &str) -> Result<i32, Error> {
    let (name, deadline) = (TopicName(StrBytes::from_string(topic.to_owned())), Deadline::new(settings.deadline));
    let topic = call("partitions", deadline, topic_of(settings, deadline, &name)).await?;
    i32::try_from(topic.leaders.len()).map_err(|_| Malformed::Answer.into())
}

/// The leader of each partition of a topic, by number; none where there is none now.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if the brokers cannot be asked.
pub async fn leaders(settings: &Settings, topic: &str) -> Result<Vec<Option<HostPort>>, Error> {
    let (name, deadline) = (TopicName(StrBytes::from_string(topic.to_owned())), Deadline::new(settings.deadline));
    let topic = call("leaders", deadline, topic_of(settings, deadline, &name)).await?;
    Ok(topic.leaders.into_iter().map(|leader| leader.map(|leader| leader.broker)).collect())
}

/// Who leads a partition, and whom it belongs to; to be used inside [`call`].
pub(crate) async fn of_partition(
    settings: &Settings,
    deadline: Deadline,
    name: &TopicName,
    partition: i32,
) -> Result<Leader, Error> {
    let leader = ask(settings, deadline, Some(name), |metadata| {
        let topic = topic(&metadata.answer, name)?;
        let found = topic.partitions.iter().find(|found| found.partition_index == partition);
        let found = found.ok_or(Error::UnknownTopic)?;
        let broker = leader(metadata, found)?;
        Ok(Leader { broker, epoch: (found.leader_epoch >= 0).then_some(found.leader_epoch), topic_id: id(topic) })
    });
    leader.await
}

/// A topic with all its leaders; to be used inside [`call`].
pub(crate) async fn topic_of(settings: &Settings, deadline: Deadline, name: &TopicName) -> Result<Topic, Error> {
    let topic = ask(settings, deadline, Some(name), |metadata| {
        let topic = topic(&metadata.answer, name)?;
        let leader_of = |number: usize| {
            let is_it = |found: &&MetadataResponsePartition| usize::try_from(found.partition_index) == Ok(number);
            leader(metadata, topic.partitions.iter().find(is_it)?).ok()
        };
        Ok(Topic { id: id(topic), leaders: (0..topic.partitions.len()).map(leader_of).collect() })
    });
    topic.await
}

/// The broker that makes and deletes topics; to be used inside [`call`].
pub(crate) async fn controller(settings: &Settings, deadline: Deadline) -> Result<Address, Error> {
    let controller = ask(settings, deadline, None, |metadata| {
        let found = metadata.answer.brokers.iter().find(|broker| broker.node_id == metadata.answer.controller_id);
        metadata.address(found.ok_or(ResponseError::LeaderNotAvailable)?)
    });
    controller.await
}

/// What a broker knows of all of them.
struct Metadata<'a> {
    answer: MetadataResponse,
    told_by: &'a HostPort,
}

impl Metadata<'_> {
    fn address(&self, broker: &MetadataResponseBroker) -> Result<Address, Error> {
        Ok(Address { broker: host_port(broker)?, advertised_by: Some(self.told_by.clone()) })
    }
}

/// Asks the bootstrap brokers, one after the other, until the metadata of one can be used.
async fn ask<T>(
    settings: &Settings,
    deadline: Deadline,
    topic: Option<&TopicName>,
    read: impl Fn(&Metadata<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let brokers = &settings.bootstrap.0;
    let mut errors = Vec::new();
    for (number, broker) in brokers.iter().enumerate() {
        // One that hangs leaves the others their part of the time.
        let share = deadline.share(brokers.len() - number);
        // Boxed, because an answer with its connection is large, and would be part of every caller's future.
        let result = match Box::pin(metadata(settings, broker, topic, share)).await {
            Ok(answer) => read(&Metadata { answer, told_by: broker }),
            Err(error) => Err(error),
        };
        match result {
            Err(error @ (Error::UnknownTopic | Error::Rejected(_))) => return Err(error),
            Err(error) => errors.push(error),
            ok => return ok,
        }
    }
    match errors.len() {
        0 => Err(Error::UnknownTopic),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Away(Arc::new(NoneAnswered(errors)))),
    }
}

async fn metadata(
    settings: &Settings,
    broker: &HostPort,
    topic: Option<&TopicName>,
    deadline: Deadline,
) -> Result<MetadataResponse, Error> {
    let mut connection = Connection::open(&Address::of_settings(broker), settings.client_id, deadline).await?;
    let topics = topic.map(|topic| MetadataRequestTopic::default().with_name(Some(topic.clone())));
    let request = MetadataRequest::default()
        .with_allow_auto_topic_creation(false)
        .with_topics(Some(topics.into_iter().collect()));
    let metadata = connection.call(&request).await?;
    match metadata.error_code.err() {
        Some(error) => Err(connection.answered::<MetadataRequest>(error, None)),
        None => Ok(metadata),
    }
}

fn topic<'a>(metadata: &'a MetadataResponse, name: &TopicName) -> Result<&'a MetadataResponseTopic, Error> {
    let found = metadata.topics.iter().find(|found| found.name.as_ref() == Some(name));
    let found = found.ok_or(Error::UnknownTopic)?;
    match found.error_code.err() {
        Some(error) => Err(answered("Metadata", BrokerError::new(error))),
        None if found.partitions.is_empty() => Err(Error::UnknownTopic),
        None => Ok(found),
    }
}

fn id(topic: &MetadataResponseTopic) -> Option<Uuid> {
    Some(topic.topic_id).filter(|id| !id.is_nil())
}

fn leader(metadata: &Metadata<'_>, partition: &MetadataResponsePartition) -> Result<Address, Error> {
    // Others, such as a replica that is away, do not matter.
    if let Some(error @ ResponseError::LeaderNotAvailable) = partition.error_code.err() {
        return Err(error.into());
    }
    let leader = metadata.answer.brokers.iter().find(|broker| broker.node_id == partition.leader_id);
    metadata.address(leader.ok_or(ResponseError::LeaderNotAvailable)?)
}

fn host_port(broker: &MetadataResponseBroker) -> Result<HostPort, Error> {
    let port = u16::try_from(broker.port).map_err(|_| Malformed::Answer)?;
    Ok(HostPort { host: StrBytes::to_string(&broker.host), port })
}
