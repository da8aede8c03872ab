use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kafka::{Consumer, Fetched};
use runtime::Backoff;
use smol::channel::Sender;
use telemetry::metrics::{self, IntCounter, IntGaugeVec};
use uuid::Uuid;

use super::{BACKOFF, Ingest, batch::Batch, budget::Budget};
use crate::{settings::OnOffsetLoss, state::SavedPosition};

/// Bytes that one fetch asks for, at most and at least. A broker that does not give them in time is asked for less: the
/// same question again would only load it more, and never be answered. More at once is not faster, and a fetched byte
/// takes memory until it is decoded.
const FETCH_BYTES: (i32, i32) = (512 * 1024, 16 * 1024);
/// Bytes that the fetches of all partitions together ask for, as long as each may ask for the least.
const FETCH_BYTES_OF_ALL: i32 = 6 * 1024 * 1024;
/// How long a fetch waits at the broker for a first record.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// How often a halted partition is looked at again.
const HALTED_LOOK: Duration = Duration::from_secs(10);

/// How long an open transaction holds a partition up before it is logged.
const LONG: Duration = Duration::from_secs(10);

static HELD_UP: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "kafka_records_held_up",
        "Records of a partition that are not read because of a transaction that is not ended.",
        &["topic", "partition"],
    )
});
static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "records_lost_total",
        "Records that were gone before they were read, with ON_OFFSET_LOSS=continue.",
    )
});
static HALTED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("intake_halted", "1 while a partition is not read because its next record is gone.", &["partition"])
});

/// What the fetchers of all partitions share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) ingest: Ingest,
    /// The id of the topic that is read: a topic is another one for all of its partitions, also for those that nothing
    /// was read of.
    pub(super) topic_id: Arc<Mutex<Option<Uuid>>>,
    /// For what is fetched and not applied yet.
    pub(super) budget: Arc<Budget>,
    /// To whoever applies.
    pub(super) sender: Sender<Batch>,
}

/// Fetches one partition.
pub(super) struct Fetcher {
    consumer: Consumer,
    partition: i32,
    /// Bytes that a fetch asks for, at most.
    most_bytes: i32,
    /// Where the partition goes on after what was fetched; none if nothing ever was.
    position: Option<SavedPosition>,
    /// What holds the partition up, if anything does.
    held_up: Option<HeldUp>,
    shared: Shared,
}

/// A transaction that is not ended and holds a partition up.
struct HeldUp {
    /// Its first offset.
    offset: i64,
    since: Instant,
    is_logged: bool,
}

/// Why the next record cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// So many records were deleted before they were read.
    Gap { records: i64 },
    /// The topic is not the one that was read before.
    OtherTopic,
}

impl Fetcher {
    /// A fetcher of one of so many partitions, from what was saved on.
    pub(super) fn new(shared: Shared, partition: i32, of: usize, saved: Option<SavedPosition>) -> Self {
        let settings = &shared.ingest.settings;
        let consumer = Consumer::new(settings.kafka.clone(), &settings.topic, partition);
        let share = FETCH_BYTES_OF_ALL / i32::try_from(of).unwrap_or(i32::MAX).max(1);
        let most_bytes = share.clamp(FETCH_BYTES.1, FETCH_BYTES.0);
        Self { consumer, partition, most_bytes, position: saved, held_up: None, shared }
    }

