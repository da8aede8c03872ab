//! Metadata of brokers and topics, from the bootstrap brokers.
//!
//! A bootstrap broker that is cut off from the others, or has just been started, answers with outdated metadata, or that there is
//! no such topic. So what contradicts what a client has [read before](MetadataCache) is believed only if no other bootstrap broker knows better.

use std::{
    collections::BTreeMap,
    mem::discriminant,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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

/// How old the metadata of a connected client may become: the broker that it is connected to may be cut off from the others
/// without knowing. That of Kafka's Java client (`metadata.max.age.ms`).
pub(crate) const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// What is known of a topic whose metadata are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownTopic {
    /// Its id, if it is known.
    pub id: Option<Uuid>,
    /// It has at least so many partitions.
    pub partitions: i32,
}

/// What a client keeps of the metadata of its topic, to recognize outdated ones.
#[derive(Debug, Default)]
pub(crate) struct MetadataCache {
    /// The number of the bootstrap broker to ask first: another one each time, because the one before may have been wrong.
    next_bootstrap: usize,
    /// None where brokers have no topic ids. Then nothing is recognized.
    topic_id: Option<Uuid>,
    /// By partition.
    leader_epochs: BTreeMap<i32, i32>,
}

impl MetadataCache {
    /// The number of the bootstrap broker to ask first.
    pub(crate) fn next_bootstrap(&mut self) -> usize {
        let next = self.next_bootstrap;
        self.next_bootstrap = next.wrapping_add(1);
        next
    }

    /// Whether metadata with these leader epochs are older, or of another topic.
    fn is_contradicted(&self, topic_id: Option<Uuid>, mut epochs: impl Iterator<Item = (i32, i32)>) -> bool {
        let (Some(known), Some(found)) = (self.topic_id, topic_id) else { return false };
        let is_older = |(partition, epoch)| self.leader_epochs.get(&partition).is_some_and(|known| epoch < *known);
        known != found || epochs.any(is_older)
    }

    /// Adds leader epochs, or replaces everything if it is another topic.
    pub(crate) fn update(&mut self, topic_id: Option<Uuid>, epochs: impl Iterator<Item = (i32, i32)>) {
        if self.topic_id != topic_id {
            (self.topic_id, self.leader_epochs) = (topic_id, BTreeMap::new());
        }
        for (partition, epoch) in epochs {
            let known = self.leader_epochs.entry(partition).or_insert(epoch);
            *known = epoch.max(*known);
        }
    }
}

/// Metadata of a topic.
#[derive(Debug)]
pub(crate) struct Topic {
    /// None where brokers have no topic ids.
    pub(crate) id: Option<Uuid>,
    /// By partition, where brokers send them.
    pub(crate) leader_epochs: BTreeMap<i32, i32>,
    /// Whether it contradicts the cache, and no bootstrap broker knew better.
    pub(crate) is_doubtful: bool,
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

/// What a bootstrap broker has answered.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Certain(T),
    /// Believed if no other broker answers with something certain.
    Doubtful(T),
    /// Believed if all other brokers answer, and none of them with something certain.
    Contested(T),
}

impl<T> Answer<T> {
    fn new(value: T, is_doubtful: bool) -> Self {
        if is_doubtful { Self::Doubtful(value) } else { Self::Certain(value) }
    }
}

/// The brokers of the cluster.
///
/// # Errors
/// If no bootstrap broker is available.
pub async fn brokers(settings: &Settings) -> Result<Vec<HostPort>, Error> {
    let deadline = Deadline::new(settings.deadline);
    let read = |metadata: &Metadata<'_>| {
        let brokers = metadata.response.brokers.iter().map(|broker| host_port(&broker.host, broker.port));
        brokers.collect::<Result<_, _>>().map(Answer::Certain)
    };
    call("brokers", deadline, query(settings, deadline, 0, None, read)).await
}

