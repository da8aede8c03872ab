use std::time::Duration;

use rskafka::client::{
    error::{Error as Rskafka, ProtocolError},
    partition::{OffsetAt, UnknownTopicHandling},
};
use runtime::Backoff;

use crate::{
    Error, Settings,
    bridge::{call, connect},
    call::{Deadline, millis},
    connection::Connection,
    metadata,
};

/// Stands for `default.replication.factor` of the brokers.
const DEFAULT_REPLICAS: i16 = -1;

/// Creates a topic and waits until its partitions can be used. Returns false, and changes nothing, if it exists.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn create_topic(settings: &Settings, topic: &str, partitions: i32) -> Result<bool, Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        check_reachable(settings, deadline).await?;
        let client = connect(settings).await?;
        let controller = client.controller_client()?;
        let created =
            match controller.create_topic(topic, partitions, DEFAULT_REPLICAS, millis(settings.deadline)).await {
                Ok(()) => true,
                Err(Rskafka::ServerError { protocol_error: ProtocolError::TopicAlreadyExists, .. }) => false,
                Err(error) => return Err(error.into()),
            };
        // The controller responds before the brokers have the topic's metadata.
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        let count = loop {
            match count_partitions(&client, topic).await {
                Err(Error::UnknownTopic) => backoff.pause().await,
                count => break count?,
            }
        };
        // The metadata may name a leader before it is one; rskafka retries until it responds.
        for partition in 0..count {
            let leader = client.partition_client(topic, partition, UnknownTopicHandling::Retry).await?;
            leader.get_offset(OffsetAt::Latest).await?;
        }
        Ok(created)
    };
    call("create_topic", deadline, work).await
}

/// Deletes a topic with all its records.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if the broker is unavailable or rejects the request.
pub async fn delete_topic(settings: &Settings, topic: &str) -> Result<(), Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        check_reachable(settings, deadline).await?;
        let controller = connect(settings).await?.controller_client()?;
        Ok(controller.delete_topic(topic, millis(settings.deadline)).await?)
    };
    call("delete_topic", deadline, work).await
}

/// Connects to the controller first, for an error that names it: rskafka retries until the deadline, and its error does not.
async fn check_reachable(settings: &Settings, deadline: Deadline) -> Result<(), Error> {
    let controller = metadata::controller(settings, deadline).await?;
    // Boxed, because a connection is large, and would be part of every caller's future.
    Box::pin(Connection::open(&controller, settings, deadline)).await.map(drop)
}

/// Call it inside [`call`].
async fn count_partitions(client: &rskafka::client::Client, topic: &str) -> Result<i32, Error> {
    let topics = client.list_topics().await?;
    let found = topics.iter().find(|found| found.name == topic).filter(|found| !found.partitions.is_empty());
    found.map(|found| found.partitions.len() as i32).ok_or(Error::UnknownTopic)
}
