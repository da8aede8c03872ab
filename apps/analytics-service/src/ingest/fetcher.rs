use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kafka::{Consumer, FetchMemory, Fetched};
use runtime::Backoff;
use telemetry::metrics::{self, IntCounter, IntGaugeVec};
use uuid::Uuid;

use super::{
    BACKOFF, Ingest,
    budget::Budget,
    fetched_batch::{FetchedBatch, Source},
    queue::QueueSender,
    standbys::StandbyLimits,
};
use crate::{settings::OnOffsetLoss, state::SavedPosition};

/// The largest and the smallest fetch size, in bytes. A fetch that times out is repeated with a smaller size: the same size
/// might never succeed. More than the largest is not faster, and takes memory until it is decoded.
const FETCH_BYTES: (i32, i32) = (512 * 1024, 16 * 1024);
/// The fetch sizes of all partitions together, as far as each has the smallest one.
const TOTAL_FETCH_BYTES: i32 = 6 * 1024 * 1024;
/// How long the broker waits for the first record of a fetch.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Poll interval of a halted partition.
const HALTED_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How long an open transaction blocks a partition before it is logged.
const OPEN_TRANSACTION_LOG_DELAY: Duration = Duration::from_secs(10);

static HELD_UP: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "kafka_records_held_up",
        "Records of a partition that an open transaction blocks.",
        &["topic", "partition"],
    )
});
static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "records_lost_total",
        "Records that were deleted before they were read, with ON_OFFSET_LOSS=continue.",
    )
});
static HALTED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "ingest_halted",
        "1 while a partition is halted because its next record does not exist any more.",
        &["partition"],
    )
});

/// Shared by the fetchers of all partitions.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) ingest: Ingest,
    /// The id of the topic, also for partitions of which nothing was read yet.
    pub(super) topic_id: Arc<Mutex<Option<Uuid>>>,
    /// The memory of what is fetched, until the budget has room for what is made of it.
    pub(super) memory: FetchMemory,
    /// How many of the fetchers will be standbys.
    pub(super) standbys: usize,
    /// The memory of batches that are not applied yet.
    pub(super) budget: Arc<Budget>,
    /// The queue of the task that applies.
    pub(super) sender: QueueSender,
}

/// Fetches one partition.
pub(super) struct Fetcher {
    consumer: Consumer,
    partition: i32,
    /// The largest fetch size.
    max_bytes: i32,
    /// The position after the last batch; none before the first.
    position: Option<SavedPosition>,
    /// The open transaction that blocks the partition.
    open_transaction: Option<OpenTransaction>,
    /// How far it may read, if the partition is another member's and this instance keeps a copy. Its owner reports what there is to
    /// report.
    standby: Option<Arc<StandbyLimits>>,
    shared: Shared,
}

/// An open transaction that blocks a partition.
struct OpenTransaction {
    /// Its first offset.
    offset: i64,
    since: Instant,
    is_logged: bool,
}

/// Why the next record does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Records were deleted before they were read.
    Gap { records: i64 },
    /// The topic was recreated.
    TopicRecreated,
    /// The log lost its tail, which was read, and may have other records there: from `end` on, if that is known.
    LogTruncated { next: i64, end: Option<i64> },
    /// One of both: brokers without topic ids do not tell.
    LogReplaced,
}

/// Removes what is reported of a partition that another instance has now.
pub(super) fn clear_metrics(topic: &str, partition: i32) {
    let partition = partition.to_string();
    // They fail if nothing was exported yet.
    let _ = HALTED.remove_label_values(&[&partition]);
    let _ = HELD_UP.remove_label_values(&[topic, &partition]);
}

impl Fetcher {
    /// A fetcher of one of `total` partitions, from the saved position on.
    pub(super) fn new(shared: Shared, partition: i32, total: usize, saved: Option<SavedPosition>) -> Self {
        let settings = &shared.ingest.settings;
        let consumer = Consumer::new(settings.kafka.clone(), &settings.topic, partition).sharing(shared.memory.clone());
        let share = TOTAL_FETCH_BYTES / i32::try_from(total).unwrap_or(i32::MAX).max(1);
        let max_bytes = share.clamp(FETCH_BYTES.1, FETCH_BYTES.0);
        Self { consumer, partition, max_bytes, position: saved, open_transaction: None, standby: None, shared }
    }

    /// The same for a copy, which reads no further than these limits.
    pub(super) fn standby(self, limits: Arc<StandbyLimits>) -> Self {
        Self { standby: Some(limits), ..self }
    }