/// The number of partitions of a topic.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if no bootstrap broker is available.
pub async fn partitions(settings: &Settings, topic_name: &str) -> Result<i32, Error> {
    let (name, deadline) = (TopicName(text(topic_name)), Deadline::new(settings.deadline));
    let topic = call("partitions", deadline, topic(settings, deadline, &name, &mut MetadataCache::default())).await?;
    i32::try_from(topic.leaders.len()).map_err(|_| Malformed::Response.into())
}

/// The number of partitions of a topic of which something is known. No topic loses partitions, so a broker that says fewer is cut off
/// from the others, or the topic was recreated. The latter is believed if the id is another one and no bootstrap broker knows the
/// topic as before; without ids, only if all bootstrap brokers say fewer. Each call asks another one first.
///
/// # Errors
/// As [`partitions`], and if a bootstrap broker that might know better is unavailable.
pub async fn partitions_of_known(settings: &Settings, topic_name: &str, known: KnownTopic) -> Result<i32, Error> {
    static NEXT_BOOTSTRAP: AtomicUsize = AtomicUsize::new(0);
    let (name, deadline) = (TopicName(text(topic_name)), Deadline::new(settings.deadline));
    let first = NEXT_BOOTSTRAP.fetch_add(1, Ordering::Relaxed);
    let count = query(settings, deadline, first, Some(&name), |metadata| {
        let topic = metadata.topic(&name)?;
        let count = i32::try_from(topic.partitions.len()).map_err(|_| Malformed::Response)?;
        Ok(match known.id.zip(id(topic)) {
            _ if count >= known.partitions => Answer::Certain(count),
            Some((known_id, found)) if known_id == found => Answer::Certain(known.partitions),
            Some(_) => Answer::Doubtful(count),
            None => Answer::Contested(count),
        })
    });
    call("partitions", deadline, count).await
}

/// The leader of each partition of a topic, by number; none while it has none.
///
/// # Errors
/// [`Error::UnknownTopic`] if there is no such topic; otherwise if no bootstrap broker is available.
pub async fn leaders(settings: &Settings, topic_name: &str) -> Result<Vec<Option<HostPort>>, Error> {
    let (name, deadline) = (TopicName(text(topic_name)), Deadline::new(settings.deadline));
    let topic = call("leaders", deadline, topic(settings, deadline, &name, &mut MetadataCache::default())).await?;
    Ok(topic.leaders.into_iter().map(|leader| leader.map(|leader| leader.broker)).collect())
}

/// The leader of a partition. Call it inside [`call`].
pub(crate) async fn leader(
    settings: &Settings,
    deadline: Deadline,
    name: &TopicName,
    partition: i32,
    cache: &mut MetadataCache,
) -> Result<Leader, Error> {
    let (first, cache) = (cache.next_bootstrap(), &*cache);
    let leader = query(settings, deadline, first, Some(name), |metadata| {
        let topic = metadata.topic(name)?;
        let found = topic.partitions.iter().find(|found| found.partition_index == partition);
        let found = found.ok_or(Error::UnknownTopic)?;
        let broker = metadata.leader(found)?;
        let (epoch, topic_id) = ((found.leader_epoch >= 0).then_some(found.leader_epoch), id(topic));
        let is_doubtful = cache.is_contradicted(topic_id, epoch.map(|epoch| (partition, epoch)).into_iter());
        Ok(Answer::new(Leader { broker, epoch, topic_id }, is_doubtful))
    });
    leader.await
}

