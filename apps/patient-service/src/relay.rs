//! Publishes the events of the outbox: at least once, in order per patient.
//!
//! One relay sends the events of a shard, the one that holds the shard's lease; the others stand by. It selects what is
//! there rather than what came after the last one it saw: ids are given before commits, and a late commit would be
//! skipped. It has one batch in flight for each partition, and deletes events after the broker's acknowledgement, while it
//! reads and sends the next ones. A crash in between, a time-out of a batch that was stored, or a relay that was frozen
//! while it sent make duplicates.

mod acked_deleter;
mod batch;
mod lease;
mod low_watermark;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use kafka::Producer;
use kafka::partitioner;
use runtime::{Backoff, Notify, Shutdown, timeout};
use telemetry::{
    Outage,
    metrics::{self, IntCounter, IntGauge, IntGaugeVec},
};

use self::{
    acked_deleter::AckedDeleter,
    batch::Batch,
    lease::Lease,
    low_watermark::{Ids, LowWatermark},
    record::Sending,
};
use crate::outbox::{Backlog, Outbox, OutboxRow, PendingQuery};

/// Events that are read at once.
const MAX_ROWS: i64 = 1000;
/// Reads of the outbox in one step: one more if it turns out to be another outbox, and one if a connection was stale.
const MAX_READS: usize = 3;
/// Poll interval for events written by other replicas, which wake nobody here.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The shorter poll interval, for as long as there has been something within [`BUSY`]: other replicas are at work too.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(20);
const BUSY: Duration = Duration::from_secs(1);
/// Steps that have something to send begin so far apart at least. A step costs a statement, a request and fetches, however
/// little it carries; one that comes alone does not wait.
const PACE: Duration = Duration::from_millis(10);
/// Pauses after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often the backlog is told, and a quiet broker is asked for a sign of life.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

static PUBLISHED: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("relay_published_total", "Events acknowledged by the broker."));
static REFUSED: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("relay_refused_total", "Events that the broker refused for good."));
static ID_REGRESSIONS: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("outbox_id_regressions_total", "Times that the ids of the outbox went back, as after a restore.")
});
static LEASES: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("relay_leases_held", "Shards of the outbox that this instance sends."));
static PENDING: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "Events that wait to be published, counted up to 100000 by the holder of the shard's lease, or by every \
                replica while nobody renews it.";
    metrics::gauges("outbox_pending", help, &["shard"])
});
static OLDEST: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("outbox_oldest_age_seconds", "How long the oldest waiting event has waited.", &["shard"])
});

/// Where events are published, and who does it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach Kafka.
    pub kafka: kafka::Settings,
    /// The topic.
    pub topic: String,
    /// Its partitions, if it has to be made.
    pub partitions: i32,
    /// Shards of the outbox, the same on all replicas.
    pub shards: i32,
    /// How long a lease lasts unless it is kept.
    pub lease: Duration,
    /// No insert can still be under way that took its id longer ago than this, as long as the database answers: it gives
    /// statements and idle transactions up before.
    pub late_commit: Duration,
}

/// How the broker is, as far as the relays know. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct BrokerState {
    outage: Arc<Outage<i32>>,
}

/// Why events cannot be published.
#[derive(Clone, Debug)]
struct Trouble {
    /// What tells it from another one ([`kafka::Error::cause`]).
    cause: String,
    text: String,
}

impl From<&kafka::Error> for Trouble {
    fn from(error: &kafka::Error) -> Self {
        Self { cause: error.cause(), text: error.to_string() }
    }
}

impl BrokerState {
    /// Why events cannot be published, if there are some that cannot.
    pub fn trouble(&self) -> Option<String> {
        self.outage.reason()
    }

