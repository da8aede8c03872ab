use config::HostPort;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{ApiKey, MetadataRequest, MetadataResponse, TopicName, metadata_request::MetadataRequestTopic},
    protocol::StrBytes,
};
use runtime::within;

use crate::{Error, Malformed, Settings, connection::Connection};

/// Every broker since 0.11 speaks it, and it can be asked not to make the topic.
const METADATA: i16 = 4;

/// Connects to the leader of a partition, for which the bootstrap brokers are asked one after the other.
pub(crate) async fn connect(settings: &Settings, topic: &TopicName, partition: i32) -> Result<Connection, Error> {
    let brokers = &settings.bootstrap.0;
    // One that hangs leaves the others their part of the time.
    let share = settings.deadline / u32::try_from(brokers.len()).unwrap_or(u32::MAX).max(1);
    let mut result = Err(Error::UnknownTopic);
    for broker in brokers {
        result = match within(share, find(settings, broker, topic, partition)).await {
            Ok(found) => found,
            Err(elapsed) => Err(elapsed.into()),
        };
        if matches!(result, Ok(_) | Err(Error::UnknownTopic)) {
            break;
        }
    }
    let leader = result?;
    Ok(Connection::open(&leader.host, leader.port, settings.client_id).await?)
}

async fn find(settings: &Settings, broker: &HostPort, topic: &TopicName, partition: i32) -> Result<HostPort, Error> {
    let mut connection = Connection::open(&broker.host, broker.port, settings.client_id).await?;
    let request = MetadataRequest::default()
        .with_allow_auto_topic_creation(false)
        .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(topic.clone()))]));
    leader(connection.call(ApiKey::Metadata, METADATA, &request).await?, topic, partition)
}

fn leader(metadata: MetadataResponse, topic: &TopicName, partition: i32) -> Result<HostPort, Error> {
    let found = metadata.topics.into_iter().find(|found| found.name.as_ref() == Some(topic));
    let found = found.ok_or(Error::UnknownTopic)?;
    if let Some(error) = found.error_code.err() {
        return Err(error.into());
    }
    let found = found.partitions.into_iter().find(|found| found.partition_index == partition);
    let found = found.ok_or(Error::UnknownTopic)?;
    // Others, such as a replica that is away, do not matter for reading.
    if let Some(error @ ResponseError::LeaderNotAvailable) = found.error_code.err() {
        return Err(error.into());
    }
    let leader = metadata.brokers.into_iter().find(|broker| broker.node_id == found.leader_id);
    let leader = leader.ok_or(ResponseError::LeaderNotAvailable)?;
    let port = u16::try_from(leader.port).map_err(|_| Malformed::Answer)?;
    Ok(HostPort { host: StrBytes::to_string(&leader.host), port })
}
