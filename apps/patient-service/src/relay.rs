//! Publishes the events of the outbox: at least once, in order per patient.
//!
//! One relay sends the events of a shard, the one that holds the shard's lease; the others stand by. It selects what is
//! there rather than what came after the last one it saw: ids are given before commits, and a late commit would be
//! skipped. It has one batch in flight for each partition, and forgets events after the broker's acknowledgement, while it
//! reads and sends the next ones. A crash in between, a time-out of a batch that was stored, or a relay that was frozen
//! while it sent make duplicates.

mod batch;
mod forgetting;
mod lease;
mod record;
mod seen;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use codec::partition;
use kafka::Producer;
use runtime::{Backoff, Shutdown, Wake, within};
use telemetry::metrics::{self, IntCounter, IntGauge, IntGaugeVec};
use uuid::Uuid;

use self::{batch::Batch, forgetting::Forgetting, lease::Lease, record::Sending, seen::Seen};
use crate::outbox::{Backlog, Outbox, Pending, Wanted};

/// Events that are read at once.
const READ_AT_ONCE: i64 = 1000;
/// The slow look for events that nobody has woken us for: those of other replicas.
const LOOK: Duration = Duration::from_millis(500);
/// The quick look, for as long as there has been something within [`BUSY`]: other replicas are at work too.
const QUICK_LOOK: Duration = Duration::from_millis(20);
const BUSY: Duration = Duration::from_secs(1);
/// Steps that have something to send begin so far apart at least. A step costs a statement, a request and fetches, however
/// little it carries; one that comes alone does not wait.
const PACE: Duration = Duration::from_millis(10);
/// Pauses after failures.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often the backlog is told, and a quiet broker is asked for a sign of life.
const TELL: Duration = Duration::from_secs(2);
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

static PUBLISHED: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("relay_published_total", "Events acknowledged by the broker."));
static REFUSED: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("relay_refused_total", "Events that the broker refused for good."));
static LEASES: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("relay_leases_held", "Shards of the outbox that this instance sends."));
static PENDING: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "Events that wait to be published, counted up to 100000 by the holder of the shard's lease.";
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

/// How the broker is, as far as the relay knows.
#[derive(Clone, Debug, Default)]
pub struct BrokerState {
    /// Why it cannot be used; none if it can, or if it has not been tried.
    trouble: Arc<Mutex<Option<String>>>,
}

impl BrokerState {
    /// Why the broker cannot be used, if it cannot.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, outcome: Result<(), String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*trouble, &outcome) {
            (None, Err(error)) => tracing::warn!(error, "events cannot be published; they wait in the outbox"),
            (Some(_), Ok(())) => tracing::info!("events can be published again"),
            _ => {}
        }
        *trouble = outcome.err();
    }
}

/// The relay of one shard.
#[derive(Debug)]
pub struct Relay {
    outbox: Outbox,
    producer: Producer,
    settings: Settings,
    shard: i32,
    holder: Uuid,
    /// Until when the lease is ours without doubt, by our own monotonic clock; none if it is not.
    leased_until: Arc<Mutex<Option<Instant>>>,
    /// Partitions that failed, and when they are tried again.
    failing: BTreeMap<i32, Failing>,
    seen: Seen,
    forgetting: Forgetting,
    broker: BrokerState,
}

#[derive(Debug)]
struct Failing {
    backoff: Backoff,
    until: Instant,
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
#[derive(Debug)]
pub enum StepError {
    /// Another instance has the lease.
    NotLeased,
    /// The database could not do its part.
    Database(postgres::Error),
    /// The broker could not.
    Kafka(kafka::Error),
}

impl From<postgres::Error> for StepError {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl Relay {
    /// A relay that has not got its lease yet.
    pub fn new(outbox: Outbox, settings: Settings, shard: i32, broker: BrokerState) -> Self {
        Self {
            forgetting: Forgetting::new(outbox.clone()),
            outbox,
            producer: Producer::new(settings.kafka.clone(), &settings.topic),
            shard,
            holder: Uuid::now_v7(),
            leased_until: Arc::default(),
            failing: BTreeMap::new(),
            seen: Seen::new(settings.late_commit),
            settings,
            broker,
        }
    }

    /// Takes or keeps the lease; false if another instance has it.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn hold_lease(&self) -> Result<bool, postgres::Error> {
        self.lease().hold().await
    }

    fn lease(&self) -> Lease {
        Lease {
            outbox: self.outbox.clone(),
            shard: self.shard,
            holder: self.holder,
            duration: self.settings.lease,
            until: self.leased_until.clone(),
        }
    }

