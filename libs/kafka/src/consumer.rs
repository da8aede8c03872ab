use std::{ops::Range, time::Duration};

use bytes::Bytes;
use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{
        FetchRequest, ListOffsetsRequest, ListOffsetsResponse, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    protocol::StrBytes,
};
use smol::lock::SemaphoreGuard;
use uuid::Uuid;

use crate::{
    Error, Malformed, Records, Settings, Unreadable,
    batch::RawBatch,
    call::{Deadline, call, millis},
    connection::{Answer, Connection},
    fetch_answer::{FetchAnswer, Partition},
    leader::{self, Leader},
    memory,
    records::{DECOMPRESSED_AT_ONCE, LARGEST_BATCH, Read},
    versions::FETCH_BY_NAME,
};

/// Only what is committed, if it was sent in a transaction.
const READ_COMMITTED: i8 = 1;
/// So often a batch whose checksum is wrong is fetched, each time over a new connection to whoever leads then, before it
/// is passed as unreadable: damage on the way does not come again, and damage on a disk may have healed.
const CHECKSUM_ATTEMPTS: u32 = 5;
/// So often a fetch is tried that a quota leaves without an answer, while nothing is known of the partition: each time waits
/// as long as the broker says.
const THROTTLED_ATTEMPTS: u32 = 10;
/// Stand for the first offset and the one after the last, in the place of a timestamp.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;
/// In a request: no leader epoch is known, and the broker checks none.
const NO_EPOCH: i32 = -1;
/// In a request: no fetch session, the answer has all that was asked for.
const NO_SESSION: i32 = -1;

/// Reads one partition of a topic. It keeps no position: the caller says which offset it wants.
///
/// It has a connection of its own to the partition's leader. After any failure it connects anew, and asks who leads.
///
/// # Which topic it is
///
/// A topic can be deleted and made again with the same name, and then an offset of the one means nothing in the other.
/// Brokers since Apache Kafka 2.8, with metadata in KRaft or of `inter.broker.protocol.version` 2.8, give each topic an
/// id. The consumer remembers the id of the topic that it has read first, or the one that it was told to expect
/// ([`expect_topic_id`](Self::expect_topic_id)), and from then on reads no other: it fetches by that id, and compares it
/// whenever it connects. Who stores an offset stores [`topic_id`](Self::topic_id) with it.
///
/// Some brokers have no topic ids, and then it is none. What such a caller can do is compare the timestamp of the record
/// before the stored offset. There, a [`leader_epoch`](Self::leader_epoch) below the stored one tells of another topic
/// too, but an equal or a higher one tells nothing.
#[derive(Debug)]
pub struct Consumer {
    settings: Settings,
    topic: TopicName,
    partition: i32,
    connection: Option<Connection>,
    /// The topic that is read; none until it is known.
    topic_id: Option<Uuid>,
    /// Its id, if the brokers that it was connected through knew it.
    fetched_by: Option<Uuid>,
    /// The last leader's.
    leader_epoch: Option<i32>,
    /// The offset of a batch whose checksum is wrong, and how often it was.
    damaged: Option<(i64, u32)>,
    /// The high watermark and the last stable offset of the last answer that told them.
    ends: Option<(i64, i64)>,
}

/// What a fetch gave.
#[derive(Debug)]
pub struct Fetched {
    /// Records from the asked offset on, in order. What an aborted transaction has sent is not among them, nor are the
    /// markers at the ends of transactions, which have offsets too.
    pub records: Records,
    /// The offset to ask for next. If it is not the one that was asked for, what is before it is done with, even if there
    /// are no records.
    pub next: i64,
    /// The offset after the last record of the partition, or after the marker at the end of the last transaction. If a quota
    /// of the broker left the fetch without records, it is that of the fetch before.
    pub high_watermark: i64,
    /// The first offset of the oldest transaction that is not ended; as the high watermark if there is none. Nothing is
    /// given from here on, as some of it may turn out to be aborted.
    pub last_stable_offset: i64,
    /// A batch before `next` that cannot be read, now or later. Then there are no records: those before it came before.
    pub unreadable: Option<Unreadable>,
}

impl Fetched {
    /// Whether all was read that may be, and a transaction that is not ended holds up the rest. Brokers end it when its
    /// time is up, by default after a minute, at most after 15.
    pub fn is_held_up(&self) -> bool {
        self.next >= self.last_stable_offset && self.last_stable_offset < self.high_watermark
    }
}

impl Consumer {
    /// A consumer that connects when it is first used, and again after a failure.
    pub fn new(settings: Settings, topic: impl Into<String>, partition: i32) -> Self {
        let topic = TopicName(StrBytes::from_string(topic.into()));
        Self {
            settings,
            topic,
            partition,
            connection: None,
            topic_id: None,
            fetched_by: None,
            leader_epoch: None,
            damaged: None,
            ends: None,
        }
    }

