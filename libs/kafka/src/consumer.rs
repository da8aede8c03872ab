mod log;

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{
        FetchRequest, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use crate::{
    Error, Malformed, Records, Settings, UnreadableBatch,
    batch::RawBatch,
    call::{Deadline, call, count, millis},
    connection::{Connection, Response},
    fetch_response::{DecodedFetchResponse, DecodedPartition},
    limits::{MAX_BATCH_BYTES, MAX_DECOMPRESSED_BYTES},
    memory::{FetchMemory, FetchPermit, LARGE_BATCHES},
    metadata::{self, Leader, MetadataCache},
    records::DecodedBatches,
    versions::FETCH_BY_NAME,
};

/// Isolation level: of transactions, only the committed ones.
const READ_COMMITTED: i8 = 1;
/// Fetches of a batch with a wrong checksum, each on a new connection to the leader of then, before it is skipped as
/// unreadable: damage on the network does not repeat, and another replica may have the batch undamaged.
const CHECKSUM_ATTEMPTS: u32 = 5;
/// Bytes beside a corrupt batch that are fetched to see where the next one begins.
const ROOM_FOR_NEXT: i32 = 4096;
/// What a response has at most beside its records, except for many aborted transactions.
const RESPONSE_FIELDS_BYTES: usize = 4096;
/// The size of a fetch for the timestamp of one record.
const TIMESTAMP_FETCH_BYTES: i32 = 16 * 1024;
/// Attempts of a fetch whose responses are empty because of a quota, before the watermarks of the partition are known. Each
/// attempt waits for the throttle time of the one before.
const THROTTLED_ATTEMPTS: u32 = 10;
/// No leader epoch: the broker does not check it.
const NO_EPOCH: i32 = -1;
/// No fetch session.
const NO_SESSION: i32 = -1;

/// Fetches one partition of a topic, from offsets that the caller chooses.
///
/// It has a connection of its own to the partition's leader. After an error it refreshes the metadata and connects again. It also
/// refreshes them every five minutes, from another bootstrap broker each time, because a leader that is cut off from the other
/// brokers still acts as the leader. If there is one with a higher epoch, the call fails, and the next one connects
/// to it: no call of a consumer has another leader than the one before unless there was an error in between.
///
/// # Topic ids
///
/// A topic may be deleted and created again with the same name; offsets of the old one mean nothing in the new one. Brokers
/// since Apache Kafka 2.8, with KRaft or `inter.broker.protocol.version` 2.8, give each topic an id. The consumer keeps the id
/// of the topic that it reads first, or of [`expect_topic_id`](Self::expect_topic_id), and reads no other: it fetches by id,
/// and compares the id whenever it connects. Store [`topic_id`](Self::topic_id) together with an offset.
///
/// Where brokers have no topic ids, compare the timestamp of the record before the stored offset. A
/// [`leader_epoch`](Self::leader_epoch) below the stored one means another topic too; an equal or higher one proves nothing.
///
/// # Truncated logs
///
/// A log may lose its tail, which was read: a replica that lagged becomes the leader, or a broker loses what it has not written
/// to disk. Then offsets are given again to other records. Store the [`leader_epoch`](Fetched::leader_epoch) of a fetch with the
/// next offset, and after an error of any call compare the log by [`common_end`](Self::common_end).
#[derive(Debug)]
pub struct Consumer {
    settings: Settings,
    topic: TopicName,
    partition: i32,
    connection: Option<Connection>,
    /// When it connected, or refreshed the metadata.
    refreshed_at: Instant,
    max_metadata_age: Duration,
    metadata_cache: MetadataCache,
    /// The id of the topic to read; none until it is known.
    topic_id: Option<Uuid>,
    /// The id in the current metadata; none if the brokers have none.
    fetch_topic_id: Option<Uuid>,
    leader_epoch: Option<i32>,
    /// The offset of a batch with a wrong checksum, and how often it was fetched.
    corrupt_batch: Option<(i64, u32)>,
    /// The last known high watermark and last stable offset.
    watermarks: Option<(i64, i64)>,
    /// What it shares with other consumers.
    memory: Option<FetchMemory>,
}

/// The result of a fetch.
#[derive(Debug)]
pub struct Fetched {
    /// Records from the fetch offset on, in order, without those of aborted transactions and without transaction markers,
    /// which have offsets too.
    pub records: Records,
    /// The next fetch offset. It may be higher than the fetch offset although there are no records.
    pub next: i64,
    /// The leader epoch of the last batch before `next`; none if `next` is the fetch offset, or the epoch is not known.
    pub leader_epoch: Option<i32>,
    /// The offset after the last record or transaction marker. Of the fetch before, if a quota left this one empty.
    pub high_watermark: i64,
    /// The first offset of the oldest open transaction, or the high watermark. Later records are not returned: they may be
    /// aborted.
    pub last_stable_offset: i64,
    /// A batch before `next` that is skipped because it can never be read. Then `records` is empty.
    pub unreadable: Option<UnreadableBatch>,
}

impl Fetched {
    /// Whether an open transaction blocks the rest of the partition. Brokers abort it at its timeout: by default after one
    /// minute, at most after 15.
    pub fn is_blocked_by_transaction(&self) -> bool {
        self.next >= self.last_stable_offset && self.last_stable_offset < self.high_watermark
    }

    /// The unreadable batch, if its checksum is wrong.
    fn corrupt(&self) -> Option<UnreadableBatch> {
        self.unreadable.filter(|unreadable| unreadable.reason == Malformed::Checksum)
    }
}

impl Consumer {
    /// A consumer that connects at its first call, and again after an error.
    pub fn new(settings: Settings, topic: impl Into<String>, partition: i32) -> Self {
        let topic = TopicName(StrBytes::from_string(topic.into()));
        Self {
            settings,
            topic,
            partition,
            connection: None,
            refreshed_at: Instant::now(),
            max_metadata_age: metadata::MAX_AGE,
            metadata_cache: MetadataCache::default(),
            topic_id: None,
            fetch_topic_id: None,
            leader_epoch: None,
            corrupt_batch: None,
            watermarks: None,
            memory: None,
        }
    }

    /// Shares this memory with other consumers: one of them at a time has records. A fetch waits until the [`Records`] of the one before
    /// and their [permit](Records::into_permit) are dropped: for ever, if the caller keeps its own.
    #[must_use]
    pub fn sharing(self, memory: FetchMemory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The id of the topic, to store with an offset. None before the first successful call, and where brokers have no topic
    /// ids.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.topic_id
    }

    /// The leader epoch of the partition when the consumer connected last. None before the first successful call, and where
    /// brokers do not send it.
    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// Reads the topic with this id and no other with the same name; with none, the topic that has the name at the next
    /// connect.
    pub fn expect_topic_id(&mut self, topic_id: Option<Uuid>) {
        if self.topic_id != topic_id {
            (self.topic_id, self.leader_epoch, self.connection) = (topic_id, None, None);
            // A broker that knows another topic may be outdated: it is believed only if no other one has this topic.
            self.metadata_cache.update(topic_id, std::iter::empty());
            self.watermarks = None;
        }
    }

    /// Refreshes the metadata when they are so old.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_max_metadata_age(self, max_metadata_age: Duration) -> Self {
        Self { max_metadata_age, ..self }
    }

    /// Fetches about `max_bytes` from `offset` on. The broker waits up to `wait` for the first record.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if there is no such offset; some brokers return an empty result instead.
    /// [`Error::TopicChanged`] if another topic has the name; [`Error::UnknownTopicId`] and [`Error::FencedLeaderEpoch`] may
    /// precede it. [`Error::Malformed`] if the response cannot be decoded or a batch has a wrong checksum. Otherwise if the
    /// broker is unavailable.
    pub async fn fetch(&mut self, offset: i64, max_bytes: i32, wait: Duration) -> Result<Fetched, Error> {
        let fetched = self.fetch_uncounted(offset, max_bytes, wait).await?;
        self.corrupt_batch = count_corrupt(&fetched, self.corrupt_batch);
        if let Some(corrupt) = fetched.corrupt() {
            let is_to_be_fetched_again = |(_, attempts)| attempts < CHECKSUM_ATTEMPTS;
            if self.corrupt_batch.is_some_and(is_to_be_fetched_again) {
                self.connection = None;
                return Err(Malformed::Checksum.into());
            }
            // If its end is not known, the next fetch begins in the same batch.
            let rest = (fetched.next, CHECKSUM_ATTEMPTS - 1);
            self.corrupt_batch = Some(rest).filter(|_| corrupt.first_offset == corrupt.last_offset);
        }
        Ok(fetched)
    }

    /// The timestamp of the record at an offset; none if there is no such record, as after compaction, or it cannot be read. It
    /// does not count as a fetch of a batch with a wrong checksum.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn timestamp_at(&mut self, offset: i64, wait: Duration) -> Result<Option<i64>, Error> {
        let fetched = self.fetch_uncounted(offset, TIMESTAMP_FETCH_BYTES, wait).await?;
        let first = fetched.records.iter().next().filter(|record| record.offset == offset);
        Ok(first.map(|record| record.timestamp))
    }

    /// As [`fetch`](Self::fetch), with a batch that has a wrong checksum as unreadable at once.
    async fn fetch_uncounted(&mut self, offset: i64, max_bytes: i32, wait: Duration) -> Result<Fetched, Error> {
        for _ in 0..THROTTLED_ATTEMPTS {
            // Before the deadline begins: a throttled broker is not unavailable.
            self.wait_for_throttle().await;
            if let Some(fetched) = self.fetch_unthrottled(offset, max_bytes, wait).await? {
                return Ok(fetched);
            }
            if let Some((high_watermark, last_stable_offset)) = self.watermarks {
                let records = Records::default();
                let (next, leader_epoch, unreadable) = (offset, None, None);
                return Ok(Fetched { records, next, leader_epoch, high_watermark, last_stable_offset, unreadable });
            }
        }
        Err(Malformed::NoRecordsReturned.into())
    }

    /// Waits while the broker mutes the connection because of a quota.
    async fn wait_for_throttle(&self) {
        if let Some(until) = self.connection.as_ref().and_then(Connection::throttled_until) {
            smol::Timer::at(until).await;
        }
    }

    /// None if the response is empty because of a quota.
    async fn fetch_unthrottled(
        &mut self,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let deadline = Deadline::new(self.settings.deadline + wait);
        let work = async {
            let mut connection = self.connection(deadline).await?;
            let fetched = self.fetch_any_size(&mut connection, offset, max_bytes, wait).await;
            self.keep_connection_if_usable(connection, fetched)
        };
        // The deadline is the connection's, which does not run while the memory belongs to others. Boxed, because a fetch with its
        // connection is large, and would be part of every caller's future.
        let Some(fetched) = count("fetch", Box::pin(work)).await? else { return Ok(None) };
        self.watermarks = Some((fetched.high_watermark, fetched.last_stable_offset));
        Ok(Some(fetched))
    }

    /// As [`fetch_once`](Self::fetch_once), and again with a larger size if the next batch does not fit.
    async fn fetch_any_size(
        &self,
        connection: &mut Connection,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let is_stuck = |fetched: &Fetched| fetched.next == offset && fetched.last_stable_offset > offset;
        // The batch after it shows where a corrupt one ends.
        let room_for_next = |fetched: &Fetched| {
            let corrupt = fetched.corrupt()?;
            let room = i32::try_from(corrupt.bytes).ok()?.saturating_add(ROOM_FOR_NEXT);
            (corrupt.first_offset == corrupt.last_offset && room > max_bytes).then_some(room)
        };
        if let Some(memory) = &self.memory {
            let requested = usize::try_from(max_bytes).unwrap_or_default();
            connection.limit_buffer(requested.saturating_add(RESPONSE_FIELDS_BYTES), memory);
        }
        let throttled_before = connection.throttled_until();
        let is_throttled = |connection: &Connection| connection.throttled_until() > throttled_before;
        let Some(fetched) = self.fetch_once(connection, offset, max_bytes, wait).await? else { return Ok(None) };
        if let Some(room) = room_for_next(&fetched) {
            return self.fetch_once(connection, offset, room, wait).await;
        }
        if !is_stuck(&fetched) {
            return Ok(Some(fetched));
        }
        if is_throttled(connection) {
            return Ok(None);
        }
        // Some brokers return nothing of a batch that is larger than the requested size.
        let Some(fetched) = self.fetch_once(connection, offset, MAX_BATCH_BYTES as i32, wait).await? else {
            return Ok(None);
        };
        match is_stuck(&fetched) {
            true if is_throttled(connection) => Ok(None),
            true => Err(Malformed::NoRecordsReturned.into()),
            false => Ok(Some(fetched)),
        }
    }

    /// None if the response has a throttle time alone, because of a quota.
    async fn fetch_once(
        &self,
        connection: &mut Connection,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let version = connection.version::<FetchRequest>(self.fetch_topic_id.map_or(FETCH_BY_NAME, |_| i16::MAX))?;
        let by_id = self.fetch_topic_id.filter(|_| version > FETCH_BY_NAME);
        let partition = FetchPartition::default()
            .with_partition(self.partition)
            .with_current_leader_epoch(self.leader_epoch.unwrap_or(NO_EPOCH))
            .with_fetch_offset(offset)
            .with_partition_max_bytes(max_bytes);
        let topic = match by_id {
            Some(id) => FetchTopic::default().with_topic_id(id),
            None => FetchTopic::default().with_topic(self.topic.clone()),
        };
        let request = FetchRequest::default()
            // Some brokers never respond to 0.
            .with_max_wait_ms(millis(wait).max(1))
            .with_min_bytes(1)
            .with_max_bytes(max_bytes)
            .with_isolation_level(READ_COMMITTED)
            .with_session_epoch(NO_SESSION)
            .with_topics(vec![topic.with_partitions(vec![partition])]);
        let Response { body, truncated, permit } = connection.exchange(version, &request).await?;
        let response = DecodedFetchResponse::decode(version, body, self.partition)?;
        connection.throttle::<FetchRequest>(response.throttle_ms);
        if let Some(error) = response.error_code.err() {
            return Err(connection.broker_error::<FetchRequest>(error, None));
        }
        let Some(partition) = response.partition else {
            return if response.throttle_ms > 0 { Ok(None) } else { Err(Malformed::Response.into()) };
        };
        let DecodedPartition { error_code, high_watermark, last_stable_offset, aborted, records } = partition;
        if let Some(error) = error_code.err() {
            return Err(connection.broker_error::<FetchRequest>(error, None));
        }
        let DecodedBatches { records, next, leader_epoch, unreadable } = match truncated {
            Some(length) => DecodedBatches::too_large(
                RawBatch::peek(&records).map_err(|_| Malformed::ResponseTooLarge(length))?,
                offset,
            ),
            None => self.decode(connection, (records, aborted), offset, permit).await?,
        };
        // Some brokers have no transactions.
        let last_stable_offset = if last_stable_offset < 0 { high_watermark } else { last_stable_offset };
        // Before the next batch, or after the first offset.
        let next = if unreadable.is_some() { next.min(high_watermark).max(offset + 1) } else { next };
        Ok(Some(Fetched { records, next, leader_epoch, high_watermark, last_stable_offset, unreadable }))
    }

    /// Decodes the batches of a response. If the memory is shared, or the first batch is large when decompressed, it waits for the
    /// permit.
    async fn decode(
        &self,
        connection: &mut Connection,
        (bytes, aborted): (Bytes, Vec<(i64, i64)>),
        from: i64,
        permit: Option<FetchPermit>,
    ) -> Result<DecodedBatches, Malformed> {
        let permit = match (permit, &self.memory) {
            (None, Some(memory)) if !bytes.is_empty() => Some(connection.acquire(memory).await),
            (permit, _) => permit,
        };
        let has_permit = permit.is_some();
        let max_bytes = if has_permit { MAX_BATCH_BYTES } else { MAX_DECOMPRESSED_BYTES };
        let decoded = Records::decode(bytes.clone(), from, aborted.clone(), max_bytes)?;
        let needs_permit = decoded.unreadable.is_some_and(|unreadable| unreadable.reason == Malformed::TooLarge);
        let (mut decoded, permit) = if needs_permit && !has_permit {
            let permit = connection.acquire(&LARGE_BATCHES).await;
            (Records::decode(bytes, from, aborted, MAX_BATCH_BYTES)?, Some(permit))
        } else {
            (decoded, permit)
        };
        decoded.records.keep(permit);
        Ok(decoded)
    }

    async fn connection(&mut self, deadline: Deadline) -> Result<Connection, Error> {
        let Some(connection) = self.connection.take() else {
            let connect = async {
                let leader = self.leader(deadline).await?;
                self.connect(leader, deadline).await
            };
            return call("connect", deadline, Box::pin(connect)).await;
        };
        if self.refreshed_at.elapsed() < self.max_metadata_age {
            return connection.reuse(&self.settings, deadline).await;
        }
        // If no bootstrap broker is available, the connection is used on.
        let part = deadline.split(2);
        let leader = call("refresh_metadata", part, Box::pin(self.leader(part))).await;
        self.refreshed_at = Instant::now();
        match leader {
            // Its log may not have what was read of the one before, and a fetch from it would not notice that.
            Ok(leader) if leader.epoch > self.leader_epoch => {
                self.metadata_cache
                    .update(leader.topic_id, leader.epoch.map(|epoch| (self.partition, epoch)).into_iter());
                Err(Error::FencedLeaderEpoch)
            }
            Err(error @ Error::TopicChanged { .. }) => Err(error),
            _ => connection.reuse(&self.settings, deadline).await,
        }
    }

    /// The leader of the partition.
    async fn leader(&mut self, deadline: Deadline) -> Result<Leader, Error> {
        // Some brokers return an empty result for an unknown topic; the metadata have the error.
        let leader =
            metadata::leader(&self.settings, deadline, &self.topic, self.partition, &mut self.metadata_cache).await?;
        match (self.topic_id, leader.topic_id) {
            (Some(expected), Some(found)) if expected != found => Err(Error::TopicChanged { expected, found }),
            _ => Ok(leader),
        }
    }

    async fn connect(&mut self, leader: Leader, deadline: Deadline) -> Result<Connection, Error> {
        let Leader { broker, epoch, topic_id } = leader;
        let connection = Connection::open(&broker, &self.settings, deadline).await?;
        (self.leader_epoch, self.fetch_topic_id) = (epoch, topic_id);
        self.topic_id = self.topic_id.or(topic_id);
        self.metadata_cache.update(topic_id, epoch.map(|epoch| (self.partition, epoch)).into_iter());
        self.refreshed_at = Instant::now();
        Ok(connection)
    }

    fn keep_connection_if_usable<T>(&mut self, connection: Connection, result: Result<T, Error>) -> Result<T, Error> {
        if connection.is_usable() && matches!(result, Ok(_) | Err(Error::OffsetOutOfRange)) {
            self.connection = Some(connection);
        }
        result
    }
}

/// The offset of a batch with a wrong checksum, and how often it was fetched, this fetch included.
fn count_corrupt(fetched: &Fetched, before: Option<(i64, u32)>) -> Option<(i64, u32)> {
    // A fetch of what is before it says nothing about it.
    let Some(corrupt) = fetched.corrupt() else { return before.filter(|(offset, _)| fetched.next <= *offset) };
    let before = before.filter(|(offset, _)| *offset == corrupt.first_offset);
    Some((corrupt.first_offset, before.map_or(0, |(_, attempts)| attempts) + 1))
}
