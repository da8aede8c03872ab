use std::{ops::Range, time::Duration};

use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{
        ApiKey, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    protocol::StrBytes,
};

use crate::{
    Error, Malformed, Records, Settings,
    call::{call, millis},
    connection::Connection,
    leader,
};

/// Every broker since 0.11 speaks these.
const FETCH: i16 = 4;
const LIST_OFFSETS: i16 = 2;
/// Only what is committed, if it was sent in a transaction.
const READ_COMMITTED: i8 = 1;
/// Bytes of the largest batch that is read.
const LARGEST_BATCH: i32 = 16 * 1024 * 1024;
/// Stand for the first offset and the one after the last, in the place of a timestamp.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// Reads one partition of a topic. It keeps no position: the caller says which offset it wants.
///
/// It has a connection of its own to the partition's leader. After any failure it connects anew, and asks who leads.
#[derive(Debug)]
pub struct Consumer {
    settings: Settings,
    topic: TopicName,
    partition: i32,
    connection: Option<Connection>,
}

/// What a fetch gave.
#[derive(Debug)]
pub struct Fetched {
    /// Records from the asked offset on, in order.
    pub records: Records,
    /// The offset to ask for next.
    pub next: i64,
    /// The offset after the last record of the partition.
    pub high_watermark: i64,
}

impl Consumer {
    /// A consumer that connects when it is first used, and again after a failure.
    pub fn new(settings: Settings, topic: impl Into<String>, partition: i32) -> Self {
        let topic = TopicName(StrBytes::from_string(topic.into()));
        Self { settings, topic, partition, connection: None }
    }

    /// The partition that it reads.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The offsets that there are: from the first record kept to after the last.
    ///
    /// # Errors
    /// If the broker cannot be asked, or has no such partition.
    pub async fn offsets(&mut self) -> Result<Range<i64>, Error> {
        let mut connection = self.connection().await?;
        let work = async {
            let earliest = self.list_offset(&mut connection, EARLIEST).await?;
            Ok(earliest..self.list_offset(&mut connection, LATEST).await?)
        };
        let result = call("offsets", self.settings.deadline, work).await;
        self.keep_if_well(connection, result)
    }

    /// Fetches about `max_bytes` from `offset` on, waiting up to `wait` for a first record.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if there is no such offset, where the broker says so; [`Error::Malformed`] if a record
    /// cannot be read; otherwise if the broker cannot be asked.
    pub async fn fetch(&mut self, offset: i64, max_bytes: i32, wait: Duration) -> Result<Fetched, Error> {
        let mut connection = self.connection().await?;
        let work = async {
            let fetched = self.fetch_once(&mut connection, offset, max_bytes, wait).await?;
            if fetched.next == offset && fetched.high_watermark > offset {
                // Some brokers give nothing of a batch that is larger than asked for.
                return self.fetch_once(&mut connection, offset, LARGEST_BATCH, wait).await;
            }
            Ok(fetched)
        };
        let result = call("fetch", self.settings.deadline + wait, work).await;
        self.keep_if_well(connection, result)
    }

    async fn fetch_once(
        &self,
        connection: &mut Connection,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Fetched, Error> {
        let partition = FetchPartition::default()
            .with_partition(self.partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(max_bytes);
        let request = FetchRequest::default()
            // Some brokers take 0 for "no answer at all".
            .with_max_wait_ms(millis(wait).max(1))
            .with_min_bytes(1)
            .with_max_bytes(max_bytes)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![FetchTopic::default().with_topic(self.topic.clone()).with_partitions(vec![partition])]);
        let answer: FetchResponse = connection.call(ApiKey::Fetch, FETCH, &request).await?;
        let topic = answer.responses.into_iter().find(|found| found.topic == self.topic);
        let mut partitions = topic.into_iter().flat_map(|topic| topic.partitions);
        let found = partitions.find(|found| found.partition_index == self.partition).ok_or(Malformed::Answer)?;
        if let Some(error) = found.error_code.err() {
            return Err(error.into());
        }
        let (records, next) = Records::read(found.records.unwrap_or_default(), offset)?;
        Ok(Fetched { records, next, high_watermark: found.high_watermark })
    }

    async fn list_offset(&self, connection: &mut Connection, which: i64) -> Result<i64, Error> {
        let partition = ListOffsetsPartition::default().with_partition_index(self.partition).with_timestamp(which);
        let topic = ListOffsetsTopic::default().with_name(self.topic.clone()).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic]);
        let answer: ListOffsetsResponse = connection.call(ApiKey::ListOffsets, LIST_OFFSETS, &request).await?;
        let topic = answer.topics.into_iter().find(|found| found.name == self.topic);
        let mut partitions = topic.into_iter().flat_map(|topic| topic.partitions);
        let found = partitions.find(|found| found.partition_index == self.partition).ok_or(Malformed::Answer)?;
        match found.error_code.err() {
            Some(error) => Err(error.into()),
            None => Ok(found.offset),
        }
    }

    async fn connection(&mut self) -> Result<Connection, Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        // Some brokers answer fetches of a topic that they do not have, with nothing; the metadata tell.
        call("connect", self.settings.deadline, leader::connect(&self.settings, &self.topic, self.partition)).await
    }

    fn keep_if_well<T>(&mut self, connection: Connection, result: Result<T, Error>) -> Result<T, Error> {
        if matches!(result, Ok(_) | Err(Error::OffsetOutOfRange)) {
            self.connection = Some(connection);
        }
        result
    }
}
