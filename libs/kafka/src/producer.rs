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
    encode, leader,
    unreachable::Address,
    versions::PRODUCE_BY_NAME,
};

/// Acknowledged when every replica in sync has it.
const ALL_REPLICAS: i16 = -1;
/// A connection that has been idle for longer is not used again: brokers close them, by default after ten minutes.
const IDLE: Duration = Duration::from_secs(60);
/// For so long a send waits for a leader that knows it is one. It is a short moment after a topic was made, and after
/// that the others should not wait for one partition.
const MOVING: Duration = Duration::from_secs(1);

/// Sends records to the partitions of one topic.
///
/// It is owned by one task, which therefore has at most one batch in flight for each partition: the order in which it
/// sends is the order in which they are stored.
#[derive(Debug)]
pub struct Producer {
    settings: Settings,
    topic: TopicName,
    cluster: Option<Cluster>,
}

/// Who leads the partitions, and the connections to them that are of use.
#[derive(Debug)]
struct Cluster {
    topic_id: Option<Uuid>,
    leaders: Vec<Option<Address>>,
    connections: HashMap<Address, (Connection, Instant)>,
}

/// A batch as it is sent.
#[derive(Clone, Debug)]
struct Batch {
    bytes: Bytes,
    records: i64,
}

type Results = BTreeMap<i32, Result<Vec<i64>, Error>>;

impl Producer {
    /// A producer that connects when it is first used, and again after a failure.
    pub fn new(settings: Settings, topic: impl Into<String>) -> Self {
        Self { settings, topic: TopicName(StrBytes::from_string(topic.into())), cluster: None }
    }

    /// How many partitions the topic has.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if there is no such topic; otherwise if the broker cannot be asked.
    pub async fn partitions(&mut self) -> Result<i32, Error> {
        let cluster = self.cluster(Deadline::new(self.settings.deadline)).await?;
        i32::try_from(cluster.leaders.len()).map_err(|_| Malformed::Answer.into())
    }

    /// The partitions whose leaders read nothing now, because a quota was used up, and until when. A [`send`](Self::send) to
    /// them waits for that.
    pub fn throttled(&self) -> BTreeMap<i32, Instant> {
        let Some(cluster) = &self.cluster else { return BTreeMap::new() };
        let until = |leader: &Option<Address>| cluster.connections.get(leader.as_ref()?)?.0.throttled_until();
        (0..).zip(&cluster.leaders).filter_map(|(partition, leader)| Some((partition, until(leader)?))).collect()
    }

