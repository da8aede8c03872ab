//! The read model: counts and positions as of the last commit, and the health of ingest, in memory.

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

/// The read model, shared by ingest, which updates it, and HTTP. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct ReadModel {
    snapshot: Arc<Mutex<Snapshot>>,
    changed: Arc<Event>,
}

/// The data of the read model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The counts.
    pub counts: Counts,
    /// Each partition that this instance reads.
    pub partitions: BTreeMap<i32, Position>,
    /// Partitions that were added to the topic and are not in the list of `PARTITIONS`.
    pub unassigned: BTreeSet<i32>,
    /// The state of forwarding.
    pub dead_letters: Forwarding,
    /// Why the state cannot be used, if it cannot.
    pub state_error: Option<String>,
    /// Why Kafka cannot be read, by partition; none stands for the topic.
    pub kafka_errors: BTreeMap<Option<i32>, String>,
}

/// The state of forwarding dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Why they cannot be forwarded, if they cannot.
    pub error: Option<String>,
    /// Whether so many dead letters wait that ingest has stopped.
    pub is_full: bool,
}

/// The progress of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The offset of the next record.
    pub next: i64,
    /// The last known high watermark.
    pub end: i64,
    /// Why the partition is halted, if it is.
    pub halted: Option<String>,
}

impl Position {
    /// Records that are not applied yet.
    pub fn lag(&self) -> i64 {
        (self.end - self.next).max(0)
    }
}

impl ReadModel {
    /// A copy of the data.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Reads the data without a copy.
    pub fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the data, updates the lag of the topic, and notifies [`next_change`](Self::next_change).
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

    /// Waits for the next change after this call.
    pub fn next_change(&self) -> EventListener {
        self.changed.listen()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // Nothing panics while it is held.
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
