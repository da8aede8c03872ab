use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
    time::{Duration, Instant},
};

use kafka::{Producer, partitioner};
use runtime::{Backoff, Shutdown};
use telemetry::metrics::{self, IntCounter};

use super::{
    Settings, StepError, acked_deleter::AckedDeleter, batch::Batch, broker_state::PublishFailure, lease::Lease,
    record::Sending, rejections::Rejections,
};
use crate::outbox::{Outbox, OutboxRow};

/// Pauses of a partition after failures: the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

static PUBLISHED: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("relay_published_total", "Events acknowledged by the broker."));
static DEAD_LETTERED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "relay_dead_lettered_total",
        "Events that the broker rejected, each by itself, and that were dead-lettered.",
    )
});

/// Sends events to their partitions, one batch for each at a time, and has those deleted that the broker acknowledges. A
/// partition that fails is left out for a while.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) acked: AckedDeleter,
    outbox: Outbox,
    producer: Producer,
    settings: Settings,
    lease: Lease,
    /// Partitions that failed, and when they are tried again.
    failing: BTreeMap<i32, FailingPartition>,
    rejections: Rejections,
    /// Ends the wait for a quota.
    shutdown: Shutdown,
    /// Whether the topic's configuration need not be compared: this relay created the topic or has compared it, or another relay
    /// compares it.
    is_topic_checked: bool,
}

#[derive(Debug)]
struct FailingPartition {
    backoff: Backoff,
    until: Instant,
    /// None while it is not known whether a rejected event is at fault or the topic.
    failure: Option<PublishFailure>,
}

/// The outcome of a batch to each partition.
#[derive(Default)]
struct Sent {
    /// Events that the broker has acknowledged.
    accepted: usize,
    /// The halves of batches that the broker has rejected.
    again: BTreeMap<i32, Batch>,
    /// Events that the broker has rejected each by itself.
    rejected: Vec<(i32, OutboxRow, kafka::Error)>,
    /// The error of a partition.
    error: Option<kafka::Error>,
}

impl Publisher {
    /// `checks_topic`: whether it compares the configuration of an existing topic with its own.
    pub(super) fn new(outbox: Outbox, settings: Settings, lease: Lease, checks_topic: bool) -> Self {
        Self {
            acked: AckedDeleter::new(outbox.clone()),
            outbox,
            producer: Producer::new(settings.kafka.clone(), &settings.topic),
            settings,
            lease,
            failing: BTreeMap::new(),
            rejections: Rejections::default(),
            shutdown: Shutdown::new(),
            is_topic_checked: !checks_topic,
        }
    }

    /// Waits for no quota once this is triggered.
    pub(super) fn stop_with(&mut self, shutdown: Shutdown) {
        self.shutdown = shutdown;
    }

    /// The number of partitions. Creates the topic if it does not exist.
    ///
    /// # Errors
    /// If the broker fails.
    pub(super) async fn partitions(&mut self) -> Result<i32, StepError> {
        let partitions = match self.producer.partitions().await {
            Err(kafka::Error::UnknownTopic) => self.create_topic().await,
            partitions => partitions,
        };
        if partitions.is_ok() && !self.is_topic_checked {
            self.is_topic_checked = true;
            let Settings { kafka, topic, cleanup_policy, .. } = self.settings.clone();
            // In a task of its own, because events need not wait for it: a difference is only logged.
            runtime::spawn(async move { cleanup_policy.check(&kafka, &topic).await }).detach();
        }
        partitions.map_err(StepError::Kafka)
    }

    async fn create_topic(&mut self) -> Result<i32, kafka::Error> {
        let Settings { kafka, topic, partitions, cleanup_policy, .. } = &self.settings;
        if kafka::create_topic_with(kafka, topic, *partitions, cleanup_policy.configuration()).await? {
            tracing::info!(topic, partitions, ?cleanup_policy, "topic created");
            self.is_topic_checked = true;
        }
        self.producer.partitions().await
    }