    async fn cluster(&mut self, deadline: Deadline) -> Result<&mut Cluster, Error> {
        let cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => {
                let topic = leader::topic_of(&self.settings, deadline, &self.topic);
                let topic = call("connect", deadline, topic).await?;
                Cluster { topic_id: topic.id, leaders: topic.leaders, connections: HashMap::new() }
            }
        };
        Ok(self.cluster.insert(cluster))
    }

    /// Sends one batch to each of several partitions, with one request to each of their leaders, and gives each one's
    /// offsets or error. A batch is stored whole or, as far as its error tells, not at all.
    ///
    /// What fails because of what was known of the brokers before is tried once more with what they say now, and what has
    /// no leader that knows it is one, for a moment; all within the one deadline of a call. If a quota makes a leader read
    /// nothing ([`throttled`](Self::throttled)), the deadline begins when that is over.
    pub async fn send(&mut self, batches: BTreeMap<i32, Vec<Record>>) -> Results {
        let mut results = Results::new();
        let mut encoded = BTreeMap::new();
        for (partition, records) in batches {
            match Batch::encode(&records) {
                Ok(batch) => drop(encoded.insert(partition, batch)),
                Err(error) => drop(results.insert(partition, Err(error))),
            }
        }
        let throttled = self.throttled();
        if let Some(until) = encoded.keys().filter_map(|partition| throttled.get(partition)).max() {
            smol::Timer::at(*until).await;
        }
        let (mut known, started) = (self.cluster.is_some(), Instant::now());
        let deadline = Deadline::new(self.settings.deadline);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        loop {
            results.extend(self.send_once(&encoded, deadline).await);
            encoded.retain(|partition, _| match &results[partition] {
                Err(error) if error.is_of_moving_leaders() => started.elapsed() < MOVING,
                Err(Error::Away(_) | Error::UnknownTopic | Error::UnknownTopicId) => known,
                _ => false,
            });
            if encoded.is_empty() || deadline.left().is_zero() {
                break;
            }
            self.cluster = None;
            if !known {
                backoff.pause().await;
            }
            known = false;
        }
        // What a broker refuses or rejects says nothing against it or its connection.
        let broken = |result: &Result<_, Error>| {
            result.as_ref().is_err_and(|error| !matches!(error, Error::Refused(_) | Error::Rejected(_)))
        };
        if results.values().any(broken) {
            self.cluster = None;
        }
        results
    }

    async fn send_once(&mut self, batches: &BTreeMap<i32, Batch>, deadline: Deadline) -> Results {
        let (settings, topic) = (self.settings.clone(), self.topic.clone());
        let cluster = match self.cluster(deadline).await {
            Ok(cluster) => cluster,
            Err(error) => return batches.keys().map(|&partition| (partition, Err(error.clone()))).collect(),
        };
        let mut results = Results::new();
        let mut by_leader = HashMap::<Address, BTreeMap<i32, Batch>>::new();
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
            let connection = kept.filter(|(_, used)| used.elapsed() < IDLE).map(|(connection, _)| connection);
            send_to(&settings, deadline, &topic, cluster.topic_id, leader, connection, batches)
        });
        for (leader, connection, of_leader) in join_all(sending).await {
            cluster.connections.extend(connection.map(|connection| (leader, (connection, Instant::now()))));
            results.extend(of_leader);
        }
        results
    }
}

/// Sends batches to their leader; gives the connection if it can be used again.
async fn send_to(
    settings: &Settings,
    deadline: Deadline,
    topic: &TopicName,
    topic_id: Option<Uuid>,
    leader: Address,
    connection: Option<Connection>,
    batches: BTreeMap<i32, Batch>,
) -> (Address, Option<Connection>, Results) {
    let work = async {
        let mut connection = match connection {
            Some(connection) => connection.until(deadline),
            None => Connection::open(&leader, settings.client_id, deadline).await?,
        };
        let partition = |(&index, batch): (&i32, &Batch)| {
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
            .with_timeout_ms(millis(deadline.left()))
            .with_topic_data(vec![topic]);
        let answer: ProduceResponse = connection.call_in(version, &request).await?;
        Ok((connection, answer))
    };
    // Boxed, because a request with its answer is large, and would be part of every caller's future.
    match call("produce", deadline, Box::pin(work)).await {
        Ok((connection, answer)) => {
            let of = |partition, batch| offsets(&connection, &answer, partition, batch);
            let results = batches.iter().map(|(&partition, batch)| (partition, of(partition, batch))).collect();
            (leader, Some(connection), results)
        }
        Err(error) => (leader, None, batches.keys().map(|&partition| (partition, Err(error.clone()))).collect()),
    }
}

fn offsets(
    connection: &Connection,
    answer: &ProduceResponse,
    partition: i32,
    batch: &Batch,
) -> Result<Vec<i64>, Error> {
    let mut partitions = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
    let found = partitions.find(|found| found.index == partition).ok_or(Malformed::Answer)?;
    match found.error_code.err() {
        Some(error) => Err(connection.answered::<ProduceRequest>(error, found.error_message.as_deref())),
        None => Ok((found.base_offset..found.base_offset + batch.records).collect()),
    }
}

impl Batch {
    fn encode(records: &[Record]) -> Result<Self, Error> {
        let bytes = encode::batch(records).ok_or(Error::Refused(BrokerError::new(ResponseError::MessageTooLarge)))?;
        Ok(Self { bytes, records: records.len() as i64 })
    }
}
