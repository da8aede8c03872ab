//! Publishes the events of the outbox: at least once, in order per patient.
//!
//! One relay sends the events of a shard, the one that holds the shard's lease; the others stand by. It selects what is
//! there rather than what came after the last one it saw: ids are given before commits, and a late commit would be
//! skipped. Requests of this instance hand the first event of a patient over, which no other has to be sent before, so it
//! is sent without reading the outbox ([decision 55](../../../docs/decisions/0055-relay-takes-first-events-from-requests.md)).
//!
//! It has one batch in flight for each partition, and deletes events some time after the broker's acknowledgement, many
//! with one statement. A crash in between, a time-out of a batch that was stored, or a relay that was frozen while it sent
//! make duplicates.

mod acked_deleter;
mod batch;
mod broker_state;
mod lease;
mod low_watermark;
mod publisher;
mod read_schedule;
mod record;
mod rejections;
mod topic;
mod waker;

use std::{
    collections::BTreeSet,
    sync::LazyLock,
    time::{Duration, Instant},
};

use runtime::{Backoff, Shutdown, timeout};
use smol::future::or;
use telemetry::metrics::{self, IntCounter, IntGauge, IntGaugeVec};

pub use self::{broker_state::BrokerState, topic::CleanupPolicy, waker::RelayWaker};
use self::{
    broker_state::PublishFailure,
    lease::Lease,
    low_watermark::{LowWatermark, SourceChange},
    publisher::Publisher,
    read_schedule::{ReadSchedule, Work},
};
use crate::outbox::{Backlog, Outbox, OutboxRow, PendingQuery};

/// Events that are read at once.
const MAX_ROWS: i64 = 1000;
/// Reads of the outbox in one step: one more if it turns out to be another outbox, and one if a connection was stale.
const MAX_READS: usize = 3;
/// Shortest time between the beginnings of two steps that send. Each costs a produce request and the consumers' fetches, however
/// few events it has. A step after a longer pause begins at once.
const STEP_INTERVAL: Duration = Duration::from_millis(10);
/// How long acknowledged events wait for others to be deleted with them. After a crash, those that wait are published again.
const DELETE_LINGER: Duration = Duration::from_millis(200);
/// Pauses after failures: the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Interval at which a standby checks its lease.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between reports of the backlog.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Time without a publication after which the broker is asked for its partitions, to find out whether it responds.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Its cleanup policy, if it has to be made.
    pub cleanup_policy: CleanupPolicy,
    /// Shards of the outbox, the same on all replicas.
    pub shards: i32,
    /// How long a lease lasts unless it is kept.
    pub lease: Duration,
    /// No insert can still be under way that took its id longer ago than this, as long as the database responds: it gives
    /// statements and idle transactions up before.
    pub late_commit: Duration,
}

