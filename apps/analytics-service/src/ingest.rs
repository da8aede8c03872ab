//! Ingest from Kafka into the state: fetch, decode, count, commit.
//!
//! One task for each partition fetches and decodes ahead of the one task that applies. Counts and next offsets are committed in
//! one transaction, so a record counts once, however often it is read. After an error of the state, ingest opens it again and
//! resumes at its offsets.

mod batch_applier;
mod budget;
mod fetched_batch;
mod fetcher;
mod fixed;
mod gate;
mod group_progress;
mod member;
mod pauses;
mod queue;
mod reports;
mod spans;
mod standbys;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use kafka::{FetchMemory, KnownTopic, Member};
use runtime::{Backoff, Notify, Shutdown, timeout};
use smol::{Task, future::or};
use telemetry::metrics::{self, IntGaugeVec};

use self::{
    batch_applier::BatchApplier, budget::Budget, fetched_batch::FetchedBatch, fetcher::Fetcher, gate::Gate,
    pauses::Pauses, queue::Queue, reports::Outages, standbys::StandbyLimits,
};
use crate::{
    members::Members,
    read_model::{Position, ReadModel},
    settings::{Assignment, ConsumerGroup, Settings},
    state::{Delta, Preparation, SavedState, SharedState, State, StateError, WaitingDeadLetters},
};

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
/// The longest pause of a member of the consumer group whose state failed: whenever it joins, the others stop too.
const MAX_REJOIN_PAUSE: Duration = Duration::from_secs(60);
/// How long the state has to work after an outage until its end is reported. What failed is read and applied again at once: until that
/// succeeds or fails, nobody knows whether the outage is over.
const STATE_RECOVERY: Duration = Duration::from_secs(5);
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
    /// Where other instances reach this one.
    address: String,
    members: Members,
}

impl Ingest {
    /// `dead_letter_stored` is notified after each commit with dead letters. As a member of the consumer group, the instance
    /// advertises `address`, and `members` are those of its assignments.
    pub(crate) fn new(
        settings: Settings,
        state: Arc<SharedState>,
        read_model: ReadModel,
        dead_letter_stored: Arc<Notify>,
        (address, members): (String, Members),
    ) -> Self {
        let settings = Arc::new(settings);
        Self { settings, state, read_model, dead_letter_stored, outages: Arc::default(), address, members }
    }