    /// The partition that it reads.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The id of the topic that it reads, to be stored with an offset. None before the first call that succeeds, and where
    /// the brokers have no topic ids.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.topic_id
    }

    /// How often a leader of the partition had been elected when it connected last. None before the first call that
    /// succeeds, and where the brokers do not tell.
    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// Reads the topic with this id from now on and no other of the same name; with none, whichever there is when it
    /// connects next.
    pub fn expect_topic_id(&mut self, topic_id: Option<Uuid>) {
        if self.topic_id != topic_id {
            (self.topic_id, self.leader_epoch, self.connection) = (topic_id, None, None);
            self.ends = None;
        }
    }

    /// The offsets that there are: from the first record kept to after the last.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn offsets(&mut self) -> Result<Range<i64>, Error> {
        self.throttled().await;
        let deadline = Deadline::new(self.settings.deadline);
        let work = async {
            let mut connection = self.connection(deadline).await?;
            let earliest = self.list_offset(&mut connection, EARLIEST, deadline).await;
            let offsets = match earliest {
                Ok(earliest) => {
                    let latest = self.list_offset(&mut connection, LATEST, deadline).await;
                    latest.map(|latest| earliest..latest)
                }
                Err(error) => Err(error),
            };
            self.keep_if_well(connection, offsets)
        };
        call("offsets", deadline, Box::pin(work)).await
    }

    /// Fetches about `max_bytes` from `offset` on, waiting up to `wait` for a first record.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if there is no such offset, where the broker says so; [`Error::TopicChanged`] if another
    /// topic has the name now; [`Error::UnknownTopicId`] and [`Error::FencedLeaderEpoch`] if that is about to turn out;
    /// [`Error::Malformed`] if the answer cannot be read, or a batch may yet be; otherwise if the broker cannot be asked.
    pub async fn fetch(&mut self, offset: i64, max_bytes: i32, wait: Duration) -> Result<Fetched, Error> {
        for _ in 0..THROTTLED_ATTEMPTS {
            // Outside of the deadline: a broker that makes us wait is not one that does not answer.
            self.throttled().await;
            if let Some(fetched) = self.fetch_unthrottled(offset, max_bytes, wait).await? {
                return Ok(fetched);
            }
            if let Some((high_watermark, last_stable_offset)) = self.ends {
                let records = Records::default();
                return Ok(Fetched { records, next: offset, high_watermark, last_stable_offset, unreadable: None });
            }
        }
        Err(Malformed::NothingGiven.into())
    }

    /// Waits as long as the broker reads nothing of the connection, because of a quota.
    async fn throttled(&self) {
        if let Some(until) = self.connection.as_ref().and_then(Connection::throttled_until) {
            smol::Timer::at(until).await;
        }
    }

    /// None if a quota of the broker left the fetch without an answer.
    async fn fetch_unthrottled(
        &mut self,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let deadline = Deadline::new(self.settings.deadline + wait);
        let work = async {
            let mut connection = self.connection(deadline).await?;
            let fetched = self.fetch_whole(&mut connection, offset, max_bytes, wait).await;
            self.keep_if_well(connection, fetched)
        };
        // Boxed, because a fetch with its connection is large, and would be part of every caller's future.
        let Some(fetched) = call("fetch", deadline, Box::pin(work)).await? else { return Ok(None) };
        let damaged = attempts(&fetched, self.damaged);
        self.damaged = damaged.filter(|(_, attempts)| *attempts < CHECKSUM_ATTEMPTS);
        if self.damaged.is_some() {
            self.connection = None;
            return Err(Malformed::Checksum.into());
        }
        self.ends = Some((fetched.high_watermark, fetched.last_stable_offset));
        Ok(Some(fetched))
    }

    /// As [`fetch_once`](Self::fetch_once), and again with more room if a batch needs it.
    async fn fetch_whole(
        &self,
        connection: &mut Connection,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let gives_nothing = |fetched: &Fetched| fetched.next == offset && fetched.last_stable_offset > offset;
        let throttled_before = connection.throttled_until();
        let is_throttled = |connection: &Connection| connection.throttled_until() > throttled_before;
        let Some(fetched) = self.fetch_once(connection, offset, max_bytes, wait).await? else { return Ok(None) };
        if !gives_nothing(&fetched) {
            return Ok(Some(fetched));
        }
        if is_throttled(connection) {
            return Ok(None);
        }
        // Some brokers give nothing of a batch that is larger than asked for.
        let Some(fetched) = self.fetch_once(connection, offset, LARGEST_BATCH as i32, wait).await? else {
            return Ok(None);
        };
        match gives_nothing(&fetched) {
            true if is_throttled(connection) => Ok(None),
            true => Err(Malformed::NothingGiven.into()),
            false => Ok(Some(fetched)),
        }
    }

    /// None if there is no answer but the time to wait, because of a quota of the broker.
    async fn fetch_once(
        &self,
        connection: &mut Connection,
        offset: i64,
        max_bytes: i32,
        wait: Duration,
    ) -> Result<Option<Fetched>, Error> {
        let version = connection.version::<FetchRequest>(self.fetched_by.map_or(FETCH_BY_NAME, |_| i16::MAX))?;
        let by_id = self.fetched_by.filter(|_| version > FETCH_BY_NAME);
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
            // Some brokers take 0 for "no answer at all".
            .with_max_wait_ms(millis(wait).max(1))
            .with_min_bytes(1)
            .with_max_bytes(max_bytes)
            .with_isolation_level(READ_COMMITTED)
            .with_session_epoch(NO_SESSION)
            .with_topics(vec![topic.with_partitions(vec![partition])]);
        let Answer { body, cut_off, large } = connection.exchange(version, &request).await?;
        let answer = FetchAnswer::read(version, body, self.partition)?;
        connection.throttle::<FetchRequest>(answer.throttle_ms);
        if let Some(error) = answer.error_code.err() {
            return Err(connection.answered::<FetchRequest>(error, None));
        }
        let Some(partition) = answer.partition else {
            return if answer.throttle_ms > 0 { Ok(None) } else { Err(Malformed::Answer.into()) };
        };
        let Partition { error_code, high_watermark, last_stable_offset, aborted, records } = partition;
        if let Some(error) = error_code.err() {
            return Err(connection.answered::<FetchRequest>(error, None));
        }
        let Read { records, next, unreadable } = match cut_off {
            Some(length) => {
                Read::too_large(RawBatch::peek(&records).map_err(|_| Malformed::AnswerTooLarge(length))?, offset)
            }
            None => read(records, offset, aborted, large).await?,
        };
        // Some brokers know of no transactions.
        let last_stable_offset = if last_stable_offset < 0 { high_watermark } else { last_stable_offset };
        // The end of a batch that is damaged may be wrong.
        let next = if unreadable.is_some() { next.min(high_watermark).max(offset + 1) } else { next };
        Ok(Some(Fetched { records, next, high_watermark, last_stable_offset, unreadable }))
    }

    async fn list_offset(&self, connection: &mut Connection, which: i64, deadline: Deadline) -> Result<i64, Error> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(self.partition)
            .with_current_leader_epoch(self.leader_epoch.unwrap_or(NO_EPOCH))
            .with_timestamp(which);
        let topic = ListOffsetsTopic::default().with_name(self.topic.clone()).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic])
            .with_timeout_ms(millis(deadline.left()));
        let answer: ListOffsetsResponse = connection.call(&request).await?;
        let topic = answer.topics.into_iter().find(|found| found.name == self.topic);
        let mut partitions = topic.into_iter().flat_map(|topic| topic.partitions);
        let found = partitions.find(|found| found.partition_index == self.partition).ok_or(Malformed::Answer)?;
        match found.error_code.err() {
            Some(error) => Err(connection.answered::<ListOffsetsRequest>(error, None)),
            None => Ok(found.offset),
        }
    }

    async fn connection(&mut self, deadline: Deadline) -> Result<Connection, Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection.until(deadline));
        }
        let connect = async {
            // Some brokers answer fetches of a topic that they do not have, with nothing; the metadata tell.
            let Leader { broker, epoch, topic_id } =
                leader::of_partition(&self.settings, deadline, &self.topic, self.partition).await?;
            if let (Some(expected), Some(found)) = (self.topic_id, topic_id)
                && expected != found
            {
                return Err(Error::TopicChanged { expected, found });
            }
            let connection = Connection::open(&broker, self.settings.client_id, deadline).await?;
            Ok((connection, epoch, topic_id))
        };
        let (connection, epoch, topic_id) = call("connect", deadline, Box::pin(connect)).await?;
        (self.leader_epoch, self.fetched_by) = (epoch, topic_id);
        self.topic_id = self.topic_id.or(topic_id);
        Ok(connection)
    }

    fn keep_if_well<T>(&mut self, connection: Connection, result: Result<T, Error>) -> Result<T, Error> {
        if matches!(result, Ok(_) | Err(Error::OffsetOutOfRange)) {
            self.connection = Some(connection);
        }
        result
    }
}

