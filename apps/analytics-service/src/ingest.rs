//! From Kafka into the state: fetch, decode, count, commit.
//!
//! One task fetches each partition, a little ahead of the one task that applies. The counts and the next offsets are one
//! transaction, so that a record counts once, however often it is read. When the state fails, everything is begun anew
//! from what the file says.

mod batch;
mod budget;
mod counting;
mod fetcher;
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
use telemetry::metrics::{self, IntGaugeVec};

use self::{batch::Batch, budget::Budget, counting::BatchApplier, fetcher::Fetcher};
use crate::{
    read_model::{Position, ReadModel},
    settings::{Assignment, Settings},
    state::{Delta, Saved, SharedState, State, StateError, Waiting},
};

/// Fetched batches that wait to be applied, for all partitions together: enough for the next transaction to be large, so
/// that what each one costs by itself (births, registrations, positions, the log's last page) is paid seldom.
const BATCHES_AHEAD: usize = 32;
/// Bytes of memory that they take, decoded, with those of the transaction that is under way; more only if a single one
/// does.
const BYTES_AHEAD: usize = 4 * 1024 * 1024;
/// Records that one transaction takes, unless a single batch has more: about 0.1 s.
const RECORDS_AT_ONCE: usize = 30_000;
/// Bytes of dead letters that wait in the state for their topic, beside those of one transaction. With more of them nothing
/// is counted: a disk is no queue without end.
const WAITING_BYTES: i64 = 64 * 1024 * 1024;
/// How often it is looked at least whether there is room for dead letters.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// Pauses after failures of the broker or the state.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often it is looked whether partitions were added.
const PARTITIONS_LOOK: Duration = Duration::from_secs(5);

static TOPIC_PARTITIONS: LazyLock<IntGaugeVec> =
    LazyLock::new(|| metrics::gauges("kafka_topic_partitions", "Partitions that the topic has.", &["topic"]));

/// The tasks that fetch, by partition.
type Fetchers = BTreeMap<i32, Task<()>>;

/// Reads the partitions of this instance into the state.
#[derive(Clone, Debug)]
pub struct Ingest {
    settings: Arc<Settings>,
    state: Arc<SharedState>,
    read_model: ReadModel,
    dead_letters: Arc<Notify>,
}

impl Ingest {
    /// An intake; `dead_letters` is woken when there are some.
    pub fn new(settings: Settings, state: Arc<SharedState>, read_model: ReadModel, dead_letters: Arc<Notify>) -> Self {
        Self { settings: Arc::new(settings), state, read_model, dead_letters }
    }

    /// Reads and applies until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        // A transaction in flight is finished or undone as a whole.
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

    /// Reads and applies from what the state says on, until the state fails.
    async fn run_from(&self, saved: Saved, backoff: &mut Backoff) -> StateError {
        let count = self.count_partitions().await;
        let assigned = self.assigned(count);
        let counted = saved.positions.iter().filter(|(_, saved)| saved.next > 0).map(|(partition, _)| *partition);
        let others: Vec<_> = counted.filter(|partition| !assigned.contains(partition)).collect();
        if !others.is_empty() {
            self.report_kafka(None, None);
            // The counts cannot be told apart by partitions, and whoever reads these counts them too.
            return match self.settings.assignment {
                Assignment::All => StateError::fewer_partitions(&others, count),
                _ => StateError::shared(&others),
            };
        }
        self.report_state(None);
        self.change(|snapshot| {
            snapshot.counts = saved.counts.clone();
            snapshot.partitions.clear();
        });
        self.hand_over_kafka_trouble(&assigned);
        let (sender, receiver) = channel::bounded(BATCHES_AHEAD);
        let topic_id = saved.positions.values().find_map(|position| position.topic_id);
        let shared = fetcher::Shared {
            ingest: self.clone(),
            topic_id: Arc::new(Mutex::new(topic_id)),
            budget: Budget::new(BYTES_AHEAD),
            sender,
        };
        let mut fetchers = Fetchers::new();
        self.read(assigned, &saved, &shared, &mut fetchers);
        let look = self.look_for_partitions(count, &saved, &shared, &mut fetchers);
        let error = or(self.apply_all(&receiver, backoff), look).await;
        for (_, fetcher) in fetchers {
            fetcher.cancel().await;
        }
        error
    }

    /// Begins to fetch partitions.
    fn read(&self, partitions: BTreeSet<i32>, saved: &Saved, shared: &fetcher::Shared, fetchers: &mut Fetchers) {
        let position = |partition: &i32| {
            let next = saved.positions.get(partition).map_or(0, |saved| saved.next);
            (*partition, Position { next, end: next, halted: None })
        };
        self.change(|snapshot| snapshot.partitions.extend(partitions.iter().map(position)));
        let of = fetchers.len() + partitions.len();
        for partition in partitions {
            let saved = saved.positions.get(&partition).copied();
            fetchers.insert(partition, runtime::spawn(Fetcher::new(shared.clone(), partition, of, saved).run()));
        }
    }

    /// Looks for partitions that are added to the topic, and reads those that are ours.
    async fn look_for_partitions(
        &self,
        mut count: i32,
        saved: &Saved,
        shared: &fetcher::Shared,
        fetchers: &mut Fetchers,
    ) -> StateError {
        loop {
            smol::Timer::after(PARTITIONS_LOOK).await;
            // A broker that cannot be asked is told by the fetchers.
            let Ok(now) = self.ask_count().await else { continue };
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
            self.read(new, saved, shared, fetchers);
            if let Assignment::Listed(_) = self.settings.assignment {
                let unread: Vec<_> = added.difference(&ours).copied().collect();
                if !unread.is_empty() {
                    tracing::warn!(
                        ?unread,
                        "partitions were added that PARTITIONS does not name: somebody has to read them"
                    );
                    self.change(|snapshot| snapshot.unassigned.extend(unread));
                }
            }
        }
    }