/// The relay of one shard.
#[derive(Debug)]
pub struct Relay {
    outbox: Outbox,
    publisher: Publisher,
    settings: Settings,
    shard: i32,
    lease: Lease,
    watermark: LowWatermark,
    schedule: ReadSchedule,
    /// The event that waits longest, and since when this relay has known it: a lower bound of its age by a monotonic clock.
    oldest: Option<(i64, Instant)>,
    broker: BrokerState,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Events that it read, or that were handed over.
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
        let lease = Lease::new(outbox.clone(), shard, settings.lease);
        Self {
            // Of all shards, the relay of the first one logs how the configuration of the topic differs.
            publisher: Publisher::new(outbox.clone(), settings.clone(), lease.clone(), shard == 0),
            outbox,
            shard,
            lease,
            watermark: LowWatermark::new(settings.late_commit),
            schedule: ReadSchedule::new(Instant::now()),
            oldest: None,
            settings,
            broker,
        }
    }

    /// Takes or keeps the lease; false if another instance has it.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn acquire_or_renew_lease(&self) -> Result<bool, postgres::Error> {
        self.lease.acquire_or_renew().await
    }

    /// Publishes the oldest events of the shard, as many as fit one batch for each partition. What the broker acknowledges is
    /// deleted in this step or a later one, also if the step fails afterwards.
    ///
    /// # Errors
    /// If the lease is not ours, or something failed that kept everything from being published.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        let (partitions, now) = (self.begin().await?, Instant::now());
        let paused = self.publisher.paused_partitions(partitions, now);
        if paused.len() as i32 == partitions {
            return Ok(Step::default());
        }
        let events = self.read((&paused, partitions), now).await?;
        let read = events.len();
        let mut left: BTreeSet<i64> = events.iter().map(|event| event.id).collect();
        let largest = left.last().copied();
        let batches = Publisher::batches(events, partitions);
        self.publisher.forget_failures_without_events(&batches, now);
        let (published, outcome) = self.publisher.publish(batches, &mut left).await;
        // What stays in the outbox, read or left out, must be read again before anything that comes after it; so must what
        // could not be deleted.
        let acked = self.publisher.acked.rows().map(|row| row.id);
        let first_left = left.first().copied().into_iter().chain(acked).min();
        let published_up_to = if paused.is_empty() { first_left.map(|id| id - 1).or(largest) } else { None };
        self.watermark.published_up_to(published_up_to, now);
        self.schedule.set_complete(paused.is_empty() && left.is_empty() && (read as i64) < MAX_ROWS);
        outcome_of(read, published, outcome)
    }

    /// Publishes events that were handed over, without reading the outbox. What cannot be sent now is read later, with
    /// everything else.
    async fn send(&mut self, events: Vec<OutboxRow>) -> Result<Step, StepError> {
        let partitions = self.begin().await?;
        let count = events.len();
        let mut left: BTreeSet<i64> = events.iter().map(|event| event.id).collect();
        let (published, outcome) = self.publisher.publish(Publisher::batches(events, partitions), &mut left).await;
        self.schedule.set_complete(left.is_empty());
        outcome_of(count, published, outcome)
    }

    /// Begins a step; returns the number of partitions. Until the step ends well, everything has to be read again.
    async fn begin(&mut self) -> Result<i32, StepError> {
        self.schedule.begin();
        // Whoever holds the lease now and however the broker is: what it has acknowledged need not be sent again.
        self.publisher.acked.advance().await?;
        if !self.lease.is_ours() {
            self.publisher.forget_failures();
            return Err(StepError::NotLeased);
        }
        self.publisher.partitions().await
    }

    /// The events to publish next.
    async fn read(&mut self, excluded_partitions: (&[i32], i32), now: Instant) -> Result<Vec<OutboxRow>, StepError> {
        let acked = self.publisher.acked.event_ids();
        for _ in 0..MAX_READS {
            let query = PendingQuery {
                shard: (self.shard, self.settings.shards),
                from: self.watermark.read_from(now),
                excluded_partitions,
                excluded_events: &acked,
                limit: MAX_ROWS,
            };
            let (source, events) = self.outbox.pending(&query).await?;
            let last_id = source.last_id;
            let change = self.watermark.check(source);
            if change == SourceChange::Unchanged {
                self.schedule.has_read(&events, now);
                return Ok(events);
            }
            // These events are dropped: what has to be sent before them may have smaller ids than those that were read.
            self.schedule.reset_ids();
            if change == SourceChange::IdsWentBack {
                ID_REGRESSIONS.inc();
                let message = "ids of the outbox went back, as after a restore or a failover to a replica that lagged: \
                               changes may be lost; the whole outbox is read again";
                tracing::warn!(last_id, "{message}");
            } else {
                tracing::info!(last_id, "PostgreSQL was restarted or replaced; the whole outbox is read again");
            }
        }
        Err(postgres::Error::Unavailable("connections lead to different servers in turn".into()).into())
    }

    /// Publishes until the shutdown, then finishes its batch and gives up the lease. `waker` cuts the pauses short.
    pub async fn run(mut self, waker: RelayWaker, shutdown: Shutdown) {
        let mut keep = runtime::spawn(keep_lease(self.lease.clone(), self.shard, waker.clone()));
        self.publisher.acked.set_linger(DELETE_LINGER);
        self.publisher.stop_with(shutdown.clone());
        // Whoever waits for a task gets its panic.
        or(self.steps(&waker, &shutdown), &mut keep).await;
        self.publisher.acked.finish().await;
        keep.cancel().await;
        self.lease.release().await;
    }

    /// Exposes the number and the age of pending events. While another replica renews the lease, that one exposes them, and this
    /// one removes its series.
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
            // A failure is logged, and the next report finds it again.
            let _ = self.outbox.move_ids_past(largest_id).await;
        }
        let now = Instant::now();
        let seen_before = self.oldest.filter(|(id, _)| Some(*id) == first_id);
        self.oldest = seen_before.or(first_id.map(|id| (id, now)));
        // The database's clock may have been set back since the event was stored; what we have seen is certain.
        let seen_for = self.oldest.map_or(Duration::ZERO, |(_, since)| now.duration_since(since));
        // Acknowledged events only wait to be deleted.
        let acked = i64::try_from(self.publisher.acked.len()).unwrap_or(i64::MAX);
        PENDING.with_label_values(&[&shard]).set((events - acked).max(0));
        OLDEST.with_label_values(&[&shard]).set(oldest_seconds.max(seen_for.as_secs_f64()) as i64);
    }

    /// The next step: reads the outbox, or sends what was handed over.
    async fn next_step(&mut self, waker: &RelayWaker, now: Instant) -> Result<Step, StepError> {
        let held_since = self.lease.held_since();
        match self.schedule.next_work(waker.take(self.shard), held_since, now) {
            Work::Send(events) if self.publisher.can_send_to_all() => self.send(events).await,
            Work::Send(_) => self.step().await,
            Work::Read { is_poll, handed_over } => {
                let step = self.step().await;
                if is_poll && let Ok(Step { read, .. }) = step {
                    self.schedule.has_polled(read.saturating_sub(handed_over));
                }
                step
            }
        }
    }

    async fn steps(&mut self, waker: &RelayWaker, shutdown: &Shutdown) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let (mut last_probe, mut last_report) = (Instant::now(), None::<Instant>);
        let mut not_before = Instant::now();
        while !shutdown.is_triggered() {
            if last_report.is_none_or(|last| last.elapsed() > REPORT_INTERVAL) {
                last_report = Some(Instant::now());
                self.report_backlog().await;
            }
            let begun = Instant::now();
            let pause = match self.next_step(waker, begun).await {
                Ok(step) => {
                    backoff.reset();
                    if step.published > 0 {
                        last_probe = Instant::now();
                        self.schedule.has_published(last_probe);
                        self.broker.report(self.shard, self.publisher.failure());
                        not_before = begun + STEP_INTERVAL;
                    } else if let Some(failure) = self.publisher.failure() {
                        self.broker.report(self.shard, Some(failure));
                    } else if last_probe.elapsed() > PROBE_INTERVAL {
                        last_probe = Instant::now();
                        let Settings { kafka, topic, .. } = &self.settings;
                        let probe = kafka::partitions(kafka, topic).await;
                        self.broker.report(self.shard, probe.err().as_ref().map(PublishFailure::from));
                    }
                    let now = Instant::now();
                    if step.published > 0 && self.schedule.has_more() {
                        // There is more to publish.
                        Duration::ZERO
                    } else {
                        let until_deletion = self.publisher.acked.due().map(|due| due.saturating_duration_since(now));
                        self.schedule.pause(now).min(until_deletion.unwrap_or(Duration::MAX))
                    }
                }
                // `Database` has logged its errors; nothing can be read meanwhile.
                Err(error @ (StepError::Kafka(_) | StepError::Database(_))) => {
                    let of_step = if let StepError::Kafka(error) = &error { Some(error.into()) } else { None };
                    if let Some(failure) = self.publisher.failure().or(of_step) {
                        self.broker.report(self.shard, Some(failure));
                    }
                    not_before = Instant::now() + backoff.next_pause();
                    Duration::ZERO
                }
                Err(StepError::NotLeased) => {
                    self.broker.report(self.shard, None);
                    (self.settings.lease / 10).min(STANDBY_INTERVAL)
                }
            };
            // The outcome does not matter: time, a notification, or the end. A notification, which comes with each registration,
            // does not shorten the back-off: otherwise each one connects to a broker that is unavailable.
            if !pause.is_zero() {
                let _ = shutdown.run_until_stopped(timeout(pause, waker.wait(self.shard))).await;
            }
            if Instant::now() < not_before {
                shutdown.run_until_stopped(smol::Timer::at(not_before)).await;
            }
        }
    }
}

/// The outcome of a step that published so many events of those that it had.
fn outcome_of(read: usize, published: usize, outcome: Result<(), StepError>) -> Result<Step, StepError> {
    match outcome {
        // An error of every partition is one of the broker, or of the database.
        Err(error) if published == 0 => Err(error),
        _ => Ok(Step { read, published }),
    }
}

/// Takes the lease, and renews it for as long as it is polled.
async fn keep_lease(lease: Lease, shard: i32, waker: RelayWaker) {
    let mut held = false;
    let mut backoff = Backoff::new(BACKOFF.0, lease.renewal_interval());
    loop {
        let renewed = lease.acquire_or_renew().await;
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
            // `Database` has logged why. The lease runs out by itself meanwhile.
            Err(_) => backoff.next_pause(),
        };
        smol::Timer::after(pause).await;
    }
}
