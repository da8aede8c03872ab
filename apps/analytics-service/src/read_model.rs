//! The read model: counts and positions as of the last commit, and the health of ingest, in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use event_listener::{Event, EventListener};
use telemetry::metrics::{self, IntGaugeVec};

use crate::{counts::Counts, partition_counts::PartitionCounts, state::Delta};

static LAG: std::sync::LazyLock<IntGaugeVec> = std::sync::LazyLock::new(|| {
    metrics::gauges("kafka_consumer_lag", "Records of a partition that are not applied yet.", &["topic", "partition"])
});
static STANDBY_LAG: std::sync::LazyLock<IntGaugeVec> = std::sync::LazyLock::new(|| {
    metrics::gauges(
        "kafka_standby_lag",
        "Records of another member's partition that are not in the copy of this instance yet.",
        &["topic", "partition"],
    )
});

/// The read model, shared by ingest, which updates it, and HTTP. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct ReadModel {
    /// For its metrics.
    topic: Arc<str>,
    snapshot: Arc<Mutex<Snapshot>>,
    changed: Arc<Event>,
}

/// The data of the read model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The sum of the counts of the assigned partitions.
    pub counts: Counts,
    /// The counts by partition. Those of a partition that is not assigned any more are as this instance last knew them.
    pub by_partition: PartitionCounts,
    /// Each partition that is assigned to this instance.
    pub partitions: BTreeMap<i32, Position>,
    /// Each partition of another instance of which this one keeps a copy. Its counts are in no sum.
    pub standbys: BTreeMap<i32, Position>,
    /// The number of partitions of the topic; 0 until it is known.
    pub topic_partitions: i32,
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

impl Snapshot {
    /// Replaces the counts. No partition is assigned then.
    pub fn load(&mut self, counts: PartitionCounts) {
        self.by_partition = counts;
        self.partitions.clear();
        self.sum();
    }

    /// Assigns these partitions too.
    pub fn assign(&mut self, partitions: impl IntoIterator<Item = (i32, Position)>) {
        self.partitions.extend(partitions);
        self.sum();
    }

    /// Adds the counts of a commit, and moves the positions.
    pub fn apply(&mut self, delta: &Delta) {
        self.by_partition += &delta.counts;
        self.counts += &delta.counts.sum(|partition| self.partitions.contains_key(&partition));
        for (partition, saved) in &delta.positions {
            if let Some(position) = self.position_mut(*partition) {
                position.next = saved.next;
                position.end = position.end.max(saved.next);
            }
        }
    }

    /// The position of a partition of this instance, or of its copy of another one's.
    pub fn position(&self, partition: i32) -> Option<&Position> {
        self.partitions.get(&partition).or_else(|| self.standbys.get(&partition))
    }

    /// The same, to change it.
    pub fn position_mut(&mut self, partition: i32) -> Option<&mut Position> {
        self.partitions.get_mut(&partition).or_else(|| self.standbys.get_mut(&partition))
    }

    fn sum(&mut self) {
        self.counts = self.by_partition.sum(|partition| self.partitions.contains_key(&partition));
    }
}

impl ReadModel {
    /// The read model of a topic, in which nothing is known yet.
    pub fn new(topic: &str) -> Self {
        Self { topic: topic.into(), ..Self::default() }
    }

    /// Reads the data without a copy.
    pub fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the data, updates the lag of the topic, and notifies [`next_change`](Self::next_change).
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let topic = &*self.topic;
        {
            let mut snapshot = self.lock();
            change(&mut snapshot);
            for (partition, position) in &snapshot.partitions {
                LAG.with_label_values(&[topic, &partition.to_string()]).set(position.lag());
            }
            for (partition, position) in &snapshot.standbys {
                STANDBY_LAG.with_label_values(&[topic, &partition.to_string()]).set(position.lag());
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Answers for these partitions no longer.
    pub fn revoke(&self, partitions: &BTreeSet<i32>) {
        self.change(|snapshot| {
            snapshot.partitions.retain(|partition, _| !partitions.contains(partition));
            snapshot.sum();
        });
        for partition in partitions {
            // It fails if no lag was exported.
            let _ = LAG.remove_label_values(&[&*self.topic, &partition.to_string()]);
        }
    }

    /// Removes the lag of copies that this instance does not keep any more.
    pub fn drop_standbys(&self, partitions: impl IntoIterator<Item = i32>) {
        for partition in partitions {
            // As above.
            let _ = STANDBY_LAG.remove_label_values(&[&*self.topic, &partition.to_string()]);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_has_the_assigned_partitions_and_one_that_returns_has_its_counts_again() {
        let read_model = ReadModel::new("t");
        let delta = |created: [i64; 2]| {
            let mut delta = Delta::default();
            for (partition, created) in (0..).zip(created) {
                delta.counts.of(Some(partition)).created = created;
            }
            delta
        };
        let created = || read_model.read(|snapshot| snapshot.counts.created);
        read_model.change(|snapshot| {
            let mut counts = delta([1, 2]).counts;
            counts.of(None).created = 4;
            snapshot.load(counts);
            assert_eq!(snapshot.counts.created, 4, "nothing is assigned");
            snapshot.assign([0, 1].map(|partition| (partition, Position::default())));
        });
        assert_eq!(created(), 7);
        read_model.revoke(&[1].into());
        assert_eq!(created(), 5);
        // An event has moved a patient from a partition that is not assigned.
        read_model.change(|snapshot| snapshot.apply(&delta([1, -1])));
        assert_eq!(created(), 6);
        read_model.change(|snapshot| snapshot.assign([(1, Position::default())]));
        assert_eq!(created(), 7);
    }

    #[test]
    fn the_total_has_nothing_of_a_copy() {
        let read_model = ReadModel::new("t");
        let mut delta = Delta::default();
        (delta.counts.of(Some(0)).created, delta.counts.of(Some(1)).created) = (1, 2);
        delta.positions.insert(
            1,
            crate::state::SavedPosition { next: 7, last_timestamp: None, topic_id: None, leader_epoch: None },
        );
        read_model.change(|snapshot| {
            snapshot.assign([(0, Position::default())]);
            snapshot.standbys.insert(1, Position::default());
            snapshot.apply(&delta);
        });
        read_model.read(|snapshot| {
            assert_eq!((snapshot.counts.created, snapshot.standbys[&1].next), (1, 7));
            assert_eq!(snapshot.partitions.len(), 1);
        });
    }
}
