//! Applies batches in a transaction of the state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::LazyLock,
};

use codec::event::ReceivedEvent;
use smol::future::zip;
use telemetry::metrics::{self, IntCounter, IntCounterVec};
use uuid::Uuid;

use super::fetched_batch::FetchedBatch;
use crate::{
    counts::{Outcome, PatientState},
    partition_counts::PartitionCounts,
    state::{Delta, PatientUpsert, State, StateError, Transaction},
};

static APPLIED: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("events_applied_total", "Applied events, by kind.", &["kind"]));
static DUPLICATES: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("events_duplicate_total", "Events whose version was applied before."));
static CONFLICTS: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("events_version_conflicts_total", "Events whose version was applied before, with another change.")
});
static KNOWN_LATE: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "patients_known_late_total",
        "Patients whose first event here was not their first: others were deleted, or are on another instance's partition.",
    )
});
static STANDBY: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("events_applied_to_standbys_total", "Events applied to copies of other members' partitions.")
});
static DEAD: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("events_dead_total", "Records that cannot be decoded and are dead-lettered."));

/// Outcomes of the events of a transaction.
#[derive(Default)]
pub(super) struct BatchApplier {
    applied: BTreeMap<&'static str, u64>,
    /// Patients whose first event here has a version above the first.
    known_late: u64,
    duplicates: u64,
    /// Duplicates with another change.
    conflicts: u64,
    conflicting_patient: Option<Uuid>,
    /// Copies of other members' partitions, which count for nothing else here.
    standbys: BTreeSet<i32>,
    applied_to_standbys: u64,
}

impl BatchApplier {
    /// Adds the counts of the events to `delta`, and commits it together with the new states of the patients.
    ///
    /// # Errors
    /// If the state fails. Then everything was committed, or nothing.
    pub(super) async fn store(
        state: &mut State,
        batches: &[FetchedBatch],
        delta: &mut Delta,
    ) -> Result<Self, StateError> {
        let standbys = batches.iter().filter(|batch| batch.is_standby).map(|batch| batch.partition).collect();
        let mut applier = Self { standbys, ..Self::default() };
        let events = sort_by_patient(batches);
        let by_patient: Vec<_> = events.chunk_by(|(_, one), (_, next)| one.patient_id == next.patient_id).collect();
        if by_patient.len() <= Transaction::MAX_PATIENTS && delta.dead_letters.is_empty() {
            // Nobody else writes, so the states stay as they are read.
            let patients = state.find_patients(&ids(Some(&&*by_patient))).await?;
            let changed = applier.apply(&by_patient, &patients, &mut delta.counts);
            state.store(&changed, delta).await?;
            return Ok(applier);
        }
        let mut chunks = by_patient.chunks(Transaction::MAX_PATIENTS).peekable();
        let mut transaction = state.begin().await?;
        let mut patients = transaction.find_patients(&ids(chunks.peek())).await?;
        let mut to_store = None;
        while let Some(chunk) = chunks.next() {
            let next = ids(chunks.peek());
            // SQLite's thread stores the chunk before and reads the next one while this thread counts.
            let store = async {
                if let Some(upsert) = to_store.take() {
                    transaction.upsert_patients(upsert).await?;
                }
                transaction.find_patients(&next).await
            };
            let count = async { PatientUpsert::new(&applier.apply(chunk, &patients, &mut delta.counts)) };
            let (found, upsert) = zip(store, count).await;
            to_store = Some(upsert);
            patients = found?;
        }
        if let Some(upsert) = to_store {
            transaction.upsert_patients(upsert).await?;
        }
        transaction.commit(delta).await?;
        if !delta.dead_letters.is_empty() {
            state.count_new_dead_letters().await?;
        }
        Ok(applier)
    }

    /// Counts the events of some patients. Returns the new states of changed patients, in the same order.
    fn apply(
        &mut self,
        events_by_patient: &[&[PartitionEvent<'_>]],
        patients: &HashMap<Uuid, PatientState>,
        counts: &mut PartitionCounts,
    ) -> Vec<(Uuid, PatientState)> {
        let mut changed = Vec::with_capacity(events_by_patient.len());
        for events in events_by_patient {
            let id = events[0].1.patient_id;
            let mut patient = patients.get(&id).copied().unwrap_or_default();
            let mut is_changed = false;
            if patient.partition.is_none() && !patient.is_counted() {
                let (partition, event) = events[0];
                self.known_late += u64::from(event.version > Some(1) && !self.standbys.contains(&partition));
            }
            for (partition, event) in *events {
                let outcome = counts.apply(*partition, &mut patient, event);
                if self.standbys.contains(partition) {
                    let is_applied = outcome == Outcome::Applied;
                    self.applied_to_standbys += u64::from(is_applied);
                    is_changed |= is_applied;
                    continue;
                }
                match outcome {
                    Outcome::Applied => {
                        *self.applied.entry(event.kind.map_or("unknown", |kind| kind.name())).or_default() += 1;
                        is_changed = true;
                    }
                    Outcome::Duplicate => self.duplicates += 1,
                    Outcome::Conflict => {
                        (self.duplicates, self.conflicts) = (self.duplicates + 1, self.conflicts + 1);
                        self.conflicting_patient = Some(id);
                    }
                }
            }
            if is_changed {
                changed.push((id, patient));
            }
        }
        changed
    }

    /// Updates the metrics, and logs conflicts.
    pub(super) fn record_metrics(&self, dead_letters: usize) {
        for (kind, count) in &self.applied {
            APPLIED.with_label_values(&[kind]).inc_by(*count);
        }
        STANDBY.inc_by(self.applied_to_standbys);
        KNOWN_LATE.inc_by(self.known_late);
        DUPLICATES.inc_by(self.duplicates);
        CONFLICTS.inc_by(self.conflicts);
        if let Some(patient_id) = self.conflicting_patient {
            tracing::warn!(
                events = self.conflicts,
                %patient_id,
                "versions were assigned twice, and their second changes are not counted: was the publisher's database restored?"
            );
        }
        DEAD.inc_by(dead_letters as u64);
    }
}

/// An event and its partition.
type PartitionEvent<'a> = (i32, &'a ReceivedEvent);

/// The events sorted by patient. Those of a patient in one partition keep their order; counts do not depend on the order of
/// others.
fn sort_by_patient(batches: &[FetchedBatch]) -> Vec<PartitionEvent<'_>> {
    let of_batch = batches.iter().map(|batch| batch.events.iter().map(move |event| (batch.partition, event)));
    let mut events: Vec<_> = of_batch.flatten().collect();
    events.sort_by_key(|(_, event)| event.patient_id);
    events
}