    /// Notes how it is for a shard. The begin of an outage is logged once for all shards, and so is its end; in between each
    /// other cause once, because it may be somebody else's to heal.
    fn report(&self, shard: i32, trouble: Option<Trouble>) {
        match trouble {
            Some(Trouble { cause, text: error }) => {
                if self.outage.failed_for(shard, &cause, &error) {
                    tracing::warn!(error, cause, "events cannot be published; they wait in the outbox");
                }
            }
            None => {
                if let Some(lasted) = self.outage.recovered_for(&shard) {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "events can be published again");
                }
            }
        }
    }
}

/// The relay of one shard.
#[derive(Debug)]
pub struct Relay {
    outbox: Outbox,
    producer: Producer,
    settings: Settings,
    shard: i32,
    lease: Lease,
    /// Partitions that failed, and when they are tried again.
    failing: BTreeMap<i32, Failing>,
    watermark: LowWatermark,
    acked: AckedDeleter,
    /// The event that waits longest, and since when we have seen it: its age by a clock that does not step.
    oldest: Option<(i64, Instant)>,
    broker: BrokerState,
}

#[derive(Debug)]
struct Failing {
    backoff: Backoff,
    until: Instant,
    trouble: Trouble,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Events that it read.
    pub read: usize,
    /// Events that the broker acknowledged.
    pub published: usize,
}

/// Why a step did not do all it should.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Another instance has the lease.
    #[error("the lease is not held")]
    NotLeased,
    /// The database could not do its part.
    #[error(transparent)]
    Database(#[from] postgres::Error),
    /// The broker could not.
    #[error(transparent)]
    Kafka(kafka::Error),
}

impl Relay {
    /// A relay that has not got its lease yet.
    pub fn new(outbox: Outbox, settings: Settings, shard: i32, broker: BrokerState) -> Self {
        Self {
            lease: Lease::new(outbox.clone(), shard, settings.lease),
            acked: AckedDeleter::new(outbox.clone()),
            outbox,
            producer: Producer::new(settings.kafka.clone(), &settings.topic),
            shard,
            failing: BTreeMap::new(),
            watermark: LowWatermark::new(settings.late_commit),
            oldest: None,
            settings,
            broker,
        }
    }

