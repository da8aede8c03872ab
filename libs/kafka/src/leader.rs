use config::HostPort;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ApiKey, MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition},
    },
    protocol::StrBytes,
};
use runtime::within;

use crate::{Error, Malformed, Settings, call::call, connection::Connection};

/// Every broker since 0.11 speaks it, and it can be asked not to make the topic.
const METADATA: i16 = 4;

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
    let topic = TopicName(StrBytes::from_string(topic.to_owned()));
    call("leaders", settings.deadline, of_all(settings, &topic)).await
}

/// Connects to the leader of a partition.
pub(crate) async fn connect(settings: &Settings, topic: &TopicName, partition: i32) -> Result<Connection, Error> {
    let leader = ask(settings, Some(topic), |metadata| {
        let found = partitions(metadata, topic)?.iter().find(|found| found.partition_index == partition);
        leader(metadata, found.ok_or(Error::UnknownTopic)?)
    });
    let leader = leader.await?;
    Ok(Connection::open(&leader, settings.client_id).await?)
}

/// See [`leaders`]; to be used inside [`call`].
pub(crate) async fn of_all(settings: &Settings, topic: &TopicName) -> Result<Vec<Option<HostPort>>, Error> {
    let leaders = ask(settings, Some(topic), |metadata| {
        let found = partitions(metadata, topic)?;
        let leader_of = |number: usize| {
            let found = found.iter().find(|found| usize::try_from(found.partition_index) == Ok(number))?;
            leader(metadata, found).ok()
        };
        Ok((0..found.len()).map(leader_of).collect())
    });
    leaders.await
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
    connection.call(ApiKey::Metadata, METADATA, &request).await
}

fn partitions<'a>(metadata: &'a MetadataResponse, topic: &TopicName) -> Result<&'a [MetadataResponsePartition], Error> {
    let found = metadata.topics.iter().find(|found| found.name.as_ref() == Some(topic));
    let found = found.ok_or(Error::UnknownTopic)?;
    match found.error_code.err() {
        Some(error) => Err(error.into()),
        None if found.partitions.is_empty() => Err(Error::UnknownTopic),
        None => Ok(&found.partitions),
    }
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
