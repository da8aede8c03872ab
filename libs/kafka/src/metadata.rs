//! Metadata of brokers and topics, from the bootstrap brokers.

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
    call::{Deadline, broker_error, call, text},
    connection::Connection,
    error::NoBootstrapBroker,
    unreachable::Address,
};

/// Metadata of a topic.
#[derive(Debug)]
pub(crate) struct Topic {
    /// None where brokers have no topic ids.
    pub(crate) id: Option<Uuid>,
    /// The leader of each partition, by number; none while it has none.
    pub(crate) leaders: Vec<Option<Address>>,
}

/// The leader of a partition.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) broker: Address,
    /// The leader epoch; none where brokers do not send it.
    pub(crate) epoch: Option<i32>,
    /// None where brokers have no topic ids.
    pub(crate) topic_id: Option<Uuid>,
}

/// The brokers of the cluster.
///
/// # Errors
/// If no bootstrap broker is available.
pub async fn brokers(settings: &Settings) -> Result<Vec<HostPort>, Error> {
    let deadline = Deadline::new(settings.deadline);
    let read = |metadata: &Metadata<'_>| {
        metadata.response.brokers.iter().map(|broker| host_port(&broker.host, broker.port)).collect()
    };
    call("brokers", deadline, query(settings, deadline, None, read)).await
}

/// The number of partitions of a topic.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if no bootstrap broker is available.
pub async fn partitions(settings: &Settings, topic_name: &str) -> Result<i32, Error> {
    let (name, deadline) = (TopicName(text(topic_name)), Deadline::new(settings.deadline));
    let topic = call("partitions", deadline, topic(settings, deadline, &name)).await?;
    i32::try_from(topic.leaders.len()).map_err(|_| Malformed::Response.into())
}

/// The leader of each partition of a topic, by number; none while it has none.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if no bootstrap broker is available.
pub async fn leaders(settings: &Settings, topic_name: &str) -> Result<Vec<Option<HostPort>>, Error> {
    let (name, deadline) = (TopicName(text(topic_name)), Deadline::new(settings.deadline));
    let topic = call("leaders", deadline, topic(settings, deadline, &name)).await?;
    Ok(topic.leaders.into_iter().map(|leader| leader.map(|leader| leader.broker)).collect())
}

/// The leader of a partition. Call it inside [`call`].
pub(crate) async fn leader(
    settings: &Settings,
    deadline: Deadline,
    name: &TopicName,
    partition: i32,
) -> Result<Leader, Error> {
    let leader = query(settings, deadline, Some(name), |metadata| {
        let topic = metadata.topic(name)?;
        let found = topic.partitions.iter().find(|found| found.partition_index == partition);
        let found = found.ok_or(Error::UnknownTopic)?;
        let broker = metadata.leader(found)?;
        Ok(Leader { broker, epoch: (found.leader_epoch >= 0).then_some(found.leader_epoch), topic_id: id(topic) })
    });
    leader.await
}

/// A topic with the leaders of its partitions. Call it inside [`call`].
pub(crate) async fn topic(settings: &Settings, deadline: Deadline, name: &TopicName) -> Result<Topic, Error> {
    let topic = query(settings, deadline, Some(name), |metadata| {
        let topic = metadata.topic(name)?;
        let leader_of = |number: usize| {
            let is_it = |found: &&MetadataResponsePartition| usize::try_from(found.partition_index) == Ok(number);
            metadata.leader(topic.partitions.iter().find(is_it)?).ok()
        };
        Ok(Topic { id: id(topic), leaders: (0..topic.partitions.len()).map(leader_of).collect() })
    });
    topic.await
}

/// The controller, which creates and deletes topics. Call it inside [`call`].
pub(crate) async fn controller(settings: &Settings, deadline: Deadline) -> Result<Address, Error> {
    let controller = query(settings, deadline, None, |metadata| {
        let response = &metadata.response;
        let found = response.brokers.iter().find(|broker| broker.node_id == response.controller_id);
        metadata.address(found.ok_or(ResponseError::LeaderNotAvailable)?)
    });
    controller.await
}