    /// Fetches until it is cancelled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut next = self.start_offset(&mut backoff).await;
        let mut bytes = self.max_bytes;
        loop {
            let standby_limit = match &self.standby {
                Some(limits) => Some(limits.wait(self.partition, next, &self.shared.ingest.read_model).await),
                None => None,
            };
            let fetched = self.consumer.fetch(next, bytes, FETCH_WAIT).await;
            bytes = match &fetched {
                // In small steps, because a size that is too large costs a deadline.
                Ok(_) => (bytes + FETCH_BYTES.1).min(self.max_bytes),
                Err(kafka::Error::Timeout(_)) => (bytes / 4).max(FETCH_BYTES.1),
                Err(_) => bytes,
            };
            match fetched {
                // Some brokers respond so to an offset beyond the end, others with an error.
                Ok(fetched) if fetched.high_watermark < next => {
                    // It may have the permit for the next fetch.
                    drop(fetched);
                    next = self.start_offset(&mut backoff).await;
                }
                Ok(fetched) => {
                    backoff.reset();
                    self.report_kafka(None);
                    self.report_end(fetched.high_watermark);
                    self.report_open_transaction(&fetched);
                    if fetched.next == next {
                        continue;
                    }
                    let (partition, topic_id) = (self.partition, self.consumer.topic_id());
                    let source = Source { topic_id, partition, standby_limit };
                    let batch = match fetched.unreadable {
                        Some(unreadable) => FetchedBatch::unreadable(source, unreadable, fetched.next),
                        None => {
                            let Shared { ingest, budget, .. } = &self.shared;
                            FetchedBatch::decode(&ingest.settings, source, fetched, budget).await
                        }
                    };
                    next = batch.position.next;
                    self.enqueue(batch).await;
                }
                Err(kafka::Error::OffsetOutOfRange | kafka::Error::TopicChanged { .. }) => {
                    next = self.start_offset(&mut backoff).await;
                }
                Err(error) => {
                    self.report_kafka(Some(error.to_string()));
                    backoff.pause().await;
                    // While it was not connected, the log may have lost its tail and got other records there.
                    next = self.start_offset(&mut backoff).await;
                }
            }
        }
    }

    async fn enqueue(&mut self, batch: FetchedBatch) {
        self.position = Some(batch.position);
        self.shared.sender.send(batch).await;
    }

    async fn enqueue_position(&mut self, position: SavedPosition) {
        let mut batch = FetchedBatch::empty(self.partition, position);
        batch.is_standby = self.standby.is_some();
        self.enqueue(batch).await;
    }

    /// The offset to fetch from, once it is known to belong to the topic.
    async fn start_offset(&mut self, backoff: &mut Backoff) -> i64 {
        let mut halted_by = None;
        loop {
            let known = *self.topic_id();
            self.consumer.expect_topic_id(self.position.and_then(|position| position.topic_id).or(known));
            // What was lost does not come back, although other records may fill its place.
            let checked = self.check_position().await.map(|(next, loss)| (next, loss.or(halted_by)));
            match checked {
                Ok((next, None)) => {
                    self.set_halted(None);
                    self.save_topic_id(next).await;
                    return next;
                }
                Ok((first, Some(loss))) => match self.shared.ingest.settings.on_offset_loss {
                    OnOffsetLoss::Continue => {
                        self.resume_after_loss(first, loss).await;
                        return first;
                    }
                    OnOffsetLoss::Halt => {
                        // The broker is available, and a halted partition does not fetch.
                        self.report_kafka(None);
                        self.set_halted(Some(loss));
                        halted_by = Some(loss);
                        smol::Timer::after(HALTED_POLL_INTERVAL).await;
                    }
                },
                Err(error) => {
                    self.report_kafka(Some(error.to_string()));
                    backoff.pause().await;
                }
            }
        }
    }

    fn report_kafka(&self, error: Option<String>) {
        if self.standby.is_none() {
            self.shared.ingest.report_kafka(Some(self.partition), error);
        }
    }

    /// The offset to fetch from. After a loss it is the earliest offset, or if the log was truncated, the first that may have
    /// another record.
    async fn check_position(&mut self) -> Result<(i64, Option<Loss>), kafka::Error> {
        let offsets = match self.consumer.offsets().await {
            Err(kafka::Error::TopicChanged { .. }) => return self.topic_recreated().await,
            offsets => offsets?,
        };
        self.report_end(offsets.end);
        let first = offsets.start;
        let Some(position) = self.position else { return Ok((first, None)) };
        let SavedPosition { next, last_timestamp, topic_id, leader_epoch } = position;
        if next < first {
            return Ok((first, Some(Loss::Gap { records: first - next })));
        }
        // The consumer reads no other topic than the one with this id.
        let replaced = |end| topic_id.map_or(Loss::LogReplaced, |_| Loss::LogTruncated { next, end });
        if let Some(epoch) = leader_epoch {
            let common = self.consumer.common_end(next, epoch).await?;
            if common < next {
                return Ok((common.max(first), Some(replaced(Some(common)))));
            }
        }
        if next > offsets.end {
            return Ok((first, Some(replaced(None))));
        }
        if let Some(expected) = last_timestamp.filter(|_| next > first) {
            // The record before must be the last applied one. After compaction it may be missing.
            let before = self.consumer.timestamp_at(next - 1, FETCH_WAIT).await?;
            if before.is_some_and(|timestamp| timestamp != expected) {
                return Ok((first, Some(replaced(None))));
            }
        }
        Ok((next, None))
    }

    /// Saves the topic id in the state, also if the partition stays empty, to recognize a recreated topic later. A state
    /// without an id, from an older version or from brokers without ids, takes the current one.
    async fn save_topic_id(&mut self, next: i64) {
        let topic_id = self.consumer.topic_id();
        let Some(known) = topic_id else { return };
        self.topic_id().get_or_insert(known);
        if self.position.is_none_or(|position| position.topic_id != topic_id) {
            let unread = SavedPosition { next, last_timestamp: None, topic_id, leader_epoch: None };
            let position = self.position.unwrap_or(unread);
            self.enqueue_position(SavedPosition { topic_id, ..position }).await;
        }
    }

    fn topic_id(&self) -> MutexGuard<'_, Option<Uuid>> {
        // Nothing panics while it is held.
        self.shared.topic_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of a check when another topic has the name. It is read only with `ON_OFFSET_LOSS=continue`.
    async fn topic_recreated(&mut self) -> Result<(i64, Option<Loss>), kafka::Error> {
        let first = match self.shared.ingest.settings.on_offset_loss {
            OnOffsetLoss::Halt => 0,
            OnOffsetLoss::Continue => {
                self.consumer.expect_topic_id(None);
                let first = self.consumer.offsets().await?.start;
                // The other partitions belong to the new topic too.
                *self.topic_id() = self.consumer.topic_id();
                first
            }
        };
        Ok((first, Some(Loss::TopicRecreated)))
    }

    async fn resume_after_loss(&mut self, first: i64, loss: Loss) {
        let partition = self.partition;
        if let Loss::LogTruncated { end: Some(_), .. } = loss {
            tracing::warn!(partition, ?loss, first, "records lost; resuming where the log was truncated");
        } else {
            tracing::warn!(partition, ?loss, first, "records lost; resuming at the earliest offset");
        }
        if let Loss::Gap { records } = loss
            && self.standby.is_none()
        {
            LOST.inc_by(records.unsigned_abs());
        }
        self.set_halted(None);
        // Save the position, also if the partition stays empty.
        let topic_id = self.consumer.topic_id();
        let (last_timestamp, leader_epoch) = (None, None);
        self.enqueue_position(SavedPosition { next: first, last_timestamp, topic_id, leader_epoch }).await;
    }

    fn set_halted(&self, loss: Option<Loss>) {
        let partition = self.partition;
        if self.standby.is_none() {
            HALTED.with_label_values(&[&partition.to_string()]).set(loss.is_some().into());
        }
        let why = loss.map(|loss| match loss {
            Loss::Gap { records } => format!("{records} records were deleted before they were read"),
            Loss::TopicRecreated => "the topic was deleted and created again since it was read".to_owned(),
            Loss::LogTruncated { next, .. } => {
                format!("the log was truncated: it lost records before offset {next} that were read")
            }
            Loss::LogReplaced => {
                "the topic was deleted and created again, or its log was truncated, since it was read".to_owned()
            }
        });
        let halted = |snapshot: &crate::read_model::Snapshot| snapshot.position(partition)?.halted.clone();
        if self.shared.ingest.read_model.read(halted) == why {
            return;
        }
        if let Some(why) = why.as_ref().filter(|_| self.standby.is_some()) {
            tracing::warn!(partition, why, "the copy of another member's partition is halted");
        } else if let Some(why) = &why {
            tracing::error!(
                partition,
                why,
                "partition halted: delete the state to count again what there is, or set ON_OFFSET_LOSS=continue"
            );
        }
        self.shared.ingest.read_model.change(|snapshot| {
            if let Some(position) = snapshot.position_mut(partition) {
                position.halted = why;
            }
        });
    }

    /// Reports an open transaction that blocks the partition: in the metric at once, in the log after a delay.
    fn report_open_transaction(&mut self, fetched: &Fetched) {
        let Fetched { last_stable_offset: offset, high_watermark, .. } = *fetched;
        let is_blocked = fetched.is_blocked_by_transaction();
        if self.standby.is_some() || !is_blocked && self.open_transaction.is_none() {
            return;
        }
        let partition = self.partition;
        let records = if is_blocked { high_watermark - offset } else { 0 };
        HELD_UP.with_label_values(&[&self.shared.ingest.settings.topic, &partition.to_string()]).set(records);
        let before = self.open_transaction.take();
        if !is_blocked {
            if before.is_some_and(|before| before.is_logged) {
                tracing::info!(partition, "no open transaction blocks the partition any more");
            }
            return;
        }
        let same = before.filter(|before| before.offset == offset);
        let mut transaction =
            same.unwrap_or_else(|| OpenTransaction { offset, since: Instant::now(), is_logged: false });
        if !transaction.is_logged && transaction.since.elapsed() >= OPEN_TRANSACTION_LOG_DELAY {
            tracing::warn!(partition, offset, records, "an open transaction blocks the partition");
            transaction.is_logged = true;
        }
        self.open_transaction = Some(transaction);
    }

    fn report_end(&self, end: i64) {
        let partition = self.partition;
        let known =
            self.shared.ingest.read_model.read(|snapshot| snapshot.position(partition).map(|position| position.end));
        if known.is_some_and(|known| known != end) {
            self.shared.ingest.read_model.change(|snapshot| {
                if let Some(position) = snapshot.position_mut(partition) {
                    position.end = end;
                }
            });
        }
    }
}
