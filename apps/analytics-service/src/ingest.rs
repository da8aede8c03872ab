//! Ingest from Kafka into the state: fetch, decode, count, commit.
//!
//! One task for each partition fetches and decodes ahead of the one task that applies. Counts and next offsets are committed in
//! one transaction, so a record counts once, however often it is read. After an error of the state, ingest opens it again and
//! resumes at its offsets.

mod batch_applier;
mod budget;
mod fetched_batch;
mod fetcher;
mod group_progress;
mod spans;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use runtime::{Backoff, Notify, Shutdown, timeout};
use smol::{
    Task,
    channel::{self, Receiver},
    future::or,
};
use telemetry::{
    Outage,
    metrics::{self, IntGaugeVec},
};

use self::{batch_applier::BatchApplier, budget::Budget, fetched_batch::FetchedBatch, fetcher::Fetcher};
use crate::{
    read_model::{Position, ReadModel},
    settings::{Assignment, Settings},
    state::{Delta, Preparation, SavedState, SharedState, State, StateError, WaitingDeadLetters},
};

/// The capacity of the queue of fetched batches of all partitions: large transactions share their fixed cost (births,
/// registrations, positions, the last page of the WAL) between more records.
const MAX_QUEUED_BATCHES: usize = 32;
/// Bytes of decoded batches in the queue and in the current transaction, unless a single batch has more.
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Records of a transaction, unless a single batch has more: about 0.1 s.
const MAX_TRANSACTION_RECORDS: usize = 30_000;
/// Bytes of dead letters that may wait in the state, beside those of one transaction. Above it ingest stops, so that they do
/// not fill the disk.
const MAX_WAITING_BYTES: i64 = 64 * 1024 * 1024;
/// Poll interval for space for dead letters.
const SPACE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pauses after errors of the broker or the state.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Poll interval for added partitions.
const PARTITION_POLL_INTERVAL: Duration = Duration::from_secs(5);

static TOPIC_PARTITIONS: LazyLock<IntGaugeVec> =
    LazyLock::new(|| metrics::gauges("kafka_topic_partitions", "Partitions of the topic.", &["topic"]));

/// The fetcher tasks, by partition.
type Fetchers = BTreeMap<i32, Task<()>>;

/// Reads the partitions of this instance into the state.
#[derive(Clone, Debug)]
pub struct Ingest {
    settings: Arc<Settings>,
    state: Arc<SharedState>,
    read_model: ReadModel,
    dead_letter_stored: Arc<Notify>,
    outages: Arc<Outages>,
}

/// What keeps events from being counted, and progress from being shown, for the log. Clones of [`Ingest`] share it.
#[derive(Debug, Default)]
struct Outages {
    state: Outage,
    kafka: Outage,
    /// No room for dead letters.
    dead_letters: Outage,
    /// The progress is not committed to the group.
    progress: Outage,
}

impl Ingest {
    /// `dead_letter_stored` is notified after each commit with dead letters.
    pub fn new(
        settings: Settings,
        state: Arc<SharedState>,
        read_model: ReadModel,
        dead_letter_stored: Arc<Notify>,
    ) -> Self {
        Self { settings: Arc::new(settings), state, read_model, dead_letter_stored, outages: Arc::default() }
    }

