use std::{collections::BTreeMap, time::Duration};

use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        CreateTopicsRequest, CreateTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
    },
    protocol::StrBytes,
};
use rskafka::client::partition::{OffsetAt, UnknownTopicHandling};
use runtime::Backoff;

use crate::{
    Error, Malformed, Settings,
    bridge::{call, connect},
    call::{Deadline, millis, text},
    connection::Connection,
    metadata,
    versions::requests,
};

requests! {
    // Since version 4 the broker chooses the number of replicas.
    CreateTopicsRequest => CreateTopicsResponse, CreateTopics, 4..=7;
    DescribeConfigsRequest => DescribeConfigsResponse, DescribeConfigs, 1..=4;
}

/// Stands for `default.replication.factor` of the brokers.
const DEFAULT_REPLICAS: i16 = -1;

/// The resource type of a topic.
const TOPIC: i8 = 2;

/// Creates a topic with the brokers' configuration and waits until its partitions can be used. Returns false, and changes
/// nothing, if it exists.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn create_topic(settings: &Settings, topic: &str, partitions: i32) -> Result<bool, Error> {
    create_topic_with(settings, topic, partitions, &[]).await
}

/// As [`create_topic`], with values of the topic's configuration, such as `cleanup.policy`. rskafka cannot set them.
///
/// # Errors
/// As [`create_topic`].
pub async fn create_topic_with(
    settings: &Settings,
    topic: &str,
    partitions: i32,
    configuration: &[(&str, &str)],
) -> Result<bool, Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        // Boxed, because a connection is large, and would be part of every caller's future.
        let created = Box::pin(create(settings, deadline, topic, partitions, configuration)).await?;
        let client = connect(settings).await?;
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

async fn create(
    settings: &Settings,
    deadline: Deadline,
    topic: &str,
    partitions: i32,
    configuration: &[(&str, &str)],
) -> Result<bool, Error> {
    let config = |(name, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
    };
    let topic = CreatableTopic::default()
        .with_name(TopicName(text(topic)))
        .with_num_partitions(partitions)
        .with_replication_factor(DEFAULT_REPLICAS)
        .with_configs(configuration.iter().map(config).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(millis(deadline.remaining()));
    let controller = metadata::controller(settings, deadline).await?;
    let mut connection = Connection::open(&controller, settings, deadline).await?;
    let response = connection.call(&request).await?;
    let created = response.topics.first().ok_or(Malformed::Response)?;
    match created.error_code.err() {
        None => Ok(true),
        Some(ResponseError::TopicAlreadyExists) => Ok(false),
        Some(error) => Err(connection.broker_error::<CreateTopicsRequest>(error, created.error_message.as_deref())),
    }
}

/// Values of a topic's configuration that are in force: the topic's own, or the brokers'. What the broker does not tell is
/// missing.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if the broker is unavailable, rejects the request or, as
/// Nisshi, cannot answer it.
pub async fn topic_configuration(
    settings: &Settings,
    topic: &str,
    names: &[&str],
) -> Result<BTreeMap<String, String>, Error> {
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(text(topic))
            .with_configuration_keys(Some(names.iter().map(|name| text(name)).collect()));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let controller = metadata::controller(settings, deadline).await?;
        let mut connection = Connection::open(&controller, settings, deadline).await?;
        let response = connection.call(&request).await?;
        let described = response.results.into_iter().next().ok_or(Malformed::Response)?;
        if let Some(error) = described.error_code.err() {
            return Err(connection.broker_error::<DescribeConfigsRequest>(error, described.error_message.as_deref()));
        }
        let values = described.configs.into_iter().filter_map(|config| Some((config.name, config.value?)));
        Ok(values.map(|(name, value)| (StrBytes::to_string(&name), StrBytes::to_string(&value))).collect())
    };
    crate::call::call("topic_configuration", deadline, Box::pin(work)).await
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