    /// Reads and applies until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let (mut reopen, mut rejoin) = (Pauses::up_to(BACKOFF.1), Pauses::up_to(MAX_REJOIN_PAUSE));
        let mut member = self.member();
        // A transaction in flight is committed or rolled back.
        let work = async {
            loop {
                let (error, pauses) = match (self.state.open().await, &mut member) {
                    (Ok(saved), Some(member)) => (member::run(&self, member, saved, &mut rejoin).await, &mut rejoin),
                    (Ok(saved), None) => (fixed::run(&self, saved, &mut reopen).await, &mut reopen),
                    (Err(error), _) => (error, &mut reopen),
                };
                self.report_state(Some(error));
                pauses.pause().await;
            }
        };
        shutdown.run_until_stopped(work).await;
        self.state.close().await;
        if let Some(member) = member {
            member::leave(member).await;
        }
    }

    /// A member of the consumer group, if that assigns the partitions.
    fn member(&self) -> Option<Member> {
        let Settings { assignment: Assignment::Group, group: ConsumerGroup(Some(group)), membership, .. } =
            &*self.settings
        else {
            return None;
        };
        // Nobody is known to have a partition yet.
        self.members.set(Some(Vec::new()));
        let instance = membership.instance_id.as_deref();
        let kafka = self.settings.kafka.clone();
        let member = Member::new(kafka, group, &self.settings.topic, instance, membership.session_timeout);
        Some(member.with_standbys(membership.standbys.0))
    }

    /// What the state has for these partitions of the topic, which has `count`. Others belong to other instances.
    async fn prepare(&self, saved: SavedState, assigned: &BTreeSet<i32>, count: i32) -> Result<SavedState, StateError> {
        self.check_partitions(&saved, assigned, count)?;
        self.state
            .with(async |state| match state.prepare(assigned, count).await? {
                Preparation::Unchanged => Ok(saved),
                Preparation::Changed => {
                    drop(saved);
                    state.saved().await
                }
            })
            .await
    }

    /// That the topic, which has `count` partitions, has those that the state has counted, unless they are assigned.
    fn check_partitions(&self, saved: &SavedState, assigned: &BTreeSet<i32>, count: i32) -> Result<(), StateError> {
        let counted = saved.positions.iter().filter(|(_, saved)| saved.next > 0).map(|(partition, _)| *partition);
        let missing: Vec<_> =
            counted.filter(|partition| *partition >= count && !assigned.contains(partition)).collect();
        if !missing.is_empty() {
            self.report_kafka(None, None);
            return Err(StateError::fewer_partitions(&missing, count));
        }
        Ok(())
    }

    /// The number of partitions of the topic, once a broker responds. An outage before that stays reported: no partition has
    /// been read yet.
    async fn wait_for_partition_count(&self, known: KnownTopic) -> i32 {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            match self.partition_count(known).await {
                Ok(count) => return count,
                Err(error) => self.report_kafka(None, Some(error.to_string())),
            }
            backoff.pause().await;
        }
    }

    /// The queue between the fetchers and the task that applies. So many of the fetchers will be standbys.
    fn queue(&self, saved: &SavedState, standbys: usize) -> (fetcher::Shared, Queue) {
        let (sender, queue) = queue::queue();
        let shared = fetcher::Shared {
            ingest: self.clone(),
            topic_id: Arc::new(Mutex::new(known_topic(saved).id)),
            memory: FetchMemory::default(),
            standbys,
            budget: Budget::new(MAX_QUEUED_BYTES),
            sender,
        };
        (shared, queue)
    }

    /// Starts to fetch these partitions.
    fn start_fetchers(
        &self,
        partitions: BTreeSet<i32>,
        saved: &SavedState,
        shared: &fetcher::Shared,
        fetchers: &mut Fetchers,
    ) {
        self.read_model.change(|snapshot| {
            let position = |partition: &i32| {
                let next = saved.positions.get(partition).map_or(0, |saved| saved.next);
                let end = snapshot.partitions.get(partition).map_or(next, |known| known.end.max(next));
                (*partition, Position { next, end, halted: None })
            };
            let positions: Vec<_> = partitions.iter().map(position).collect();
            snapshot.assign(positions);
        });
        let total = fetchers.len() + partitions.len() + shared.standbys;
        for partition in partitions {
            let saved = saved.positions.get(&partition).copied();
            let fetcher = Fetcher::new(shared.clone(), partition, total, saved);
            fetchers.insert(partition, shared.sender.spawn(fetcher.run()));
        }
    }

    /// Starts to fetch copies of these partitions of other members, beside those of this instance.
    fn start_standbys(
        &self,
        partitions: &[i32],
        saved: &SavedState,
        (shared, limits): (&fetcher::Shared, &Arc<StandbyLimits>),
        fetchers: &mut Fetchers,
    ) {
        let next = |partition: &i32| saved.positions.get(partition).map_or(0, |saved| saved.next);
        let positions =
            partitions.iter().map(|n| (*n, Position { next: next(n), end: next(n), halted: None })).collect();
        self.read_model.change(|snapshot| snapshot.standbys = positions);
        let total = fetchers.len() + partitions.len();
        for partition in partitions.iter().copied() {
            let saved = saved.positions.get(&partition).copied();
            let fetcher = Fetcher::new(shared.clone(), partition, total, saved).standby(limits.clone());
            fetchers.insert(partition, shared.sender.spawn(fetcher.run()));
        }
    }

    /// The number of partitions of the topic, of which `known` was counted. What was answered before is known too.
    async fn partition_count(&self, known: KnownTopic) -> Result<i32, kafka::Error> {
        let before = self.read_model.read(|snapshot| snapshot.topic_partitions);
        let known = KnownTopic { partitions: known.partitions.max(before), ..known };
        let count = kafka::partitions_of_known(&self.settings.kafka, &self.settings.topic, known).await?;
        TOPIC_PARTITIONS.with_label_values(&[&self.settings.topic]).set(count.into());
        if self.read_model.read(|snapshot| snapshot.topic_partitions) != count {
            self.read_model.change(|snapshot| snapshot.topic_partitions = count);
        }
        Ok(count)
    }

    /// Applies what the fetchers enqueue, until the gate is closed. The pause after an error depends on how long that worked.
    async fn apply_all(&self, queue: &Queue, gate: &Gate, pauses: &mut Pauses) -> Result<(), StateError> {
        let started = Instant::now();
        let meanwhile = or(queue.panic_of_fetcher(), self.confirm_recovery());
        let applied = or(self.apply_until_closed(queue, gate), meanwhile).await;
        pauses.note_work(started.elapsed());
        applied
    }

    async fn apply_until_closed(&self, queue: &Queue, gate: &Gate) -> Result<(), StateError> {
        let closed = async {
            gate.closed().await;
            None
        };
        let mut closed = Box::pin(closed);
        while let Some(first) = or(&mut closed, async { queue.batches.recv().await.ok() }).await {
            let mut batches = vec![first];
            let mut records = batches[0].len();
            while records < MAX_TRANSACTION_RECORDS
                && let Ok(batch) = queue.batches.try_recv()
            {
                records += batch.len();
                batches.push(batch);
            }
            // What is dropped here is read again by whoever gets the partition.
            if !gate.pass().await || !self.apply(batches, gate).await? {
                break;
            }
        }
        Ok(())
    }

    /// Applies batches in one transaction. False if the gate was closed before.
    async fn apply(&self, mut batches: Vec<FetchedBatch>, gate: &Gate) -> Result<bool, StateError> {
        let mut delta = Delta::default();
        let mut spans = Vec::new();
        for batch in &mut batches {
            delta.positions.insert(batch.partition, batch.position);
            delta.dead_letters.append(&mut batch.dead_letters);
            spans.append(&mut batch.spans);
        }
        let space = async {
            match delta.dead_letters.is_empty() {
                true => Ok(()),
                false => self.wait_for_dead_letter_space().await,
            }
        };
        let space = or(async { Some(space.await) }, async {
            gate.closed().await;
            None
        });
        let result = match space.await {
            None => return Ok(false),
            Some(Ok(())) => self.commit(&batches, delta).await,
            Some(Err(error)) => Err(error),
        };
        spans::end(spans, &result);
        result.map(|()| true)
    }

    async fn commit(&self, batches: &[FetchedBatch], mut delta: Delta) -> Result<(), StateError> {
        let store = async |state: &mut State| BatchApplier::store(state, batches, &mut delta).await;
        let applied = self.state.with(store).await?;
        applied.record_metrics(delta.dead_letters.len());
        self.read_model.change(|snapshot| snapshot.apply(&delta));
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
                self.read_model.change(|snapshot| snapshot.dead_letters.is_full = is_full);
            }
            if !is_full {
                return Ok(());
            }
            let _ = timeout(SPACE_POLL_INTERVAL, change).await;
        }
    }
}

