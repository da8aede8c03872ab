//! Client features for tests alone, with the feature `testing`: transactions, quotas, topic configurations, and malformed or
//! hostile batches.

mod group;
mod request;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write},
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, AlterClientQuotasRequest, AlterClientQuotasResponse,
        BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, DeleteRecordsRequest, DeleteRecordsResponse,
        EndTxnRequest, EndTxnResponse, FindCoordinatorRequest, IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsResponse, InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProducerId,
        TopicName, TransactionalId,
        add_partitions_to_txn_request::AddPartitionsToTxnTopic,
        alter_client_quotas_request::{EntityData, EntryData, OpData},
        create_partitions_request::CreatePartitionsTopic,
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        produce_request::{PartitionProduceData, TopicProduceData},
    },
};

use crate::{
    Error, Malformed, Record, Records, Settings, UnreadableBatch,
    call::{Deadline, call, millis},
    connection::Connection,
    encode::{Sender, frame, put_record, put_varint},
    metadata::{self, MetadataCache},
    records::DecodedBatches,
    versions::{PRODUCE_BY_NAME, requests},
};

pub use self::group::committed_offsets;
use self::request::{COORDINATOR_TIMEOUT, POLL_INTERVAL, TEST_DEADLINE, check, connect, text};

/// Bits of the attributes of a batch.
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
/// The resource type of a topic.
const TOPIC: i8 = 2;
/// The key type of a transaction coordinator.
const TRANSACTION: i8 = 1;
requests! {
    AlterClientQuotasRequest => AlterClientQuotasResponse, AlterClientQuotas, 0..=1;
    IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse, IncrementalAlterConfigs, 0..=1;
    CreatePartitionsRequest => CreatePartitionsResponse, CreatePartitions, 0..=3;
    DeleteRecordsRequest => DeleteRecordsResponse, DeleteRecords, 0..=2;
    InitProducerIdRequest => InitProducerIdResponse, InitProducerId, 0..=4;
    AddPartitionsToTxnRequest => AddPartitionsToTxnResponse, AddPartitionsToTxn, 0..=3;
    EndTxnRequest => EndTxnResponse, EndTxn, 0..=3;
}

/// Sets the produce and consume quotas of a client id, in bytes per second; none removes a quota.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn set_quotas(
    settings: &Settings,
    client_id: &str,
    produce: Option<f64>,
    consume: Option<f64>,
) -> Result<(), Error> {
    let client = EntityData::default().with_entity_type(text("client-id")).with_entity_name(Some(text(client_id)));
    let change = |(name, rate): (&str, Option<f64>)| {
        OpData::default().with_key(text(name)).with_value(rate.unwrap_or_default()).with_remove(rate.is_none())
    };
    let changes = [("producer_byte_rate", produce), ("consumer_byte_rate", consume)].map(change).to_vec();
    let entry = EntryData::default().with_entity(vec![client]).with_ops(changes);
    let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        response.entries.iter().try_for_each(|entry| check(entry.error_code))
    };
    call("testing", deadline, Box::pin(work)).await
}

/// Sets a configuration of a topic, such as `max.message.bytes`.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn set_topic_setting(settings: &Settings, topic: &str, name: &str, value: &str) -> Result<(), Error> {
    let setting = AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(text(topic))
        .with_configs(vec![setting]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        response.responses.iter().try_for_each(|response| check(response.error_code))
    };
    call("testing", deadline, Box::pin(work)).await
}

/// Adds partitions to a topic, up to `count`.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn add_partitions(settings: &Settings, topic: &str, count: i32) -> Result<(), Error> {
    let topic = CreatePartitionsTopic::default().with_name(TopicName(text(topic))).with_count(count);
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![topic.with_assignments(None)])
        .with_timeout_ms(millis(settings.deadline));
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        response.results.iter().try_for_each(|result| check(result.error_code))
    };
    call("testing", deadline, Box::pin(work)).await
}

