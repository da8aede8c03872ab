//! Publishes the events of the outbox: at least once, in order per patient.
//!
//! One relay sends the events of a shard, the one that holds the shard's lease; the others stand by. It selects what is
//! there rather than what came after the last one it saw: ids are given before commits, and a late commit would be
//! skipped. It has one batch in flight for each partition, and forgets events after the broker's acknowledgement. A crash
//! in between, a time-out of a batch that was stored, or a relay that was frozen while it sent make duplicates.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::Utc;
use codec::{
    event::Kind,
    headers::{self, Headers},
    partition,
};
use kafka::{Producer, Record};
use runtime::{Backoff, Shutdown, Wake, within};
use telemetry::metrics::{self, IntCounter, IntGauge, IntGaugeVec};
use uuid::Uuid;

use crate::outbox::{Backlog, Outbox, Pending, Wanted};

/// Events that are read at once.
const READ_AT_ONCE: i64 = 1000;
/// Bytes of one batch at most: with its frame it has to stay below the 1 MiB that brokers take by default.
const BATCH_BYTES: usize = 900_000;
/// What a record's frame adds to its key, value and headers, at most.
const FRAME_BYTES: usize = 64;
/// The slow look for events that nobody has woken us for: those of other replicas.
const LOOK: Duration = Duration::from_millis(500);
/// The quick look, for as long as there has been something within [`BUSY`]: other replicas are at work too.
const QUICK_LOOK: Duration = Duration::from_millis(20);
const BUSY: Duration = Duration::from_secs(1);
/// Pauses after failures.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// No insert can still be under way that took its id longer ago than this, as long as the database answers: it gives
/// statements and idle transactions up before.
const LATE_COMMIT: Duration = Duration::from_secs(10);
/// A longer silence between two answers of the database does not count as time in which it answered.
const SILENCE: Duration = Duration::from_secs(1);
/// How often everything is read from the first id on, in case a commit was later than that after all.
const READ_ALL: Duration = Duration::from_secs(30);
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
            outbox,
            producer: Producer::new(settings.kafka.clone(), &settings.topic),
            settings,
            shard,
            holder: Uuid::now_v7(),
            leased_until: Arc::default(),
            failing: BTreeMap::new(),
            seen: Seen::default(),
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
    /// If the lease is not ours, or something failed; what was acknowledged before is forgotten all the same.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        if !self.lease().is_ours() {
            return Err(StepError::NotLeased);
        }
        let partitions = match self.producer.partitions().await {
            Ok(partitions) => partitions,
            Err(kafka::Error::UnknownTopic) => self.create_topic().await.map_err(StepError::Kafka)?,
            Err(error) => return Err(StepError::Kafka(error)),
        };
        let now = Instant::now();
        let without: Vec<i32> =
            self.failing.iter().filter(|(_, failing)| failing.until > now).map(|(&partition, _)| partition).collect();
        let wanted = Wanted {
            shard: (self.shard, self.settings.shards),
            from: self.seen.from(now),
            without: (&without, partitions),
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
        // What stays in the outbox, read or left out, must be read again before anything that comes after it.
        let handled = if without.is_empty() { left.first().map(|id| id - 1).or(largest) } else { None };
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
            let records = batches.iter().map(|(&partition, batch)| (partition, batch.records())).collect();
            let mut acknowledged = Vec::new();
            let mut again = BTreeMap::new();
            for (partition, result) in self.producer.send(records).await {
                let Some(batch) = batches.remove(&partition) else { continue };
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
            if !acknowledged.is_empty() {
                PUBLISHED.inc_by(acknowledged.len() as u64);
                self.outbox.delete(&acknowledged).await?;
                for id in &acknowledged {
                    left.remove(id);
                }
            }
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
            let pause = match self.step().await {
                Ok(step) => {
                    backoff.reset();
                    let now = Instant::now();
                    if step.published > 0 {
                        (last_busy, last_sign) = (now, now);
                        self.broker.tell(Ok(()));
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

/// The right to send a shard's events, for a while.
#[derive(Clone, Debug)]
struct Lease {
    outbox: Outbox,
    shard: i32,
    holder: Uuid,
    duration: Duration,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Lease {
    async fn hold(&self) -> Result<bool, postgres::Error> {
        // From before the question: the database's period begins later, so that ours ends first.
        let asked = Instant::now();
        let held = self.outbox.hold_lease(self.shard, self.holder, self.duration).await?;
        self.set(held.then(|| asked + self.duration));
        Ok(held)
    }

    fn is_ours(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    async fn release(&self) {
        self.set(None);
        // A lease that cannot be given back runs out by itself.
        let _ = self.outbox.release_lease(self.shard, self.holder).await;
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// Events for one partition, in order.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Pending>,
    bytes: usize,
    full: bool,
}

impl Batch {
    /// Adds an event unless the batch is full. An event that finds no room waits for the next step, and so does
    /// everything after it.
    fn add(&mut self, event: Pending) {
        let bytes = record(&event).approximate_size() + FRAME_BYTES;
        self.full |= !self.events.is_empty() && self.bytes + bytes > BATCH_BYTES;
        if !self.full {
            self.bytes += bytes;
            self.events.push(event);
        }
    }

    fn first_half(mut self) -> Self {
        self.events.truncate(self.events.len() / 2);
        self
    }

    fn records(&self) -> Vec<Record> {
        self.events.iter().map(record).collect()
    }
}

fn record(event: &Pending) -> Record {
    Record {
        key: Some(event.patient_id.to_string().into_bytes()),
        value: Some(event.value.clone()),
        headers: headers_of(event),
        timestamp: Utc::now(),
    }
}

fn headers_of(event: &Pending) -> Headers {
    match event.event_type.parse::<Kind>() {
        Ok(kind) => headers::of_event(event.event_id, kind, event.created_at, event.traceparent.as_deref()),
        // A later version of this service wrote a kind that we do not know. Its value says all.
        Err(_) => Headers::new(),
    }
}

/// Up to which id nothing is left and nothing is still to come, so that reading can begin there.
#[derive(Debug, Default)]
struct Seen {
    /// For how long the database has been answering.
    alive: Duration,
    last_answer: Option<Instant>,
    /// Ids up to which everything visible was handled, with the time of `alive` then, oldest first.
    handled: VecDeque<(Duration, i64)>,
    settled: i64,
    last_read_all: Option<Instant>,
}

impl Seen {
    /// The id to read from.
    fn from(&mut self, now: Instant) -> i64 {
        while let Some(&(_, id)) =
            self.handled.front().filter(|(then, _)| self.alive.saturating_sub(*then) > LATE_COMMIT)
        {
            self.settled = id;
            self.handled.pop_front();
        }
        if self.last_read_all.is_none_or(|last| now.duration_since(last) > READ_ALL) {
            self.last_read_all = Some(now);
            return 0;
        }
        self.settled + 1
    }

    /// The database has answered, and everything it showed up to `id` need not be read again.
    fn handled_up_to(&mut self, id: Option<i64>, now: Instant) {
        let silence = self.last_answer.map_or(Duration::ZERO, |last| now.duration_since(last));
        self.alive += silence.min(SILENCE);
        self.last_answer = Some(now);
        let newest = self.handled.back();
        // One entry for each tenth of a second is fine enough, and bounds the list.
        let spaced = newest.is_none_or(|(then, _)| self.alive.saturating_sub(*then) >= Duration::from_millis(100));
        let grown = id.filter(|&id| id > newest.map_or(self.settled, |&(_, newest)| newest));
        if let Some(id) = grown.filter(|_| spaced) {
            self.handled.push_back((self.alive, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(200);

    /// Lets the database answer for a while, with nothing new.
    fn answer(seen: &mut Seen, from: Instant, period: Duration) -> Instant {
        let mut now = from;
        while now < from + period {
            now += STEP;
            seen.handled_up_to(None, now);
        }
        now
    }

    #[test]
    fn reading_begins_after_what_is_settled() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        assert_eq!(seen.from(start), 0, "at first, everything");
        seen.handled_up_to(Some(100), start);
        assert_eq!(seen.from(start), 1, "an insert with a smaller id may be under way");
        let now = answer(&mut seen, start, LATE_COMMIT + STEP);
        assert_eq!(seen.from(now), 101);
    }

    #[test]
    fn everything_is_read_now_and_then() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        seen.from(start);
        seen.handled_up_to(Some(100), start);
        let now = answer(&mut seen, start, READ_ALL + STEP);
        assert_eq!(seen.from(now), 0);
        assert_eq!(seen.from(now), 101);
    }

    #[test]
    fn a_database_that_was_frozen_gets_its_time_afterwards() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        seen.from(start);
        seen.handled_up_to(Some(100), start);
        let thawed = start + LATE_COMMIT * 2;
        seen.handled_up_to(None, thawed);
        assert_eq!(seen.from(thawed), 1);
    }

    #[test]
    fn a_batch_ends_before_what_does_not_fit_and_takes_nothing_after_it() {
        let event = |id, bytes| Pending {
            id,
            patient_id: Uuid::nil(),
            key_hash: 0,
            event_id: Uuid::nil(),
            event_type: Kind::Created.name().to_owned(),
            value: vec![0; bytes],
            traceparent: None,
            created_at: Utc::now(),
        };
        let mut batch = Batch::default();
        for (id, bytes) in [(1, BATCH_BYTES * 2), (2, 1), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1], "one always fits");
        let mut batch = Batch::default();
        for (id, bytes) in [(1, BATCH_BYTES / 2), (2, BATCH_BYTES), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1]);
    }
}