/// What the state shows of the topic. Partitions that were counted of an earlier topic are none of this one's.
fn known_topic(saved: &SavedState) -> KnownTopic {
    let id = saved.positions.values().find_map(|position| position.topic_id);
    let counted = saved.positions.iter().filter(|(_, position)| position.next > 0 && position.topic_id == id);
    KnownTopic { id, partitions: counted.map(|(partition, _)| partition + 1).max().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::state::SavedPosition;

    #[test]
    fn a_topic_has_at_least_the_partitions_that_were_counted_of_it() {
        let known = |positions: &[(i32, i64, Option<u128>)]| {
            let position = |(partition, next, topic_id): &(i32, i64, Option<u128>)| {
                let topic_id = topic_id.map(Uuid::from_u128);
                (*partition, SavedPosition { next: *next, last_timestamp: None, topic_id, leader_epoch: None })
            };
            let positions = positions.iter().map(position).collect();
            let KnownTopic { id, partitions } = known_topic(&SavedState { positions, ..SavedState::default() });
            (id.map(|id| id.as_u128()), partitions)
        };
        assert_eq!(known(&[]), (None, 0));
        assert_eq!(known(&[(0, 7, None), (4, 7, None), (5, 0, None)]), (None, 5));
        assert_eq!(known(&[(0, 0, Some(1)), (2, 7, Some(1))]), (Some(1), 3));
        assert_eq!(known(&[(0, 7, Some(2)), (5, 7, Some(1))]), (Some(2), 1), "the topic was recreated");
    }
}