    /// Fetches until it is cancelled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut next = self.begin(&mut backoff).await;
        let mut bytes = self.most_bytes;
        loop {
            let fetched = self.consumer.fetch(next, bytes, FETCH_WAIT).await;
            bytes = match &fetched {
                // Up again in small steps, because each that is too large costs a deadline.
                Ok(_) => (bytes + FETCH_BYTES.1).min(self.most_bytes),
                Err(kafka::Error::Late(_)) => (bytes / 4).max(FETCH_BYTES.1),
                Err(_) => bytes,
            };
            match fetched {
                // Some brokers answer so for an offset after the end, others with an error.
                Ok(fetched) if fetched.high_watermark < next => next = self.begin(&mut backoff).await,
                Ok(fetched) => {
                    backoff.reset();
                    self.shared.ingest.report_kafka(Some(self.partition), None);
                    self.report_end(fetched.high_watermark);
                    self.report_held_up(&fetched);
                    if fetched.next == next {
                        continue;
                    }
                    next = fetched.next;
                    let (partition, topic_id) = (self.partition, self.consumer.topic_id());
                    let batch = match fetched.unreadable {
                        Some(unreadable) => Batch::unreadable(topic_id, partition, unreadable, next),
                        None => {
                            let Shared { ingest, budget, .. } = &self.shared;
                            Batch::decode((&ingest.settings.topic, topic_id), partition, fetched, budget).await
                        }
                    };
                    self.hand_over(batch).await;
                }
                Err(kafka::Error::OffsetOutOfRange | kafka::Error::TopicChanged { .. }) => {
                    next = self.begin(&mut backoff).await;
                }
                Err(error) => {
                    self.shared.ingest.report_kafka(Some(self.partition), Some(error.to_string()));
                    backoff.pause().await;
                    // The consumer connects anew and compares the topic's id. Where there is none, we compare what we can.
                    if self.consumer.topic_id().is_none() {
                        next = self.begin(&mut backoff).await;
                    }
                }
            }
        }
    }

    async fn hand_over(&mut self, batch: Batch) {
        self.position = Some(batch.position);
        // Whoever applies is gone: this task is about to be cancelled.
        let _ = self.shared.sender.send(batch).await;
    }

    /// The offset to read from, once there is one to be trusted.
    async fn begin(&mut self, backoff: &mut Backoff) -> i64 {
        loop {
            let known = *self.topic_id();
            self.consumer.expect_topic_id(self.position.and_then(|position| position.topic_id).or(known));
            match self.check().await {
                Ok((next, None)) => {
                    self.halt(None);
                    self.note_topic(next).await;
                    return next;
                }
                Ok((first, Some(loss))) => match self.shared.ingest.settings.on_offset_loss {
                    OnOffsetLoss::Continue => {
                        self.go_on(first, loss).await;
                        return first;
                    }
                    OnOffsetLoss::Halt => {
                        // The broker answers; nothing is fetched, which would report so.
                        self.shared.ingest.report_kafka(Some(self.partition), None);
                        self.halt(Some(loss));
                        smol::Timer::after(HALTED_LOOK).await;
                    }
                },
                Err(error) => {
                    self.shared.ingest.report_kafka(Some(self.partition), Some(error.to_string()));
                    backoff.pause().await;
                }
            }
        }
    }

    /// The offset to read from; with a loss, the first that there is.
    async fn check(&mut self) -> Result<(i64, Option<Loss>), kafka::Error> {
        let offsets = match self.consumer.offsets().await {
            Err(kafka::Error::TopicChanged { .. }) => return self.other_topic().await,
            offsets => offsets?,
        };
        self.report_end(offsets.end);
        let first = offsets.start;
        let Some(SavedPosition { next, last_timestamp, .. }) = self.position else { return Ok((first, None)) };
        if next < first {
            return Ok((first, Some(Loss::Gap { records: first - next })));
        }
        if next > offsets.end {
            return Ok((first, Some(Loss::OtherTopic)));
        }
        if let Some(expected) = last_timestamp.filter(|_| next > first) {
            // The record before must be the one that was applied last; after compaction it may be gone.
            let fetched = self.consumer.fetch(next - 1, FETCH_BYTES.1, FETCH_WAIT).await?;
            let before = fetched.records.iter().next().filter(|record| record.offset == next - 1);
            if before.is_some_and(|record| record.timestamp != expected) {
                return Ok((first, Some(Loss::OtherTopic)));
            }
        }
        Ok((next, None))
    }

    /// Has the state note which topic the partition belongs to, also if nothing ever comes: whatever has the name later is
    /// compared with it. A state without the id, of before or of brokers that had none, takes the one that there is.
    async fn note_topic(&mut self, next: i64) {
        let topic_id = self.consumer.topic_id();
        let Some(known) = topic_id else { return };
        self.topic_id().get_or_insert(known);
        if self.position.is_none_or(|position| position.topic_id != topic_id) {
            let last_timestamp = self.position.and_then(|position| position.last_timestamp);
            self.hand_over(Batch::empty(self.partition, SavedPosition { next, last_timestamp, topic_id })).await;
        }
    }

    fn topic_id(&self) -> MutexGuard<'_, Option<Uuid>> {
        // Nothing can panic while it is held.
        self.shared.topic_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another topic has the name now. It is not read before somebody has decided so.
    async fn other_topic(&mut self) -> Result<(i64, Option<Loss>), kafka::Error> {
        let first = match self.shared.ingest.settings.on_offset_loss {
            OnOffsetLoss::Halt => 0,
            OnOffsetLoss::Continue => {
                self.consumer.expect_topic_id(None);
                let first = self.consumer.offsets().await?.start;
                // The other partitions are of the topic that there is now, too.
                *self.topic_id() = self.consumer.topic_id();
                first
            }
        };
        Ok((first, Some(Loss::OtherTopic)))
    }

    async fn go_on(&mut self, first: i64, loss: Loss) {
        let partition = self.partition;
        tracing::warn!(partition, ?loss, first, "records lost; resuming at the earliest offset");
        if let Loss::Gap { records } = loss {
            LOST.inc_by(records.unsigned_abs());
        }
        self.halt(None);
        // The state has to know where it is, also if nothing ever comes.
        let topic_id = self.consumer.topic_id();
        self.hand_over(Batch::empty(partition, SavedPosition { next: first, last_timestamp: None, topic_id })).await;
    }

    fn halt(&self, loss: Option<Loss>) {
        let partition = self.partition;
        HALTED.with_label_values(&[&partition.to_string()]).set(loss.is_some().into());
        let why = loss.map(|loss| match loss {
            Loss::Gap { records } => format!("{records} records were deleted before they were read"),
            Loss::OtherTopic => "the topic was made anew since it was read".to_owned(),
        });
        let halted =
            |snapshot: &crate::read_model::Snapshot| snapshot.partitions.get(&partition).and_then(|p| p.halted.clone());
        if self.shared.ingest.read_model.read(halted) == why {
            return;
        }
        if let Some(why) = &why {
            tracing::error!(
                partition,
                why,
                "partition halted: delete the state to count again what there is, or set ON_OFFSET_LOSS=continue"
            );
        }
        self.shared.ingest.change(|snapshot| {
            if let Some(position) = snapshot.partitions.get_mut(&partition) {
                position.halted = why;
            }
        });
    }

    /// Tells of a transaction that is not ended and holds the partition up, by the metric at once, by the log after a while.
    fn report_held_up(&mut self, fetched: &Fetched) {
        let Fetched { last_stable_offset: offset, high_watermark, .. } = *fetched;
        let is_held_up = fetched.is_held_up();
        if !is_held_up && self.held_up.is_none() {
            return;
        }
        let partition = self.partition;
        let records = if is_held_up { high_watermark - offset } else { 0 };
        HELD_UP.with_label_values(&[&self.shared.ingest.settings.topic, &partition.to_string()]).set(records);
        let before = self.held_up.take();
        if !is_held_up {
            if before.is_some_and(|before| before.is_logged) {
                tracing::info!(partition, "no transaction holds the partition up any more");
            }
            return;
        }
        let same = before.filter(|before| before.offset == offset);
        let mut held_up = same.unwrap_or_else(|| HeldUp { offset, since: Instant::now(), is_logged: false });
        if !held_up.is_logged && held_up.since.elapsed() >= LONG {
            tracing::warn!(partition, offset, records, "a transaction that is not ended holds the partition up");
            held_up.is_logged = true;
        }
        self.held_up = Some(held_up);
    }

    fn report_end(&self, end: i64) {
        let partition = self.partition;
        let known = self
            .shared
            .ingest
            .read_model
            .read(|snapshot| snapshot.partitions.get(&partition).map(|position| position.end));
        if known.is_some_and(|known| known != end) {
            self.shared.ingest.change(|snapshot| {
                if let Some(position) = snapshot.partitions.get_mut(&partition) {
                    position.end = end;
                }
            });
        }
    }
}