    /// Publishes the oldest events of the shard, as many as fit one batch for each partition.
    ///
    /// # Errors
    /// If the lease is not ours, or something failed, a deletion of what an earlier step has published too; what was
    /// acknowledged before is forgotten all the same.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        if !self.lease().is_ours() {
            return Err(StepError::NotLeased);
        }
        let partitions = match self.producer.partitions().await {
            Ok(partitions) => partitions,
            Err(kafka::Error::UnknownTopic) => self.create_topic().await.map_err(StepError::Kafka)?,
            Err(error) => return Err(StepError::Kafka(error)),
        };
        self.forgetting.keep_up().await?;
        let now = Instant::now();
        let without: Vec<i32> =
            self.failing.iter().filter(|(_, failing)| failing.until > now).map(|(&partition, _)| partition).collect();
        let acknowledged: Vec<i64> = self.forgetting.ids().collect();
        let wanted = Wanted {
            shard: (self.shard, self.settings.shards),
            from: self.seen.from(now),
            without: (&without, partitions),
            acknowledged: &acknowledged,
            limit: READ_AT_ONCE,
        };
        let events = self.outbox.pending(&wanted).await?;
        let read = events.len();
        let mut left: BTreeSet<i64> = events.iter().map(|event| event.id).collect();
        let largest = left.last().copied();
        let mut batches = BTreeMap::<i32, Batch>::new();
        for event in events {
            batches.entry(partition::of_hash(event.key_hash, partitions)).or_default().add(event);
        }
        let outcome = self.publish(batches, &mut left).await;
        // What stays in the outbox, read or left out, must be read again before anything that comes after it; so must what
        // could not be deleted.
        let first_left = left.first().copied().into_iter().chain(self.forgetting.ids()).min();
        let handled = if without.is_empty() { first_left.map(|id| id - 1).or(largest) } else { None };
        self.seen.handled_up_to(handled, now);
        let error = outcome?;
        let published = read - left.len();
        match error {
            // An error of every partition is one of the broker.
            Some(error) if published == 0 => Err(StepError::Kafka(error)),
            _ => Ok(Step { read, published }),
        }
    }

    async fn create_topic(&mut self) -> Result<i32, kafka::Error> {
        let Settings { kafka, topic, partitions, .. } = &self.settings;
        if kafka::create_topic(kafka, topic, *partitions).await? {
            tracing::info!(topic, partitions, "topic created");
        }
        self.producer.partitions().await
    }

    /// Sends a batch to each partition at once. Takes from `left` what need not be sent again, and gives a partition's
    /// error.
    async fn publish(
        &mut self,
        mut batches: BTreeMap<i32, Batch>,
        left: &mut BTreeSet<i64>,
    ) -> Result<Option<kafka::Error>, StepError> {
        let mut failure = None;
        while !batches.is_empty() {
            // We may have been frozen since the step began; whoever took over has sent these events.
            if !self.lease().is_ours() {
                return Err(StepError::NotLeased);
            }
            let (mut sendings, mut records) = (BTreeMap::new(), BTreeMap::new());
            for (&partition, batch) in &batches {
                let (sending, batch) = Sending::begin(&self.settings.topic, partition, &batch.events);
                sendings.insert(partition, sending);
                records.insert(partition, batch);
            }
            let mut acknowledged = Vec::new();
            let mut again = BTreeMap::new();
            for (partition, result) in self.producer.send(records).await {
                let Some(batch) = batches.remove(&partition) else { continue };
                sendings.remove(&partition).unwrap_or_default().end(&result);
                match result {
                    Ok(_) => {
                        self.failing.remove(&partition);
                        acknowledged.extend(batch.events.iter().map(|event| event.id));
                    }
                    // Too large a batch may be made of small records: halves find the one that is to blame.
                    Err(kafka::Error::Refused(_)) if batch.events.len() > 1 => {
                        again.insert(partition, batch.first_half());
                    }
                    Err(error @ kafka::Error::Refused(_)) => {
                        for event in batch.events {
                            self.bury(&event, &error).await?;
                            left.remove(&event.id);
                        }
                    }
                    Err(error) => {
                        let failing = self.failing.entry(partition).or_insert_with(|| Failing {
                            backoff: Backoff::new(PAUSES.0, PAUSES.1),
                            until: Instant::now(),
                        });
                        failing.until = Instant::now() + failing.backoff.next_pause();
                        failure = Some(error);
                    }
                }
            }
            PUBLISHED.inc_by(acknowledged.len() as u64);
            for id in &acknowledged {
                left.remove(id);
            }
            self.forgetting.add(acknowledged);
            batches = again;
        }
        Ok(failure)
    }

    async fn bury(&self, event: &Pending, error: &kafka::Error) -> Result<(), postgres::Error> {
        self.outbox.bury(event.id, &error.to_string()).await?;
        REFUSED.inc();
        let Pending { patient_id, event_id, .. } = event;
        tracing::error!(%patient_id, %event_id, %error, "event refused by the broker; it is in outbox_dead_letters");
        Ok(())
    }

    /// Publishes until the shutdown, then finishes its batch and gives up the lease. `waker` cuts the pauses short.
    pub async fn run(mut self, waker: RelayWaker, shutdown: Shutdown) {
        let lease = self.lease();
        let keep = {
            let (lease, waker) = (lease.clone(), waker.clone());
            async move {
                let mut held = false;
                let mut backoff = Backoff::new(PAUSES.0, lease.duration / 3);
                loop {
                    let pause = match lease.hold().await {
                        Ok(holds) => {
                            if holds != held {
                                held = holds;
                                LEASES.add(if held { 1 } else { -1 });
                                tracing::info!(shard = lease.shard, held, "relay lease");
                                waker.notify();
                            }
                            backoff.reset();
                            lease.duration / 3
                        }
                        // The lease runs out by itself meanwhile.
                        Err(_) => backoff.next_pause(),
                    };
                    smol::Timer::after(pause).await;
                }
            }
        };
        let keep = runtime::spawn(keep);
        self.steps(&waker, &shutdown).await;
        // What cannot be deleted now is published again.
        let _ = self.forgetting.finish().await;
        keep.cancel().await;
        lease.release().await;
    }

    async fn tell_backlog(&mut self) {
        let shard = self.shard.to_string();
        let backlog = if self.lease().is_ours() {
            self.outbox.backlog((self.shard, self.settings.shards), self.seen.settled + 1).await
        } else {
            Ok(Backlog::default())
        };
        if let Ok(Backlog { events, oldest_seconds }) = backlog {
            PENDING.with_label_values(&[&shard]).set(events);
            OLDEST.with_label_values(&[&shard]).set(oldest_seconds as i64);
        }
    }

    async fn steps(&mut self, waker: &RelayWaker, shutdown: &Shutdown) {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let (mut last_busy, mut last_sign, mut last_told) = (Instant::now(), Instant::now(), None::<Instant>);
        while !shutdown.is_triggered() {
            if last_told.is_none_or(|told| told.elapsed() > TELL) {
                last_told = Some(Instant::now());
                self.tell_backlog().await;
            }
            let begun = Instant::now();
            let pause = match self.step().await {
                Ok(step) => {
                    backoff.reset();
                    let now = Instant::now();
                    if step.published > 0 {
                        (last_busy, last_sign) = (now, now);
                        self.broker.tell(Ok(()));
                        smol::Timer::at(begun + PACE).await;
                        // More may have come while this batch was in flight.
                        continue;
                    }
                    if now.duration_since(last_sign) > SIGN_OF_LIFE {
                        last_sign = now;
                        let Settings { kafka, topic, .. } = &self.settings;
                        let sign = kafka::partitions(kafka, topic).await;
                        self.broker.tell(sign.map(drop).map_err(|error| error.to_string()));
                    }
                    if now.duration_since(last_busy) < BUSY { QUICK_LOOK } else { LOOK }
                }
                Err(StepError::Kafka(error)) => {
                    self.broker.tell(Err(error.to_string()));
                    backoff.next_pause()
                }
                // `Database` has logged the outage; nothing can be read meanwhile.
                Err(StepError::Database(_)) => backoff.next_pause(),
                Err(StepError::NotLeased) => {
                    self.broker.tell(Ok(()));
                    self.settings.lease / 10
                }
            };
            let wait = within(pause, waker.wait(self.shard));
            // The outcome does not matter: time, a tap, or the end.
            let _ = shutdown.or_stop(wait).await;
        }
    }
}

/// Wakes the relays of this instance when there is something to publish.
#[derive(Clone, Debug)]
pub struct RelayWaker(Arc<[Wake]>);

impl RelayWaker {
    /// For the relays of this many shards.
    pub fn new(shards: i32) -> Self {
        Self((0..shards).map(|_| Wake::new()).collect())
    }

    /// Wakes them all: which shard an event belongs to is theirs to know. Never waits.
    pub fn notify(&self) {
        self.0.iter().for_each(Wake::notify);
    }

    async fn wait(&self, shard: i32) {
        self.0[shard as usize].wait().await;
    }
}