    /// The partitions that nothing can be sent to now: they failed recently, or the broker throttles this client.
    ///
    /// Throttling is no outage. A request that is sent meanwhile would wait at the broker beyond its deadline, count as lost and be
    /// sent again.
    pub(super) fn paused_partitions(&mut self, partitions: i32, now: Instant) -> Vec<i32> {
        self.failing.retain(|&partition, _| partition < partitions);
        let failing = self.failing.iter().filter(|(_, failing)| failing.until > now).map(|(&partition, _)| partition);
        let paused: BTreeSet<i32> = failing.chain(self.producer.throttled().into_keys()).collect();
        paused.into_iter().collect()
    }

    /// Whether every partition can be sent to: none has failed, and none is throttled.
    pub(super) fn can_send_to_all(&self) -> bool {
        self.failing.is_empty() && self.producer.throttled().is_empty()
    }

    /// Forgets all failures, because another relay sends the shard now.
    pub(super) fn forget_failures(&mut self) {
        self.failing.clear();
        self.rejections = Rejections::default();
    }

    /// Events by partition, as many as fit one batch for each.
    pub(super) fn batches(events: Vec<OutboxRow>, partitions: i32) -> BTreeMap<i32, Batch> {
        let mut batches = BTreeMap::<i32, Batch>::new();
        for event in events {
            batches.entry(partitioner::of_hash(event.key_hash, partitions)).or_default().add(event);
        }
        batches
    }

    /// A partition that failed and has nothing left to send has no failure any more.
    pub(super) fn forget_failures_without_events(&mut self, batches: &BTreeMap<i32, Batch>, now: Instant) {
        self.failing.retain(|partition, failing| failing.until > now || batches.contains_key(partition));
    }

    /// Sends a batch to each partition at once. Takes from `left` what need not be sent again, and returns how many events the
    /// broker has acknowledged.
    ///
    /// The result is the error of one partition if some failed, after all have been tried; or that the lease is not ours any more.
    pub(super) async fn publish(
        &mut self,
        batches: BTreeMap<i32, Batch>,
        left: &mut BTreeSet<i64>,
    ) -> (usize, Result<(), StepError>) {
        let mut batches: BTreeMap<_, _> =
            batches.into_iter().map(|(partition, batch)| (partition, self.rejections.to_send(batch))).collect();
        let (mut published, mut outcome) = (0, Ok(()));
        while !batches.is_empty() && self.wait_for_throttle(&batches).await {
            // We may have been frozen since the step began; whoever took over has sent these events.
            if !self.lease.is_ours() {
                return (published, Err(StepError::NotLeased));
            }
            let sent = self.send(batches, left).await;
            published += sent.accepted;
            if let Some(error) = sent.error {
                outcome = Err(StepError::Kafka(error));
            }
            // After the outcome of every partition is recorded, because dead-lettering can fail too.
            if let Err(error) = self.dead_letter_rejected(sent.rejected, left).await {
                outcome = Err(StepError::Database(error));
            }
            batches = sent.again;
        }
        (published, outcome)
    }

    /// Sends a batch to each partition at once, and takes what the broker has acknowledged from `left`.
    async fn send(&mut self, mut batches: BTreeMap<i32, Batch>, left: &mut BTreeSet<i64>) -> Sent {
        let (mut sendings, mut records) = (BTreeMap::new(), BTreeMap::new());
        for (&partition, batch) in &batches {
            let (sending, batch) = Sending::begin(&self.settings.topic, partition, &batch.events);
            sendings.insert(partition, sending);
            records.insert(partition, batch);
        }
        self.rejections.begin();
        let mut sent = Sent::default();
        for (partition, result) in self.producer.send(records).await {
            let Some(batch) = batches.remove(&partition) else { continue };
            sendings.remove(&partition).unwrap_or_default().end(&result);
            match result {
                Ok(_) => {
                    self.accept(partition, &batch.events, left);
                    sent.accepted += batch.events.len();
                }
                // The batch may be too large although each record is small: halving it finds the rejected record.
                Err(kafka::Error::RecordRejected(_)) if batch.events.len() > 1 => {
                    sent.again.insert(partition, batch.first_half());
                }
                Err(error @ kafka::Error::RecordRejected(_)) => {
                    sent.rejected.extend(batch.events.into_iter().map(|event| (partition, event, error.clone())));
                }
                Err(error) => {
                    self.fail(partition, Some(PublishFailure::from(&error)));
                    sent.error = Some(error);
                }
            }
        }
        sent
    }

