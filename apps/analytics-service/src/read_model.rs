//! The read model: the counts and the positions as of the last commit, in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use event_listener::{Event, EventListener};
use telemetry::metrics::{self, IntGaugeVec};

use crate::counts::Counts;

static LAG: std::sync::LazyLock<IntGaugeVec> = std::sync::LazyLock::new(|| {
    metrics::gauges("kafka_consumer_lag", "Records of a partition that are not applied yet.", &["topic", "partition"])
});

/// The read model, shared between ingest, which changes it, and HTTP. Clones are the same read model.
#[derive(Clone, Debug, Default)]
pub struct ReadModel {
    snapshot: Arc<Mutex<Snapshot>>,
    changed: Arc<Event>,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The counts.
    pub counts: Counts,
    /// Each partition that this instance reads.
    pub partitions: BTreeMap<i32, Position>,
    /// Partitions that were added to the topic and that the settings, which list those to read, do not name.
    pub unassigned: BTreeSet<i32>,
    /// How it is with the topic of dead letters.
    pub dead_letters: DeadLetters,
    /// What is wrong with the state, if it cannot be written.
    pub state_trouble: Option<String>,
    /// What is wrong with the broker, by who cannot read it: a partition's fetcher, or none for the topic as a whole.
    pub kafka_troubles: BTreeMap<Option<i32>, String>,
}

/// How it is with the topic of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetters {
    /// Why they cannot be forwarded, if they cannot.
    pub trouble: Option<String>,
    /// Whether so many wait for it that nothing is counted.
    pub are_too_many: bool,
}

/// How far a partition has been applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The offset of the record that comes next.
    pub next: i64,
    /// The offset after the last record that there is, as far as we know.
    pub end: i64,
    /// Why it is not read any more, if it is not.
    pub halted: Option<String>,
}

impl Position {
    /// Records that are not applied yet.
    pub fn lag(&self) -> i64 {
        (self.end - self.next).max(0)
    }
}

impl ReadModel {
    /// What is shown now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Reads without a copy.
    pub fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.lock())
    }

    /// Changes it and tells who waits for changes.
    pub fn change(&self, topic: &str, change: impl FnOnce(&mut Snapshot)) {
        {
            let mut snapshot = self.lock();
            change(&mut snapshot);
            for (partition, position) in &snapshot.partitions {
                LAG.with_label_values(&[topic, &partition.to_string()]).set(position.lag());
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Ends with the next change after this call.
    pub fn next_change(&self) -> EventListener {
        self.changed.listen()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // Nothing panics while it is held; if it did, what is shown is still the last commit or the next.
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