    /// Takes or keeps the lease; false if another instance has it.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn hold_lease(&self) -> Result<bool, postgres::Error> {
        self.lease.hold().await
    }

    /// Publishes the oldest events of the shard, as many as fit one batch for each partition. Whatever comes in between,
    /// what the broker has acknowledged is counted, and deleted in this step or a later one.
    ///
    /// # Errors
    /// If the lease is not ours, or something failed that kept everything from being published.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        // Whoever holds the lease now and however the broker is: what it has acknowledged need not be sent again.
        self.acked.keep_up().await?;
        if !self.lease.is_ours() {
            self.failing.clear();
            return Err(StepError::NotLeased);
        }
        let partitions = match self.producer.partitions().await {
            Ok(partitions) => partitions,
            Err(kafka::Error::UnknownTopic) => self.create_topic().await.map_err(StepError::Kafka)?,
            Err(error) => return Err(StepError::Kafka(error)),
        };
        let now = Instant::now();
        self.failing.retain(|&partition, _| partition < partitions);
        let failing = self.failing.iter().filter(|(_, failing)| failing.until > now).map(|(&partition, _)| partition);
        // A broker whose quota is used up takes nothing now, and that is no outage: what is sent now would wait there, be
        // taken for lost and be sent again.
        let without: BTreeSet<i32> = failing.chain(self.producer.throttled().into_keys()).collect();
        let without: Vec<i32> = without.into_iter().collect();
        if without.len() as i32 == partitions {
            return Ok(Step::default());
        }
        let events = self.read((&without, partitions), now).await?;
        let read = events.len();
        let mut left: BTreeSet<i64> = events.iter().map(|event| event.id).collect();
        let largest = left.last().copied();
        let mut batches = BTreeMap::<i32, Batch>::new();
        for event in events {
            batches.entry(partitioner::of_hash(event.key_hash, partitions)).or_default().add(event);
        }
        // A partition that failed and has nothing left to send has no trouble any more.
        self.failing.retain(|partition, failing| failing.until > now || batches.contains_key(partition));
        let outcome = self.publish(batches, &mut left).await;
        // What stays in the outbox, read or left out, must be read again before anything that comes after it; so must what
        // could not be deleted.
        let first_left = left.first().copied().into_iter().chain(self.acked.rows().map(|row| row.id)).min();
        let published_up_to = if without.is_empty() { first_left.map(|id| id - 1).or(largest) } else { None };
        self.watermark.published_up_to(published_up_to, now);
        let published = read - left.len();
        match outcome {
            // An error of every partition is one of the broker, or of the database.
            Err(error) if published == 0 => Err(error),
            _ => Ok(Step { read, published }),
        }
    }

    /// The events to publish next.
    async fn read(&mut self, without: (&[i32], i32), now: Instant) -> Result<Vec<OutboxRow>, StepError> {
        let acked = self.acked.event_ids();
        for _ in 0..MAX_READS {
            let query = PendingQuery {
                shard: (self.shard, self.settings.shards),
                from: self.watermark.from(now),
                without,
                acked: &acked,
                limit: MAX_ROWS,
            };
            let (source, events) = self.outbox.pending(&query).await?;
            let last_id = source.last_id;
            // Where the ids do not go on as before, these events are dropped: what has to be sent before them may have
            // smaller ids than those that were read.
            match self.watermark.check(source) {
                Ids::Continue => return Ok(events),
                Ids::OtherSource => {
                    tracing::info!(last_id, "PostgreSQL was restarted or replaced; the whole outbox is read again");
                }
                Ids::WentBack => {
                    ID_REGRESSIONS.inc();
                    let message = "ids of the outbox went back, as after a restore or a failover to a replica that \
                                   lagged: changes may be lost; the whole outbox is read again";
                    tracing::warn!(last_id, "{message}");
                }
            }
        }
        Err(postgres::Error::Unavailable("connections lead to different servers in turn".into()).into())
    }

    async fn create_topic(&mut self) -> Result<i32, kafka::Error> {
        let Settings { kafka, topic, partitions, .. } = &self.settings;
        if kafka::create_topic(kafka, topic, *partitions).await? {
            tracing::info!(topic, partitions, "topic created");
        }
        self.producer.partitions().await
    }

    /// Sends a batch to each partition at once. Takes from `left` what need not be sent again.
    ///
    /// # Errors
    /// That of one partition if some failed, after all have been tried; or that the lease is not ours any more.
    async fn publish(&mut self, mut batches: BTreeMap<i32, Batch>, left: &mut BTreeSet<i64>) -> Result<(), StepError> {
        let mut outcome = Ok(());
        while !batches.is_empty() {
            // We may have been frozen since the step began; whoever took over has sent these events.
            if !self.lease.is_ours() {
                return Err(StepError::NotLeased);
            }
            let (mut sendings, mut records) = (BTreeMap::new(), BTreeMap::new());
            for (&partition, batch) in &batches {
                let (sending, batch) = Sending::begin(&self.settings.topic, partition, &batch.events);
                sendings.insert(partition, sending);
                records.insert(partition, batch);
            }
            let (mut again, mut rejected) = (BTreeMap::new(), Vec::new());
            for (partition, result) in self.producer.send(records).await {
                let Some(batch) = batches.remove(&partition) else { continue };
                sendings.remove(&partition).unwrap_or_default().end(&result);
                match result {
                    Ok(_) => {
                        self.failing.remove(&partition);
                        PUBLISHED.inc_by(batch.events.len() as u64);
                        for event in &batch.events {
                            left.remove(&event.id);
                        }
                        self.acked.add(batch.events.iter().map(OutboxRow::key));
                    }
                    // Too large a batch may be made of small records: halves find the one that is to blame.
                    Err(kafka::Error::RecordRejected(_)) if batch.events.len() > 1 => {
                        again.insert(partition, batch.first_half());
                    }
                    Err(error @ kafka::Error::RecordRejected(_)) => {
                        rejected.extend(batch.events.into_iter().map(|event| (partition, event, error.clone())));
                    }
                    Err(error) => {
                        self.fail(partition, Trouble::from(&error));
                        outcome = Err(StepError::Kafka(error));
                    }
                }
            }
            // Only now, when the outcome of every partition is noted: this can fail too.
            for (partition, event, error) in rejected {
                match self.dead_letter(&event, &error).await {
                    Ok(()) => {
                        self.failing.remove(&partition);
                        left.remove(&event.id);
                    }
                    Err(error) => {
                        let text = format!("an event cannot be dead-lettered: {error}");
                        self.fail(partition, Trouble { cause: "dead_letter".to_owned(), text });
                        outcome = Err(StepError::Database(error));
                    }
                }
            }
            batches = again;
        }
        outcome
    }

    /// Leaves a partition out for a while.
    fn fail(&mut self, partition: i32, trouble: Trouble) {
        let failing = self.failing.entry(partition).or_insert_with(|| Failing {
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            until: Instant::now(),
            trouble: trouble.clone(),
        });
        failing.until = Instant::now() + failing.backoff.next_pause();
        failing.trouble = trouble;
    }

    /// Why some partition cannot be published to.
    fn trouble(&self) -> Option<Trouble> {
        let (partition, Failing { trouble, .. }) = self.failing.iter().next()?;
        let Trouble { cause, text } = trouble.clone();
        Some(Trouble { cause, text: format!("partition {partition}: {text}") })
    }

    async fn dead_letter(&self, event: &OutboxRow, error: &kafka::Error) -> Result<(), postgres::Error> {
        self.outbox.dead_letter(event.key(), &error.to_string()).await?;
        REFUSED.inc();
        let OutboxRow { patient_id, event_id, .. } = event;
        tracing::error!(%patient_id, %event_id, %error, "event rejected by the broker; it is in outbox_dead_letters");
        Ok(())
    }

    /// Publishes until the shutdown, then finishes its batch and gives up the lease. `waker` cuts the pauses short.
    pub async fn run(mut self, waker: RelayWaker, shutdown: Shutdown) {
        let keep = runtime::spawn(keep_lease(self.lease.clone(), self.shard, waker.clone()));
        self.steps(&waker, &shutdown).await;
        self.acked.finish().await;
        keep.cancel().await;
        self.lease.release().await;
    }

    /// Shows how full the outbox is. A replica that knows that another one holds the lease leaves it to that one, and shows
    /// nothing rather than a number that it does not know.
    async fn report_backlog(&mut self) {
        let shard = self.shard.to_string();
        let from = match (self.lease.is_ours(), self.lease.is_renewed_by_another()) {
            (true, _) => self.watermark.next_id(),
            (false, false) => 0,
            (false, true) => {
                self.oldest = None;
                // It may not have been shown.
                let _ = PENDING.remove_label_values(&[&shard]);
                let _ = OLDEST.remove_label_values(&[&shard]);
                return;
            }
        };
        let Ok(backlog) = self.outbox.backlog((self.shard, self.settings.shards), from).await else { return };
        let Backlog { events, first_id, oldest_seconds, ids_behind } = backlog;
        if let Some(largest_id) = ids_behind {
            tracing::warn!(largest_id, "the sequence of the outbox's ids is behind them; it is moved past them");
            // An outage is logged, and the next report finds it again.
            let _ = self.outbox.move_ids_past(largest_id).await;
        }
        let now = Instant::now();
        let seen_before = self.oldest.filter(|(id, _)| Some(*id) == first_id);
        self.oldest = seen_before.or(first_id.map(|id| (id, now)));
        // The database's clock may have been set back since the event was stored; what we have seen is certain.
        let seen_for = self.oldest.map_or(Duration::ZERO, |(_, since)| now.duration_since(since));
        PENDING.with_label_values(&[&shard]).set(events);
        OLDEST.with_label_values(&[&shard]).set(oldest_seconds.max(seen_for.as_secs_f64()) as i64);
    }

    async fn steps(&mut self, waker: &RelayWaker, shutdown: &Shutdown) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let (mut last_busy, mut last_sign, mut last_told) = (Instant::now(), Instant::now(), None::<Instant>);
        while !shutdown.is_triggered() {
            if last_told.is_none_or(|told| told.elapsed() > REPORT_INTERVAL) {
                last_told = Some(Instant::now());
                self.report_backlog().await;
            }
            let begun = Instant::now();
            let pause = match self.step().await {
                Ok(step) => {
                    backoff.reset();
                    let now = Instant::now();
                    if step.published > 0 {
                        (last_busy, last_sign) = (now, now);
                        self.broker.report(self.shard, self.trouble());
                        smol::Timer::at(begun + PACE).await;
                        // More may have come while this batch was in flight.
                        continue;
                    }
                    if let Some(trouble) = self.trouble() {
                        self.broker.report(self.shard, Some(trouble));
                    } else if now.duration_since(last_sign) > SIGN_OF_LIFE {
                        last_sign = now;
                        let Settings { kafka, topic, .. } = &self.settings;
                        let sign = kafka::partitions(kafka, topic).await;
                        self.broker.report(self.shard, sign.err().as_ref().map(Trouble::from));
                    }
                    if now.duration_since(last_busy) < BUSY { BUSY_POLL_INTERVAL } else { POLL_INTERVAL }
                }
                Err(StepError::Kafka(error)) => {
                    let trouble = self.trouble().unwrap_or_else(|| Trouble::from(&error));
                    self.broker.report(self.shard, Some(trouble));
                    backoff.next_pause()
                }
                // `Database` has logged the outage; nothing can be read meanwhile.
                Err(StepError::Database(_)) => {
                    if let Some(trouble) = self.trouble() {
                        self.broker.report(self.shard, Some(trouble));
                    }
                    backoff.next_pause()
                }
                Err(StepError::NotLeased) => {
                    self.broker.report(self.shard, None);
                    (self.settings.lease / 10).min(POLL_INTERVAL)
                }
            };
            let wait = timeout(pause, waker.wait(self.shard));
            // The outcome does not matter: time, a tap, or the end.
            let _ = shutdown.run_until_stopped(wait).await;
        }
    }
}