    /// Records that the broker has acknowledged these events.
    fn accept(&mut self, partition: i32, events: &[OutboxRow], left: &mut BTreeSet<i64>) {
        self.failing.remove(&partition);
        self.rejections.accept(events);
        PUBLISHED.inc_by(events.len() as u64);
        for event in events {
            left.remove(&event.id);
        }
        self.acked.add(events.iter().map(OutboxRow::key));
    }

    /// Dead-letters what the broker rejects for good. The error is that of an event that cannot be dead-lettered, after all have
    /// been tried.
    async fn dead_letter_rejected(
        &mut self,
        rejected: Vec<(i32, OutboxRow, kafka::Error)>,
        left: &mut BTreeSet<i64>,
    ) -> Result<(), postgres::Error> {
        let mut outcome = Ok(());
        for (partition, event, error) in rejected {
            if !self.rejections.reject(&event) {
                self.fail(partition, self.topic_failure(&error));
                continue;
            }
            match self.dead_letter(&event, &error).await {
                Ok(()) => {
                    self.rejections.forget(&event);
                    self.failing.remove(&partition);
                    left.remove(&event.id);
                }
                Err(error) => {
                    let text = format!("an event cannot be dead-lettered: {error}");
                    self.fail(partition, Some(PublishFailure { cause: "dead_letter".to_owned(), text }));
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Waits until no quota throttles these partitions: a rejection counts towards a quota too. False if the shutdown comes first, because
    /// that may take an hour.
    async fn wait_for_throttle(&self, batches: &BTreeMap<i32, Batch>) -> bool {
        let throttled = self.producer.throttled();
        let until = batches.keys().filter_map(|partition| throttled.get(partition)).max();
        match until {
            Some(until) => self.shutdown.run_until_stopped(smol::Timer::at(*until)).await.is_some(),
            None => true,
        }
    }

    /// That the topic rejects every event, if the broker has rejected so many without accepting one.
    fn topic_failure(&self, error: &kafka::Error) -> Option<PublishFailure> {
        let (count, topic) = (self.rejections.in_a_row()?, &self.settings.topic);
        let answer = error.broker_error().map_or_else(|| error.to_string(), ToString::to_string);
        let text = format!(
            "the topic {topic} has rejected {count} events in a row and accepted none: {answer}; they stay in the outbox until it accepts \
             one: check its max.message.bytes (message.max.bytes of the broker) and what validates its records"
        );
        Some(PublishFailure { cause: error.cause(), text })
    }

    /// Leaves a partition out for a while.
    fn fail(&mut self, partition: i32, failure: Option<PublishFailure>) {
        let failing = self.failing.entry(partition).or_insert_with(|| FailingPartition {
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            until: Instant::now(),
            failure: failure.clone(),
        });
        failing.until = Instant::now() + failing.backoff.next_pause();
        failing.failure = failure;
    }

    /// Why some partition cannot be published to.
    pub(super) fn failure(&self) -> Option<PublishFailure> {
        let failures =
            self.failing.iter().filter_map(|(partition, failing)| Some((partition, failing.failure.clone()?)));
        let (partition, PublishFailure { cause, text }) = failures.into_iter().next()?;
        Some(PublishFailure { cause, text: format!("partition {partition}: {text}") })
    }

    async fn dead_letter(&self, event: &OutboxRow, error: &kafka::Error) -> Result<(), postgres::Error> {
        self.outbox.dead_letter(event.key(), &error.to_string()).await?;
        DEAD_LETTERED.inc();
        let OutboxRow { patient_id, event_id, .. } = event;
        tracing::error!(%patient_id, %event_id, %error, "event rejected by the broker; it is dead-lettered");
        Ok(())
    }
}