    /// Reads and applies until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        // A transaction in flight is committed or rolled back.
        let work = async {
            loop {
                let error = match self.state.open().await {
                    Ok(saved) => self.run_from(saved, &mut backoff).await,
                    Err(error) => error,
                };
                self.report_state(Some(error));
                backoff.pause().await;
            }
        };
        shutdown.run_until_stopped(work).await;
        self.state.close().await;
    }

    /// Reads and applies from the saved positions on, until the state fails.
    async fn run_from(&self, saved: SavedState, backoff: &mut Backoff) -> StateError {
        let count = self.wait_for_partition_count().await;
        let assigned = self.assigned(count);
        let counted = saved.positions.iter().filter(|(_, saved)| saved.next > 0).map(|(partition, _)| *partition);
        let missing: Vec<_> =
            counted.filter(|partition| *partition >= count && !assigned.contains(partition)).collect();
        if !missing.is_empty() {
            self.report_kafka(None, None);
            return StateError::fewer_partitions(&missing, count);
        }
        let saved = match self.prepare(saved, &assigned, count).await {
            Ok(saved) => saved,
            Err(error) => return error,
        };
        self.report_state(None);
        self.change(|snapshot| snapshot.load(saved.counts.clone()));
        self.assign_kafka_error(&assigned);
        let (sender, receiver) = channel::bounded(MAX_QUEUED_BATCHES);
        let topic_id = saved.positions.values().find_map(|position| position.topic_id);
        let shared = fetcher::Shared {
            ingest: self.clone(),
            topic_id: Arc::new(Mutex::new(topic_id)),
            budget: Budget::new(MAX_QUEUED_BYTES),
            sender,
        };
        let mut fetchers = Fetchers::new();
        self.start_fetchers(assigned, &saved, &shared, &mut fetchers);
        let watch = self.watch_partitions(count, &saved, &shared, &mut fetchers);
        let commit_progress = async {
            if let Some(group) = &self.settings.group.0 {
                group_progress::commit(self, group).await;
            }
            std::future::pending().await
        };
        let error = or(or(self.apply_all(&receiver, backoff), watch), commit_progress).await;
        for (_, fetcher) in fetchers {
            fetcher.cancel().await;
        }
        error
    }

    /// What the state has for these partitions. Others belong to other instances.
    async fn prepare(&self, saved: SavedState, assigned: &BTreeSet<i32>, count: i32) -> Result<SavedState, StateError> {
        self.state
            .with(async |state| match state.prepare(assigned, count).await? {
                Preparation::Unchanged => Ok(saved),
                Preparation::Changed => state.saved().await,
            })
            .await
    }

    /// Starts to fetch these partitions.
    fn start_fetchers(
        &self,
        partitions: BTreeSet<i32>,
        saved: &SavedState,
        shared: &fetcher::Shared,
        fetchers: &mut Fetchers,
    ) {
        let position = |partition: &i32| {
            let next = saved.positions.get(partition).map_or(0, |saved| saved.next);
            (*partition, Position { next, end: next, halted: None })
        };
        self.change(|snapshot| snapshot.assign(partitions.iter().map(position)));
        let total = fetchers.len() + partitions.len();
        for partition in partitions {
            let saved = saved.positions.get(&partition).copied();
            fetchers.insert(partition, runtime::spawn(Fetcher::new(shared.clone(), partition, total, saved).run()));
        }
    }

    /// Polls for partitions that are added to the topic, and starts to fetch those of this instance.
    async fn watch_partitions(
        &self,
        mut count: i32,
        saved: &SavedState,
        shared: &fetcher::Shared,
        fetchers: &mut Fetchers,
    ) -> StateError {
        loop {
            smol::Timer::after(PARTITION_POLL_INTERVAL).await;
            // The fetchers report an unavailable broker.
            let Ok(now) = self.partition_count().await else { continue };
            if now <= count {
                continue;
            }
            let added: BTreeSet<_> = (count..now).collect();
            count = now;
            let ours = self.assigned(count);
            let new: BTreeSet<_> = ours.iter().copied().filter(|partition| !fetchers.contains_key(partition)).collect();
            tracing::warn!(
                ?added,
                reading = ?new,
                "partitions were added to the topic: those of this instance are read from their beginning"
            );
            self.start_fetchers(new, saved, shared, fetchers);
            if let Assignment::Listed(_) = self.settings.assignment {
                let unread: Vec<_> = added.difference(&ours).copied().collect();
                if !unread.is_empty() {
                    tracing::warn!(
                        ?unread,
                        "partitions were added that PARTITIONS does not name: another instance has to read them"
                    );
                    self.change(|snapshot| snapshot.unassigned.extend(unread));
                }
            }
        }
    }

    /// The partitions of this instance.
    fn assigned(&self, count: i32) -> BTreeSet<i32> {
        self.settings.assignment.partitions(count).into_iter().collect()
    }

    /// The number of partitions of the topic, once a broker responds. An outage before that stays reported: no partition has
    /// been read yet.
    async fn wait_for_partition_count(&self) -> i32 {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            match self.partition_count().await {
                Ok(count) => return count,
                Err(error) => self.report_kafka(None, Some(error.to_string())),
            }
            backoff.pause().await;
        }
    }

    async fn partition_count(&self) -> Result<i32, kafka::Error> {
        let count = kafka::leaders(&self.settings.kafka, &self.settings.topic).await?.len();
        TOPIC_PARTITIONS.with_label_values(&[&self.settings.topic]).set(count as i64);
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    async fn apply_all(&self, receiver: &Receiver<FetchedBatch>, backoff: &mut Backoff) -> StateError {
        while let Ok(first) = receiver.recv().await {
            let mut batches = vec![first];
            let mut records = batches[0].len();
            while records < MAX_TRANSACTION_RECORDS
                && let Ok(batch) = receiver.try_recv()
            {
                records += batch.len();
                batches.push(batch);
            }
            if let Err(error) = self.apply(batches).await {
                return error;
            }
            backoff.reset();
        }
        unreachable!("the fetchers are cancelled after this")
    }

    /// Applies batches in one transaction.
    async fn apply(&self, mut batches: Vec<FetchedBatch>) -> Result<(), StateError> {
        let mut delta = Delta::default();
        let mut spans = Vec::new();
        for batch in &mut batches {
            delta.positions.insert(batch.partition, batch.position);
            delta.dead_letters.append(&mut batch.dead_letters);
            spans.append(&mut batch.spans);
        }
        let has_space = if delta.dead_letters.is_empty() { Ok(()) } else { self.wait_for_dead_letter_space().await };
        let result = match has_space {
            Ok(()) => self.commit(&batches, delta).await,
            Err(error) => Err(error),
        };
        spans::end(spans, &result);
        result
    }

    async fn commit(&self, batches: &[FetchedBatch], mut delta: Delta) -> Result<(), StateError> {
        let store = async |state: &mut State| BatchApplier::store(state, batches, &mut delta).await;
        let applied = self.state.with(store).await?;
        applied.record_metrics(delta.dead_letters.len());
        self.change(|snapshot| snapshot.apply(&delta));
        if !delta.dead_letters.is_empty() {
            self.dead_letter_stored.notify();
        }
        Ok(())
    }

    /// Waits until there is space for dead letters in the state.
    async fn wait_for_dead_letter_space(&self) -> Result<(), StateError> {
        loop {
            let change = self.read_model.next_change();
            let waiting = self.state.with(async |state| Ok(state.waiting())).await?;
            let is_full = waiting.bytes >= MAX_WAITING_BYTES;
            if self.read_model.read(|snapshot| snapshot.dead_letters.is_full) != is_full {
                if is_full {
                    let WaitingDeadLetters { count, bytes } = waiting;
                    if self.outages.dead_letters.failed("full") {
                        tracing::error!(
                            count,
                            bytes,
                            "too many dead letters wait for their topic; ingest has stopped until they are forwarded"
                        );
                    }
                } else if let Some(lasted) = self.outages.dead_letters.recovered() {
                    let lasted_ms = lasted.as_millis() as u64;
                    tracing::info!(lasted_ms, "there is space for dead letters again; ingest resumes");
                }
                self.change(|snapshot| snapshot.dead_letters.is_full = is_full);
            }
            if !is_full {
                return Ok(());
            }
            let _ = timeout(SPACE_POLL_INTERVAL, change).await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut crate::read_model::Snapshot)) {
        self.read_model.change(&self.settings.topic, change);
    }

    fn report_state(&self, error: Option<StateError>) {
        let error = error.map(|error| error.to_string());
        if self.read_model.read(|snapshot| snapshot.state_error == error) {
            return;
        }
        match &error {
            Some(error) if self.outages.state.failed(error) => {
                tracing::error!(error, "the state cannot be used; nothing is counted until it can");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outages.state.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "the state can be used again");
                }
            }
        }
        self.change(|snapshot| snapshot.state_error = error);
    }

    /// Reports that Kafka cannot be read for a partition, or for the topic as a whole, or that it can again.
    fn report_kafka(&self, reader: Option<i32>, error: Option<String>) {
        // The usual case: nothing to report.
        if error.is_none() && self.read_model.read(|snapshot| snapshot.kafka_errors.is_empty()) {
            return;
        }
        self.update_kafka_errors(|errors| match error {
            Some(error) => drop(errors.insert(reader, error)),
            None => drop(errors.remove(&reader)),
        });
    }

    /// Replaces the topic's error by one of each assigned partition, which lasts until the partition's first successful
    /// fetch.
    fn assign_kafka_error(&self, partitions: &BTreeSet<i32>) {
        self.update_kafka_errors(|errors| {
            if let Some(error) = errors.remove(&None) {
                errors.extend(partitions.iter().map(|partition| (Some(*partition), error.clone())));
            }
        });
    }

    /// Logs when an outage begins, with the first error, and when it ends, with the last.
    fn update_kafka_errors(&self, change: impl FnOnce(&mut BTreeMap<Option<i32>, String>)) {
        let mut error = None;
        self.change(|snapshot| {
            change(&mut snapshot.kafka_errors);
            error = snapshot.kafka_errors.values().next().cloned();
        });
        match error {
            Some(error) if self.outages.kafka.failed("unreadable") => {
                tracing::warn!(error, "events cannot be read; they wait on the topic");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outages.kafka.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "events can be read again");
                }
            }
        }
    }
}
