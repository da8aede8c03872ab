use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ProduceRequest, ProduceResponse, TopicName,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
};
use runtime::Backoff;
use uuid::Uuid;

use crate::{
    BrokerError, Error, Malformed, Record, Settings,
    call::{Deadline, call, millis},
    connection::Connection,
    encode,
    metadata::{self, MetadataCache},
    unreachable::Address,
    versions::PRODUCE_BY_NAME,
};

/// acks=all: acknowledged once every in-sync replica has the batch.
const ALL_REPLICAS: i16 = -1;
/// A connection that was idle for longer is not reused: brokers close it, by default after ten minutes.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// How long a send retries partitions without a leader. An election after the creation of a topic is short, and the other
/// partitions should not wait for longer.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends records to the partitions of one topic.
///
/// [`send`](Self::send) takes `&mut self`, so at most one batch of each partition is in flight: batches are stored in the
/// order in which they are sent.
#[derive(Debug)]
pub struct Producer {
    settings: Settings,
    topic: TopicName,
    cluster: Option<Cluster>,
    max_metadata_age: Duration,
    metadata_cache: MetadataCache,
}

/// The leaders of the partitions, and usable connections to them.
#[derive(Debug)]
struct Cluster {
    read_at: Instant,
    topic_id: Option<Uuid>,
    leaders: Vec<Option<Address>>,
    connections: HashMap<Address, (Connection, Instant)>,
}

/// An encoded batch.
#[derive(Clone, Debug)]
struct EncodedBatch {
    bytes: Bytes,
    records: i64,
}

type Results = BTreeMap<i32, Result<Vec<i64>, Error>>;

impl Producer {
    /// A producer that connects at its first call, and again after an error.
    pub fn new(settings: Settings, topic: impl Into<String>) -> Self {
        Self {
            settings,
            topic: TopicName(StrBytes::from_string(topic.into())),
            cluster: None,
            max_metadata_age: metadata::MAX_AGE,
            metadata_cache: MetadataCache::default(),
        }
    }

    /// Refreshes the metadata when they are so old.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_max_metadata_age(self, max_metadata_age: Duration) -> Self {
        Self { max_metadata_age, ..self }
    }

    /// The number of partitions of the topic.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if there is no such topic; otherwise if no bootstrap broker is available.
    pub async fn partitions(&mut self) -> Result<i32, Error> {
        let cluster = self.cluster(Deadline::new(self.settings.deadline)).await?;
        i32::try_from(cluster.leaders.len()).map_err(|_| Malformed::Response.into())
    }

    /// The partitions whose leaders throttle this client because of a quota, and until when. A [`send`](Self::send) to them
    /// waits for it.
    pub fn throttled(&self) -> BTreeMap<i32, Instant> {
        let Some(cluster) = &self.cluster else { return BTreeMap::new() };
        let until = |leader: &Option<Address>| cluster.connections.get(leader.as_ref()?)?.0.throttled_until();
        (0..).zip(&cluster.leaders).filter_map(|(partition, leader)| Some((partition, until(leader)?))).collect()
    }

    async fn cluster(&mut self, deadline: Deadline) -> Result<&mut Cluster, Error> {
        let cluster = match self.cluster.take() {
            Some(cluster) if cluster.read_at.elapsed() < self.max_metadata_age => cluster,
            // If no bootstrap broker is available, or none knows as much, the metadata are used on.
            Some(cluster) => match self.read_metadata("refresh_metadata", deadline.split(2)).await {
                Ok(read) if !read.is_doubtful => self.use_metadata(read),
                _ => Cluster { read_at: Instant::now(), ..cluster },
            },
            None => {
                let read = self.read_metadata("connect", deadline).await?;
                self.use_metadata(read)
            }
        };
        Ok(self.cluster.insert(cluster))
    }

    async fn read_metadata(&mut self, name: &'static str, deadline: Deadline) -> Result<metadata::Topic, Error> {
        let topic = metadata::topic(&self.settings, deadline, &self.topic, &mut self.metadata_cache);
        call(name, deadline, topic).await
    }

    /// The cluster of these metadata, which the cache has from now on.
    fn use_metadata(&mut self, read: metadata::Topic) -> Cluster {
        let metadata::Topic { id, leader_epochs, leaders, .. } = read;
        self.metadata_cache.update(id, leader_epochs.into_iter());
        Cluster { read_at: Instant::now(), topic_id: id, leaders, connections: HashMap::new() }
    }

    /// Sends one batch to each of several partitions, with one request to each leader. Returns the offsets or the error of
    /// each partition. A batch is stored as a whole or not at all; after [`Error::Timeout`] it may have been stored.
    ///
    /// Errors that may come from outdated metadata are retried once with new ones, and leader elections for a second, all
    /// within the one deadline of a call. If a quota throttles a leader ([`throttled`](Self::throttled)), the deadline begins
    /// after that.
    pub async fn send(&mut self, batches: BTreeMap<i32, Vec<Record>>) -> Results {
        let mut results = Results::new();
        let mut encoded = BTreeMap::new();
        for (partition, records) in batches {
            match EncodedBatch::new(&records) {
                Ok(batch) => drop(encoded.insert(partition, batch)),
                Err(error) => drop(results.insert(partition, Err(error))),
            }
        }
        let throttled = self.throttled();
        if let Some(until) = encoded.keys().filter_map(|partition| throttled.get(partition)).max() {
            smol::Timer::at(*until).await;
        }
        let (mut has_old_metadata, started) = (self.cluster.is_some(), Instant::now());
        let deadline = Deadline::new(self.settings.deadline);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        loop {
            results.extend(self.send_once(&encoded, deadline).await);
            encoded.retain(|partition, _| match &results[partition] {
                Err(error) if error.is_leader_election() => started.elapsed() < ELECTION_TIMEOUT,
                Err(Error::Unavailable(_) | Error::UnknownTopic | Error::UnknownTopicId) => has_old_metadata,
                _ => false,
            });
            if encoded.is_empty() || deadline.remaining().is_zero() {
                break;
            }
            self.cluster = None;
            if !has_old_metadata {
                backoff.pause().await;
            }
            has_old_metadata = false;
        }
        // After a rejection, connection and metadata are still good.
        let is_broken = |result: &Result<_, Error>| {
            result.as_ref().is_err_and(|error| !matches!(error, Error::RecordRejected(_) | Error::RequestRejected(_)))
        };
        if results.values().any(is_broken) {
            self.cluster = None;
        }
        results
    }

    async fn send_once(&mut self, batches: &BTreeMap<i32, EncodedBatch>, deadline: Deadline) -> Results {
        let (settings, topic) = (self.settings.clone(), self.topic.clone());
        let cluster = match self.cluster(deadline).await {
            Ok(cluster) => cluster,
            Err(error) => return batches.keys().map(|&partition| (partition, Err(error.clone()))).collect(),
        };
        let mut results = Results::new();
        let mut by_leader = HashMap::<Address, BTreeMap<i32, EncodedBatch>>::new();
        for (&partition, batch) in batches {
            let leader = usize::try_from(partition).ok().and_then(|partition| cluster.leaders.get(partition));
            match leader {
                Some(Some(leader)) => {
                    by_leader.entry(leader.clone()).or_default().insert(partition, batch.clone());
                }
                Some(None) => drop(results.insert(partition, Err(ResponseError::LeaderNotAvailable.into()))),
                None => drop(results.insert(partition, Err(Error::UnknownTopic))),
            }
        }
        let sending = by_leader.into_iter().map(|(leader, batches)| {
            let kept = cluster.connections.remove(&leader);
            let connection = kept.filter(|(_, used)| used.elapsed() < MAX_IDLE).map(|(connection, _)| connection);
            send_to(&settings, deadline, &topic, cluster.topic_id, leader, connection, batches)
        });
        for (leader, connection, of_leader) in join_all(sending).await {
            cluster.connections.extend(connection.map(|connection| (leader, (connection, Instant::now()))));
            results.extend(of_leader);
        }
        results
    }
}