/// Takes the lease, and renews it for as long as it is polled.
async fn keep_lease(lease: Lease, shard: i32, waker: RelayWaker) {
    let mut held = false;
    let mut backoff = Backoff::new(BACKOFF.0, lease.renewal_interval());
    loop {
        let renewed = lease.hold().await;
        let holds = lease.is_ours();
        if holds != held {
            held = holds;
            LEASES.add(if held { 1 } else { -1 });
            tracing::info!(shard, held, "relay lease");
            waker.notify();
        }
        let pause = match renewed {
            Ok(_) => {
                backoff.reset();
                lease.pause()
            }
            // The lease runs out by itself meanwhile.
            Err(_) => backoff.next_pause(),
        };
        smol::Timer::after(pause).await;
    }
}

/// Wakes the relays of this instance when there is something to publish.
#[derive(Clone, Debug)]
pub struct RelayWaker(Arc<[Notify]>);

impl RelayWaker {
    /// For the relays of this many shards.
    pub fn new(shards: i32) -> Self {
        Self((0..shards).map(|_| Notify::new()).collect())
    }

    /// Wakes them all: which shard an event belongs to is theirs to know. Never waits.
    pub fn notify(&self) {
        self.0.iter().for_each(Notify::notify);
    }

    async fn wait(&self, shard: i32) {
        self.0[shard as usize].wait().await;
    }
}