/// The patient ids of a chunk.
fn ids(chunk: Option<&&[&[PartitionEvent<'_>]]>) -> Vec<Uuid> {
    chunk.into_iter().flat_map(|chunk| chunk.iter()).map(|events| events[0].1.patient_id).collect()
}

#[cfg(test)]
mod tests {
    use codec::event::EventKind::{self, Created, Updated};
    use testbed::Scratch;

    use super::*;
    use crate::state::SavedPosition;

    fn batch(events: impl Iterator<Item = (Uuid, EventKind, i64)>) -> FetchedBatch {
        let event = |(patient_id, kind, version)| ReceivedEvent {
            patient_id,
            kind: Some(kind),
            version: Some(version),
            time: None,
            registered_date: None,
            birth_year: Some(1900 + (patient_id.as_u128() % 100) as i32),
        };
        let position = SavedPosition { next: 0, last_timestamp: None, topic_id: None, leader_epoch: None };
        let mut batch = FetchedBatch::empty(0, position);
        batch.events = events.map(event).collect();
        batch
    }

    #[test]
    fn a_copy_has_counts_and_reports_nothing() {
        let [ours, theirs, moved] = [1, 2, 3].map(Uuid::from_u128);
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let own = batch([(ours, Created, 1), (moved, Created, 1)].into_iter());
            let mut copy = batch([(theirs, Updated, 3), (theirs, Updated, 2), (moved, Updated, 2)].into_iter());
            (copy.partition, copy.is_standby) = (1, true);
            let mut delta = Delta::default();
            let applier = BatchApplier::store(&mut state, &[own, copy], &mut delta).await.unwrap();
            assert_eq!((applier.applied, applier.known_late), ([(Created.name(), 2)].into(), 0));
            assert_eq!((applier.duplicates, applier.applied_to_standbys), (0, 2));
            let created = |partition| delta.counts.get(Some(partition)).unwrap().created;
            assert_eq!((created(0), created(1)), (1, 2), "a patient is counted in the partition of its last event");
        });
    }

    #[test]
    fn patients_are_found_again_however_many_come_at_once() {
        let patients: Vec<Uuid> = (0..Transaction::MAX_PATIENTS as u128 * 2 + 100).map(Uuid::from_u128).collect();
        let count = patients.len() as u64;
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, _) = State::open(&file).await.unwrap();
            let created = || patients.iter().map(|id| (*id, Created, 1));
            let applier = BatchApplier::store(&mut state, &[batch(created())], &mut Delta::default()).await.unwrap();
            assert_eq!((applier.applied[Created.name()], applier.duplicates), (count, 0));
            assert_eq!(applier.known_late, 0);
            let late = [batch([(Uuid::from_u128(u128::MAX), Updated, 2)].into_iter())];
            let applier = BatchApplier::store(&mut state, &late, &mut Delta::default()).await.unwrap();
            assert_eq!(applier.known_late, 1);
            let updated = patients.iter().step_by(2).map(|id| (*id, Updated, 2));
            let mut delta = Delta::default();
            let batches = [batch(created()), batch(updated)];
            let applier = BatchApplier::store(&mut state, &batches, &mut delta).await.unwrap();
            assert_eq!((applier.applied[Updated.name()], applier.duplicates), (count.div_ceil(2), count));
            let counted = delta.counts.sum(|_| true);
            assert_eq!((counted.active, counted.updated), (0, count.div_ceil(2) as i64));
            state.close().await;
            let (_, saved) = State::open(&file).await.unwrap();
            let counted = saved.counts.sum(|_| true);
            let with_late = count as i64 + 1;
            assert_eq!((counted.active, counted.created), (with_late, with_late));
            assert_eq!(counted.births.values().sum::<i64>(), with_late);
        });
    }
}