/// A metadata response and the bootstrap broker that sent it.
struct Metadata<'a> {
    response: MetadataResponse,
    sent_by: &'a HostPort,
}

impl Metadata<'_> {
    fn topic(&self, name: &TopicName) -> Result<&MetadataResponseTopic, Error> {
        let found = self.response.topics.iter().find(|found| found.name.as_ref() == Some(name));
        let found = found.ok_or(Error::UnknownTopic)?;
        match found.error_code.err() {
            Some(error) => Err(broker_error("Metadata", BrokerError::new(error))),
            None if found.partitions.is_empty() => Err(Error::UnknownTopic),
            None => Ok(found),
        }
    }

    fn leader(&self, partition: &MetadataResponsePartition) -> Result<Address, Error> {
        // Other errors, such as an unavailable replica, do not matter.
        if let Some(error @ ResponseError::LeaderNotAvailable) = partition.error_code.err() {
            return Err(error.into());
        }
        let leader = self.response.brokers.iter().find(|broker| broker.node_id == partition.leader_id);
        self.address(leader.ok_or(ResponseError::LeaderNotAvailable)?)
    }

    fn address(&self, broker: &MetadataResponseBroker) -> Result<Address, Error> {
        Ok(Address { broker: host_port(&broker.host, broker.port)?, advertised_by: Some(self.sent_by.clone()) })
    }
}

/// Requests metadata from one bootstrap broker after the other, until `read` succeeds.
async fn query<T>(
    settings: &Settings,
    deadline: Deadline,
    topic: Option<&TopicName>,
    read: impl Fn(&Metadata<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let read = &read;
    let query = |broker, part| async move {
        let response = request(settings, broker, topic, part).await?;
        read(&Metadata { response, sent_by: broker })
    };
    of_bootstrap_broker(settings, deadline, query).await
}

/// Makes a request to one bootstrap broker after the other, each with its part of the time, until one succeeds or rejects it.
pub(crate) async fn of_bootstrap_broker<'a, T, F: Future<Output = Result<T, Error>>>(
    settings: &'a Settings,
    deadline: Deadline,
    request: impl Fn(&'a HostPort, Deadline) -> F,
) -> Result<T, Error> {
    let brokers = &settings.bootstrap.0;
    let mut errors = Vec::new();
    for (number, broker) in brokers.iter().enumerate() {
        // A broker that hangs leaves the others their part of the time.
        let part = deadline.split(brokers.len() - number);
        // Boxed, because a response with its connection is large, and would be part of every caller's future.
        match Box::pin(request(broker, part)).await {
            Err(error @ (Error::UnknownTopic | Error::RequestRejected(_))) => return Err(error),
            Err(error) => errors.push(error),
            ok => return ok,
        }
    }
    match errors.len() {
        0 => Err(Error::UnknownTopic),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Unavailable(Arc::new(NoBootstrapBroker(errors)))),
    }
}

async fn request(
    settings: &Settings,
    broker: &HostPort,
    topic: Option<&TopicName>,
    deadline: Deadline,
) -> Result<MetadataResponse, Error> {
    let mut connection = Connection::open(&Address::bootstrap(broker), settings, deadline).await?;
    let topics = topic.map(|topic| MetadataRequestTopic::default().with_name(Some(topic.clone())));
    let request = MetadataRequest::default()
        .with_allow_auto_topic_creation(false)
        .with_topics(Some(topics.into_iter().collect()));
    let response = connection.call(&request).await?;
    match response.error_code.err() {
        Some(error) => Err(connection.broker_error::<MetadataRequest>(error, None)),
        None => Ok(response),
    }
}

fn id(topic: &MetadataResponseTopic) -> Option<Uuid> {
    Some(topic.topic_id).filter(|id| !id.is_nil())
}

/// The address of a broker in a response.
pub(crate) fn host_port(host: &StrBytes, port: i32) -> Result<HostPort, Error> {
    let port = u16::try_from(port).map_err(|_| Malformed::Response)?;
    Ok(HostPort { host: StrBytes::to_string(host), port })
}