/// The offset of a batch whose checksum is wrong, and how often it was with this fetch; none if there is none.
fn attempts(fetched: &Fetched, before: Option<(i64, u32)>) -> Option<(i64, u32)> {
    let damaged = fetched.unreadable.filter(|unreadable| unreadable.reason == Malformed::Checksum)?;
    let before = before.filter(|(offset, _)| *offset == damaged.first_offset);
    Some((damaged.first_offset, before.map_or(0, |(_, attempts)| attempts) + 1))
}

/// Reads what was fetched; a first batch that takes much memory when it is decompressed waits for its turn.
async fn read(
    bytes: Bytes,
    from: i64,
    aborted: Vec<(i64, i64)>,
    large: Option<SemaphoreGuard<'static>>,
) -> Result<Read, Malformed> {
    let is_large = large.is_some();
    let largest = if is_large { LARGEST_BATCH } else { DECOMPRESSED_AT_ONCE };
    let read = Records::read(bytes.clone(), from, aborted.clone(), largest)?;
    let needs_more = read.unreadable.is_some_and(|unreadable| unreadable.reason == Malformed::TooLarge);
    let (mut read, large) = if needs_more && !is_large {
        let large = memory::large().await;
        (Records::read(bytes, from, aborted, LARGEST_BATCH)?, Some(large))
    } else {
        (read, large)
    };
    read.records.large = large;
    Ok(read)
}