/// A topic with the leaders of its partitions. Call it inside [`call`].
pub(crate) async fn topic(
    settings: &Settings,
    deadline: Deadline,
    name: &TopicName,
    cache: &mut MetadataCache,
) -> Result<Topic, Error> {
    let (first, cache) = (cache.next_bootstrap(), &*cache);
    let topic = query(settings, deadline, first, Some(name), |metadata| {
        let topic = metadata.topic(name)?;
        let leader_of = |number: usize| {
            let is_it = |found: &&MetadataResponsePartition| usize::try_from(found.partition_index) == Ok(number);
            metadata.leader(topic.partitions.iter().find(is_it)?).ok()
        };
        let id = id(topic);
        let epochs = topic.partitions.iter().filter(|partition| partition.leader_epoch >= 0);
        let leader_epochs: BTreeMap<_, _> =
            epochs.map(|partition| (partition.partition_index, partition.leader_epoch)).collect();
        let is_doubtful =
            cache.is_contradicted(id, leader_epochs.iter().map(|(partition, epoch)| (*partition, *epoch)));
        let leaders = (0..topic.partitions.len()).map(leader_of).collect();
        Ok(Answer::new(Topic { id, leader_epochs, is_doubtful, leaders }, is_doubtful))
    });
    topic.await
}

/// The controller, which creates and deletes topics. Call it inside [`call`].
pub(crate) async fn controller(settings: &Settings, deadline: Deadline) -> Result<Address, Error> {
    let controller = query(settings, deadline, 0, None, |metadata| {
        let response = &metadata.response;
        let found = response.brokers.iter().find(|broker| broker.node_id == response.controller_id);
        metadata.address(found.ok_or(ResponseError::LeaderNotAvailable)?).map(Answer::Certain)
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

/// Requests metadata from one bootstrap broker after the other, from this one on, until `read` is certain.
async fn query<T>(
    settings: &Settings,
    deadline: Deadline,
    first: usize,
    topic: Option<&TopicName>,
    read: impl Fn(&Metadata<'_>) -> Result<Answer<T>, Error>,
) -> Result<T, Error> {
    let read = &read;
    let query = |broker, part| async move {
        let response = request(settings, broker, topic, part).await?;
        read(&Metadata { response, sent_by: broker })
    };
    of_bootstrap_broker(settings, deadline, first, query).await
}

/// Makes a request to one bootstrap broker after the other, from this one on, each with its part of the time, until one is
/// certain or two of them reject it alike.
pub(crate) async fn of_bootstrap_broker<'a, T, F: Future<Output = Result<Answer<T>, Error>>>(
    settings: &'a Settings,
    deadline: Deadline,
    first: usize,
    request: impl Fn(&'a HostPort, Deadline) -> F,
) -> Result<T, Error> {
    let brokers = &settings.bootstrap.0;
    let (mut doubtful, mut contested, mut rejection, mut errors) = (None, None, None, Vec::new());
    let in_turn = brokers.iter().cycle().skip(first % brokers.len().max(1)).take(brokers.len());
    for (number, broker) in in_turn.enumerate() {
        // A broker that hangs leaves the others their part of the time.
        let part = deadline.split(brokers.len() - number);
        // Boxed, because a response with its connection is large, and would be part of every caller's future.
        match Box::pin(request(broker, part)).await {
            Ok(Answer::Certain(answer)) => return Ok(answer),
            Ok(Answer::Doubtful(answer)) => doubtful = doubtful.or(Some(answer)),
            Ok(Answer::Contested(answer)) => contested = contested.or(Some(answer)),
            Err(error) if error.is_rejection() => match &rejection {
                Some(before) if discriminant(before) == discriminant(&error) => return Err(error),
                Some(_) => {}
                None => rejection = Some(error),
            },
            Err(error) => errors.push(error),
        }
    }
    let contested = contested.filter(|_| rejection.is_none() && errors.is_empty());
    match (doubtful.or(contested), rejection, errors.len()) {
        (Some(answer), _, _) => Ok(answer),
        (None, Some(rejection), _) => Err(rejection),
        (None, None, 0) => Err(Error::UnknownTopic),
        (None, None, 1) => Err(errors.remove(0)),
        (None, None, _) => Err(Error::Unavailable(Arc::new(NoBootstrapBroker(errors)))),
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