/// Deletes the records of partitions before these offsets, as retention does.
///
/// # Errors
/// If the broker is unavailable, does not lead all of them, or rejects the request.
pub async fn delete_records(settings: &Settings, topic: &str, before: &BTreeMap<i32, i64>) -> Result<(), Error> {
    let partition = |(partition, offset): (&i32, &i64)| {
        DeleteRecordsPartition::default().with_partition_index(*partition).with_offset(*offset)
    };
    let topic = DeleteRecordsTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partitions(before.iter().map(partition).collect());
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(millis(settings.deadline));
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.try_for_each(|partition| check(partition.error_code))
    };
    call("testing", deadline, Box::pin(work)).await
}

/// Sends an encoded batch and returns its first offset.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn send_batch(settings: &Settings, topic: &str, partition: i32, batch: Bytes) -> Result<i64, Error> {
    let name = TopicName(text(topic));
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let leader = metadata::leader(settings, deadline, &name, partition, &mut MetadataCache::default()).await?;
        let mut connection = Connection::open(&leader.broker, settings, deadline).await?;
        produce(&mut connection, settings, None, &name, partition, batch).await
    };
    call("testing", deadline, Box::pin(work)).await
}

async fn produce(
    connection: &mut Connection,
    settings: &Settings,
    transactional_id: Option<TransactionalId>,
    topic: &TopicName,
    partition: i32,
    batch: Bytes,
) -> Result<i64, Error> {
    let version = connection.version::<ProduceRequest>(PRODUCE_BY_NAME)?;
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
    let topic = TopicProduceData::default().with_name(topic.clone()).with_partition_data(vec![data]);
    let request = ProduceRequest::default()
        .with_transactional_id(transactional_id)
        .with_acks(-1)
        .with_timeout_ms(millis(settings.deadline))
        .with_topic_data(vec![topic]);
    let response = connection.call_in(version, &request).await?;
    let mut partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    let partition = partitions.next().ok_or(Malformed::Response)?;
    check(partition.error_code).map(|()| partition.base_offset)
}

/// A transactional producer for partitions led by the first bootstrap broker.
#[derive(Debug)]
pub struct TransactionalProducer {
    settings: Settings,
    connection: Connection,
    id: TransactionalId,
    producer: (ProducerId, i16),
    /// The next sequence number of each topic and partition.
    sequences: BTreeMap<(String, i32), i32>,
}

