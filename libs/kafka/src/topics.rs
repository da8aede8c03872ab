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
    leader,
};

/// As many replicas as the brokers' `default.replication.factor` says.
const DEFAULT_REPLICAS: i16 = -1;

/// Makes a topic and waits until its partitions can be used; true if it was not there before. An existing topic is left as it
/// is, whatever its partitions.
///
/// # Errors
/// If the broker cannot be asked, or does not allow it.
pub async fn create_topic(settings: &Settings, topic: &str, partitions: i32) -> Result<bool, Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        is_reachable(settings, deadline).await?;
        let client = connect(settings).await?;
        let controller = client.controller_client()?;
        let new = match controller.create_topic(topic, partitions, DEFAULT_REPLICAS, millis(settings.deadline)).await {
            Ok(()) => true,
            Err(Rskafka::ServerError { protocol_error: ProtocolError::TopicAlreadyExists, .. }) => false,
            Err(error) => return Err(error.into()),
        };
        // A broker learns from the controller of it a little later than we do.
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        let known = loop {
            match count(&client, topic).await {
                Err(Error::UnknownTopic) => backoff.pause().await,
                known => break known?,
            }
        };
        // It may know who leads a partition before the leader does; rskafka asks until it answers.
        for partition in 0..known {
            let leader = client.partition_client(topic, partition, UnknownTopicHandling::Retry).await?;
            leader.get_offset(OffsetAt::Latest).await?;
        }
        Ok(new)
    };
    call("create_topic", deadline, work).await
}

/// Deletes a topic with all its records.
///
/// # Errors
/// If the broker cannot be asked, does not allow it, or has no such topic.
pub async fn delete_topic(settings: &Settings, topic: &str) -> Result<(), Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        is_reachable(settings, deadline).await?;
        let controller = connect(settings).await?.controller_client()?;
        Ok(controller.delete_topic(topic, millis(settings.deadline)).await?)
    };
    call("delete_topic", deadline, work).await
}

/// Whether the broker that is about to be asked can be: rskafka tries until the deadline and does not tell whom.
async fn is_reachable(settings: &Settings, deadline: Deadline) -> Result<(), Error> {
    let controller = leader::controller(settings, deadline).await?;
    // Boxed, because a connection is large, and would be part of every caller's future.
    Box::pin(Connection::open(&controller, settings.client_id, deadline)).await.map(drop)
}

/// To be used inside [`call`].
async fn count(client: &rskafka::client::Client, topic: &str) -> Result<i32, Error> {
    let topics = client.list_topics().await?;
    let found = topics.iter().find(|found| found.name == topic).filter(|found| !found.partitions.is_empty());
    found.map(|found| found.partitions.len() as i32).ok_or(Error::UnknownTopic)
}