/// Sends batches to their leader. Returns the connection if it can be reused.
async fn send_to(
    settings: &Settings,
    deadline: Deadline,
    topic: &TopicName,
    topic_id: Option<Uuid>,
    leader: Address,
    connection: Option<Connection>,
    batches: BTreeMap<i32, EncodedBatch>,
) -> (Address, Option<Connection>, Results) {
    let work = async {
        let mut connection = match connection {
            Some(connection) => connection.reuse(settings, deadline).await?,
            None => Connection::open(&leader, settings, deadline).await?,
        };
        let partition = |(&index, batch): (&i32, &EncodedBatch)| {
            PartitionProduceData::default().with_index(index).with_records(Some(batch.bytes.clone()))
        };
        let version = connection.version::<ProduceRequest>(topic_id.map_or(PRODUCE_BY_NAME, |_| i16::MAX))?;
        let topic = match topic_id.filter(|_| version > PRODUCE_BY_NAME) {
            Some(id) => TopicProduceData::default().with_topic_id(id),
            None => TopicProduceData::default().with_name(topic.clone()),
        };
        let topic = topic.with_partition_data(batches.iter().map(partition).collect());
        let request = ProduceRequest::default()
            .with_acks(ALL_REPLICAS)
            .with_timeout_ms(millis(deadline.remaining()))
            .with_topic_data(vec![topic]);
        let response: ProduceResponse = connection.call_in(version, &request).await?;
        Ok((connection, response))
    };
    // Boxed, because a request with its response is large, and would be part of every caller's future.
    match call("produce", deadline, Box::pin(work)).await {
        Ok((connection, response)) => {
            let of = |partition, batch| offsets(&connection, &response, partition, batch);
            let results = batches.iter().map(|(&partition, batch)| (partition, of(partition, batch))).collect();
            (leader, Some(connection), results)
        }
        Err(error) => (leader, None, batches.keys().map(|&partition| (partition, Err(error.clone()))).collect()),
    }
}

fn offsets(
    connection: &Connection,
    response: &ProduceResponse,
    partition: i32,
    batch: &EncodedBatch,
) -> Result<Vec<i64>, Error> {
    let mut partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    let found = partitions.find(|found| found.index == partition).ok_or(Malformed::Response)?;
    match found.error_code.err() {
        Some(error) => Err(connection.broker_error::<ProduceRequest>(error, found.error_message.as_deref())),
        None => Ok((found.base_offset..found.base_offset + batch.records).collect()),
    }
}

impl EncodedBatch {
    fn new(records: &[Record]) -> Result<Self, Error> {
        let bytes =
            encode::batch(records).ok_or(Error::RecordRejected(BrokerError::new(ResponseError::MessageTooLarge)))?;
        Ok(Self { bytes, records: records.len() as i64 })
    }
}