impl TransactionalProducer {
    /// A producer with this transactional id, whose transactions the broker aborts after `timeout`.
    ///
    /// # Errors
    /// If the broker is unavailable or does not support transactions.
    pub async fn new(settings: Settings, id: &str, timeout: Duration) -> Result<Self, Error> {
        let id = TransactionalId(text(id));
        let find = FindCoordinatorRequest::default().with_key(id.0.clone()).with_key_type(TRANSACTION);
        let init = InitProducerIdRequest::default()
            .with_transactional_id(Some(id.clone()))
            .with_transaction_timeout_ms(millis(timeout))
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let mut connection = connect(&settings, Deadline::new(TEST_DEADLINE)).await?;
        let started = Instant::now();
        let producer = loop {
            let found = connection.call(&find).await?;
            let code = match found.error_code {
                0 => {
                    let response = connection.call(&init).await?;
                    if response.error_code == 0 {
                        break (response.producer_id, response.producer_epoch);
                    }
                    response.error_code
                }
                code => code,
            };
            // The first request creates the topic of the transaction coordinator.
            let is_starting = code.err().is_some_and(|error| error.is_retriable()) && found.node_id != BrokerId(-2);
            if !is_starting || started.elapsed() > COORDINATOR_TIMEOUT {
                return Err(check(code).err().unwrap_or(Malformed::Response.into()));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        };
        Ok(Self { settings, connection, id, producer, sequences: BTreeMap::new() })
    }

    /// Sends records in the open transaction, or begins one. Returns the first offset.
    ///
    /// # Errors
    /// If the broker is unavailable or rejects the request.
    pub async fn send(&mut self, topic: &str, partition: i32, records: &[Record]) -> Result<i64, Error> {
        let name = TopicName(text(topic));
        let (producer_id, producer_epoch) = self.producer;
        let added = AddPartitionsToTxnTopic::default().with_name(name.clone()).with_partitions(vec![partition]);
        let add = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.id.clone())
            .with_v3_and_below_producer_id(producer_id)
            .with_v3_and_below_producer_epoch(producer_epoch)
            .with_v3_and_below_topics(vec![added]);
        let started = Instant::now();
        loop {
            let response = self.connection.call(&add).await?;
            let mut results =
                response.results_by_topic_v3_and_below.iter().flat_map(|topic| &topic.results_by_partition);
            let code = results.next().ok_or(Malformed::Response)?.partition_error_code;
            // The markers of the transaction before are still being written.
            let is_ending =
                code == ResponseError::ConcurrentTransactions.code() && started.elapsed() < COORDINATOR_TIMEOUT;
            if !is_ending {
                check(code)?;
                break;
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
        let sequence = self.sequences.entry((topic.to_owned(), partition)).or_default();
        let sender =
            Sender { attributes: TRANSACTIONAL, producer_id: producer_id.0, producer_epoch, base_sequence: *sequence };
        let batch = encoded(sender, Codec::None, records);
        let id = Some(self.id.clone());
        let offset = produce(&mut self.connection, &self.settings, id, &name, partition, batch).await?;
        *sequence += records.len() as i32;
        Ok(offset)
    }

    /// Ends the transaction: commits or aborts it.
    ///
    /// # Errors
    /// If the broker is unavailable or rejects the request.
    pub async fn end(&mut self, committed: bool) -> Result<(), Error> {
        let (producer_id, producer_epoch) = self.producer;
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(producer_id)
            .with_producer_epoch(producer_epoch)
            .with_committed(committed);
        check(self.connection.call(&request).await?.error_code)
    }
}

/// The compression codec of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// No compression.
    None,
    /// gzip.
    Gzip,
    /// snappy, one raw block.
    Snappy,
    /// snappy, framed as by snappy-java.
    SnappyFramed,
    /// lz4.
    Lz4,
    /// zstd.
    Zstd,
}

impl Codec {
    /// All codecs.
    pub const ALL: [Self; 6] = [Self::None, Self::Gzip, Self::Snappy, Self::SnappyFramed, Self::Lz4, Self::Zstd];

