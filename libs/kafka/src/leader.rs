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
use runtime::within;
use uuid::Uuid;

use crate::{Error, Malformed, Settings, call::call, connection::Connection};

/// A topic as a broker knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    /// Its id; none where brokers have none.
    pub(crate) id: Option<Uuid>,
    /// The leader of each partition, by number; none where there is none now.
    pub(crate) leaders: Vec<Option<HostPort>>,
}

/// The leader of a partition.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) broker: HostPort,
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
    let brokers = ask(settings, None, |metadata| metadata.brokers.iter().map(address).collect());
    call("brokers", settings.deadline, brokers).await
}

/// The leader of each partition of a topic, by number; none where there is none now.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if the brokers cannot be asked.
pub async fn leaders(settings: &Settings, topic: &str) -> Result<Vec<Option<HostPort>>, Error> {
    let name = TopicName(StrBytes::from_string(topic.to_owned()));
    Ok(call("leaders", settings.deadline, topic_of(settings, &name)).await?.leaders)
}

/// Who leads a partition, and whom it belongs to; to be used inside [`call`].
pub(crate) async fn of_partition(settings: &Settings, name: &TopicName, partition: i32) -> Result<Leader, Error> {
    let leader = ask(settings, Some(name), |metadata| {
        let topic = topic(metadata, name)?;
        let found = topic.partitions.iter().find(|found| found.partition_index == partition);
        let found = found.ok_or(Error::UnknownTopic)?;
        let broker = leader(metadata, found)?;
        Ok(Leader { broker, epoch: (found.leader_epoch >= 0).then_some(found.leader_epoch), topic_id: id(topic) })
    });
    leader.await
}

/// A topic with all its leaders; to be used inside [`call`].
pub(crate) async fn topic_of(settings: &Settings, name: &TopicName) -> Result<Topic, Error> {
    let topic = ask(settings, Some(name), |metadata| {
        let topic = topic(metadata, name)?;
        let leader_of = |number: usize| {
            let is_it = |found: &&MetadataResponsePartition| usize::try_from(found.partition_index) == Ok(number);
            leader(metadata, topic.partitions.iter().find(is_it)?).ok()
        };
        Ok(Topic { id: id(topic), leaders: (0..topic.partitions.len()).map(leader_of).collect() })
    });
    topic.await
}

/// Asks the bootstrap brokers, one after the other, until the metadata of one can be used.
async fn ask<T>(
    settings: &Settings,
    topic: Option<&TopicName>,
    read: impl Fn(&MetadataResponse) -> Result<T, Error>,
) -> Result<T, Error> {
    let brokers = &settings.bootstrap.0;
    // One that hangs leaves the others their part of the time.
    let share = settings.deadline / u32::try_from(brokers.len()).unwrap_or(u32::MAX).max(1);
    let mut result = Err(Error::UnknownTopic);
    for broker in brokers {
        // Boxed, because an answer with its connection is large, and would be part of every caller's future.
        result = match within(share, Box::pin(metadata(settings, broker, topic))).await {
            Ok(metadata) => metadata.and_then(|metadata| read(&metadata)),
            Err(elapsed) => Err(elapsed.into()),
        };
        if matches!(result, Ok(_) | Err(Error::UnknownTopic)) {
            break;
        }
    }
    result
}

async fn metadata(
    settings: &Settings,
    broker: &HostPort,
    topic: Option<&TopicName>,
) -> Result<MetadataResponse, Error> {
    let mut connection = Connection::open(broker, settings.client_id).await?;
    let topics = topic.map(|topic| MetadataRequestTopic::default().with_name(Some(topic.clone())));
    let request = MetadataRequest::default()
        .with_allow_auto_topic_creation(false)
        .with_topics(Some(topics.into_iter().collect()));
    let metadata = connection.call(&request).await?;
    match metadata.error_code.err() {
        Some(error) => Err(error.into()),
        None => Ok(metadata),
    }
}

fn topic<'a>(metadata: &'a MetadataResponse, name: &TopicName) -> Result<&'a MetadataResponseTopic, Error> {
    let found = metadata.topics.iter().find(|found| found.name.as_ref() == Some(name));
    let found = found.ok_or(Error::UnknownTopic)?;
    match found.error_code.err() {
        Some(error) => Err(error.into()),
        None if found.partitions.is_empty() => Err(Error::UnknownTopic),
        None => Ok(found),
    }
}

fn id(topic: &MetadataResponseTopic) -> Option<Uuid> {
    Some(topic.topic_id).filter(|id| !id.is_nil())
}

fn leader(metadata: &MetadataResponse, partition: &MetadataResponsePartition) -> Result<HostPort, Error> {
    // Others, such as a replica that is away, do not matter.
    if let Some(error @ ResponseError::LeaderNotAvailable) = partition.error_code.err() {
        return Err(error.into());
    }
    let leader = metadata.brokers.iter().find(|broker| broker.node_id == partition.leader_id);
    address(leader.ok_or(ResponseError::LeaderNotAvailable)?)
}

fn address(broker: &MetadataResponseBroker) -> Result<HostPort, Error> {
    let port = u16::try_from(broker.port).map_err(|_| Malformed::Answer)?;
    Ok(HostPort { host: StrBytes::to_string(&broker.host), port })
}