    /// The partitions of this instance, of so many.
    fn assigned(&self, count: i32) -> BTreeSet<i32> {
        self.settings.assignment.partitions(count).into_iter().collect()
    }

    /// How many partitions the topic has, as soon as a broker answers. An outage before that stays reported: the partitions
    /// have not been read yet.
    async fn count_partitions(&self) -> i32 {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            match self.ask_count().await {
                Ok(count) => return count,
                Err(error) => self.report_kafka(None, Some(error.to_string())),
            }
            backoff.pause().await;
        }
    }

    async fn ask_count(&self) -> Result<i32, kafka::Error> {
        let count = kafka::leaders(&self.settings.kafka, &self.settings.topic).await?.len();
        TOPIC_PARTITIONS.with_label_values(&[&self.settings.topic]).set(count as i64);
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    async fn apply_all(&self, receiver: &Receiver<Batch>, backoff: &mut Backoff) -> StateError {
        while let Ok(first) = receiver.recv().await {
            let mut batches = vec![first];
            let mut records = batches[0].len();
            while records < RECORDS_AT_ONCE
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
        unreachable!("the fetchers end after this")
    }

    /// Applies batches in one transaction.
    async fn apply(&self, mut batches: Vec<Batch>) -> Result<(), StateError> {
        let mut commit = Delta::default();
        let mut spans = Vec::new();
        for batch in &mut batches {
            commit.positions.insert(batch.partition, batch.position);
            commit.dead_letters.append(&mut batch.dead_letters);
            spans.append(&mut batch.spans);
        }
        let room = if commit.dead_letters.is_empty() { Ok(()) } else { self.room_for_dead_letters().await };
        let result = match room {
            Ok(()) => self.commit(&batches, commit).await,
            Err(error) => Err(error),
        };
        spans::end(spans, &result);
        result
    }

    async fn commit(&self, batches: &[Batch], mut commit: Delta) -> Result<(), StateError> {
        let store = async |state: &mut State| BatchApplier::store(state, batches, &mut commit).await;
        let counted = self.state.with(store).await?;
        counted.tell(commit.dead_letters.len());
        self.change(|snapshot| {
            snapshot.counts += &commit.counts;
            for (partition, saved) in &commit.positions {
                if let Some(position) = snapshot.partitions.get_mut(partition) {
                    position.next = saved.next;
                    position.end = position.end.max(saved.next);
                }
            }
        });
        if !commit.dead_letters.is_empty() {
            self.dead_letters.notify();
        }
        Ok(())
    }

    /// Waits until not too many dead letters wait for their topic.
    async fn room_for_dead_letters(&self) -> Result<(), StateError> {
        loop {
            let change = self.read_model.next_change();
            let waiting = self.state.with(async |state| Ok(state.waiting())).await?;
            let is_full = waiting.bytes >= WAITING_BYTES;
            if self.read_model.read(|snapshot| snapshot.dead_letters.are_too_many) != is_full {
                if is_full {
                    let Waiting { letters, bytes } = waiting;
                    tracing::error!(
                        letters,
                        bytes,
                        "too many dead letters wait for their topic; nothing is counted meanwhile"
                    );
                } else {
                    tracing::info!("there is room for dead letters again");
                }
                self.change(|snapshot| snapshot.dead_letters.are_too_many = is_full);
            }
            if !is_full {
                return Ok(());
            }
            let _ = timeout(ROOM_LOOK, change).await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut crate::read_model::Snapshot)) {
        self.read_model.change(&self.settings.topic, change);
    }

    fn report_state(&self, trouble: Option<StateError>) {
        let trouble = trouble.map(|error| error.to_string());
        if self.read_model.read(|snapshot| snapshot.state_trouble == trouble) {
            return;
        }
        match &trouble {
            Some(error) => tracing::error!(error, "the state cannot be used; nothing is counted until it can"),
            None => tracing::info!("the state can be used again"),
        }
        self.change(|snapshot| snapshot.state_trouble = trouble);
    }

    /// Reports that Kafka cannot be read for a partition, or for the topic as a whole, or that it can again.
    fn report_kafka(&self, reader: Option<i32>, trouble: Option<String>) {
        // The usual case: nothing to report.
        if trouble.is_none() && self.read_model.read(|snapshot| snapshot.kafka_troubles.is_empty()) {
            return;
        }
        self.change_kafka_troubles(|troubles| match trouble {
            Some(error) => drop(troubles.insert(reader, error)),
            None => drop(troubles.remove(&reader)),
        });
    }

    /// Replaces the topic's trouble by one of each assigned partition, which lasts until the partition's first successful
    /// fetch.
    fn hand_over_kafka_trouble(&self, partitions: &BTreeSet<i32>) {
        self.change_kafka_troubles(|troubles| {
            if let Some(error) = troubles.remove(&None) {
                troubles.extend(partitions.iter().map(|partition| (Some(*partition), error.clone())));
            }
        });
    }

    /// Logs when an outage begins, with the first trouble, and when it ends, with the last.
    fn change_kafka_troubles(&self, change: impl FnOnce(&mut BTreeMap<Option<i32>, String>)) {
        let (mut was_away, mut error) = (false, None);
        self.change(|snapshot| {
            was_away = !snapshot.kafka_troubles.is_empty();
            change(&mut snapshot.kafka_troubles);
            error = snapshot.kafka_troubles.values().next().cloned();
        });
        match error {
            Some(error) if !was_away => tracing::warn!(error, "events cannot be read; they wait on the topic"),
            None if was_away => tracing::info!("events can be read again"),
            _ => {}
        }
    }
}