    fn attribute(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy | Self::SnappyFramed => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Compresses a stream, without all of it in memory where the codec allows it.
    fn compress(self, mut from: impl io::Read) -> io::Result<Vec<u8>> {
        let mut to = Vec::new();
        match self {
            Self::None => drop(from.read_to_end(&mut to)?),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut to, flate2::Compression::default());
                io::copy(&mut from, &mut encoder)?;
                encoder.finish()?;
            }
            Self::Snappy => {
                let mut whole = Vec::new();
                from.read_to_end(&mut whole)?;
                to = snap::raw::Encoder::new().compress_vec(&whole)?;
            }
            Self::SnappyFramed => {
                to.extend(b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01");
                loop {
                    let mut block = Vec::new();
                    if from.by_ref().take(32 * 1024).read_to_end(&mut block)? == 0 {
                        break;
                    }
                    let block = snap::raw::Encoder::new().compress_vec(&block)?;
                    to.write_all(&(block.len() as i32).to_be_bytes())?;
                    to.extend(block);
                }
            }
            Self::Lz4 => {
                // The Java client reads no other block mode.
                let independent = lz4::BlockMode::Independent;
                let mut encoder = lz4::EncoderBuilder::new().block_mode(independent).build(&mut to)?;
                io::copy(&mut from, &mut encoder)?;
                encoder.finish().1?;
            }
            Self::Zstd => zstd::stream::copy_encode(from, &mut to, 3)?,
        }
        Ok(to)
    }
}

/// Encodes a batch of these records.
pub fn batch(codec: Codec, records: &[Record]) -> Bytes {
    encoded(Sender::default(), codec, records)
}

/// Encodes a batch of a transaction.
pub fn transactional_batch(codec: Codec, producer_id: i64, records: &[Record]) -> Bytes {
    encoded(Sender { attributes: TRANSACTIONAL, producer_id, ..Sender::default() }, codec, records)
}

/// Encodes the transaction marker that a broker writes: COMMIT or ABORT.
pub fn transaction_marker(producer_id: i64, is_committed: bool, timestamp: chrono::DateTime<chrono::Utc>) -> Bytes {
    // Version 0, and the type; clients ignore the value.
    let key = Some(vec![0, 0, 0, is_committed.into()]);
    let record = Record { key, value: Some(vec![0; 6]), headers: Vec::new(), timestamp };
    let sender = Sender { attributes: TRANSACTIONAL | CONTROL, producer_id, ..Sender::default() };
    encoded(sender, Codec::None, &[record])
}

/// A batch whose header claims that the payload has this codec and this number of records.
pub fn batch_of_bytes(codec: Codec, count: usize, payload: &[u8]) -> Bytes {
    let sender = Sender { attributes: codec.attribute(), ..Sender::default() };
    frame(sender, count, (0, 0), payload).expect("a test's batch is small")
}

/// The batch with its first offset, as a broker stores it.
pub fn at_offset(batch: &Bytes, offset: i64) -> Bytes {
    [&offset.to_be_bytes(), &batch[8..]].concat().into()
}

/// The decoded batches of a response.
#[derive(Debug)]
pub struct DecodedRecords {
    /// The records.
    pub records: Records,
    /// The next fetch offset.
    pub next: i64,
    /// The leader epoch of the last batch before it.
    pub leader_epoch: Option<i32>,
    /// A batch that is skipped because it cannot be read.
    pub unreadable: Option<UnreadableBatch>,
}

/// Decodes the batches of a response to a fetch of the offset `from`, without records of these aborted transactions (producer
/// ids and first offsets). Of the first batch up to `max_first_bytes` are decompressed.
///
/// # Errors
/// If the bytes are no batches.
pub fn decode(
    bytes: Bytes,
    from: i64,
    aborted: Vec<(i64, i64)>,
    max_first_bytes: usize,
) -> Result<DecodedRecords, Malformed> {
    let DecodedBatches { records, next, leader_epoch, unreadable } =
        Records::decode(bytes, from, aborted, max_first_bytes)?;
    Ok(DecodedRecords { records, next, leader_epoch, unreadable })
}

/// A decompression bomb: a batch of one record whose value has `length` zeros. They are all in memory only if the codec needs
/// it.
pub fn bomb(codec: Codec, length: usize) -> Bytes {
    let mut body = BytesMut::new();
    // Attributes, timestamp, offset, no key.
    body.put_slice(&[0, 0, 0, 1]);
    put_varint(&mut body, length as i64);
    let mut head = BytesMut::new();
    // The number of headers comes after the value.
    put_varint(&mut head, (body.len() + length + 1) as i64);
    head.put_slice(&body);
    let record = io::Cursor::new(head).chain(io::repeat(0).take(length as u64 + 1));
    let now = chrono::Utc::now().timestamp_millis();
    let payload = codec.compress(record).expect("memory takes everything");
    let sender = Sender { attributes: codec.attribute(), ..Sender::default() };
    frame(sender, 1, (now, now), &payload).expect("it is small")
}

fn encoded(sender: Sender, codec: Codec, records: &[Record]) -> Bytes {
    let first = records.first().map_or(0, |record| record.timestamp.timestamp_millis());
    let last = records.iter().map(|record| record.timestamp.timestamp_millis()).max().unwrap_or(first);
    let mut payload = BytesMut::new();
    for (number, record) in (0..).zip(records) {
        put_record(&mut payload, number, record.timestamp.timestamp_millis() - first, record);
    }
    let payload = codec.compress(&payload[..]).expect("memory takes everything");
    let sender = Sender { attributes: sender.attributes | codec.attribute(), ..sender };
    frame(sender, records.len(), (first, last), &payload).expect("a test's batch is small")
}
