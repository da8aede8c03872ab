//! What events come to, counted in a transaction of the state.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use codec::event::Received;
use smol::future::zip;
use telemetry::metrics::{self, IntCounter, IntCounterVec};
use uuid::Uuid;

use super::batch::Batch;
use crate::{
    counts::{Counts, Outcome, PatientState},
    state::{Delta, Remember, State, StateError, Transaction},
};

static APPLIED: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("events_applied_total", "Events that count, by kind.", &["kind"]));
static DUPLICATES: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("events_duplicate_total", "Events of a version that had been seen."));
static CONFLICTS: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "events_version_conflicts_total",
        "Events of a version that had been seen, and of another change than the one that was counted.",
    )
});
static DEAD: LazyLock<IntCounter> =
    LazyLock::new(|| metrics::counter("events_dead_total", "Records that are no events."));

/// How many events of a transaction did what.
#[derive(Default)]
pub(super) struct BatchApplier {
    applied: BTreeMap<&'static str, u64>,
    duplicates: u64,
    /// Of those, the ones that told of something else, and a patient of whom.
    conflicts: u64,
    in_conflict: Option<Uuid>,
}

impl BatchApplier {
    /// Counts the events of batches into `commit`, and commits it with what is known of their patients afterwards.
    ///
    /// # Errors
    /// If the state fails; then nothing of it is stored, or all.
    pub(super) async fn store(state: &mut State, batches: &[Batch], commit: &mut Delta) -> Result<Self, StateError> {
        let mut counted = Self::default();
        let events = by_patient(batches);
        let patients: Vec<_> = events.chunk_by(|one, next| one.patient_id == next.patient_id).collect();
        let mut parts = patients.chunks(Transaction::PATIENTS).peekable();
        let mut transaction = state.begin().await?;
        let mut known = transaction.known(&ids(parts.peek())).await?;
        let mut to_store = None;
        while let Some(part) = parts.next() {
            let next = ids(parts.peek());
            // SQLite's thread stores the patients before, and looks for the next, while this one counts what happened to
            // these.
            let store = async {
                if let Some(patients) = to_store.take() {
                    transaction.remember(patients).await?;
                }
                transaction.known(&next).await
            };
            let count = async { Remember::new(&counted.add(part, &known, &mut commit.counts)) };
            let (found, remember) = zip(store, count).await;
            to_store = Some(remember);
            known = found?;
        }
        if let Some(patients) = to_store {
            transaction.remember(patients).await?;
        }
        transaction.commit(commit).await?;
        if !commit.dead_letters.is_empty() {
            state.count_waiting().await?;
        }
        Ok(counted)
    }

    /// Counts the events of some patients, knowing what is known of them; gives what is known now of those that changed,
    /// in the same order.
    fn add(
        &mut self,
        patients: &[&[&Received]],
        known: &HashMap<Uuid, PatientState>,
        counts: &mut Counts,
    ) -> Vec<(Uuid, PatientState)> {
        let mut changed = Vec::with_capacity(patients.len());
        for events in patients {
            let id = events[0].patient_id;
            let mut patient = known.get(&id).copied().unwrap_or_default();
            let mut changes = false;
            for event in *events {
                match counts.apply(&mut patient, event) {
                    Outcome::Applied => {
                        *self.applied.entry(event.kind.map_or("unknown", |kind| kind.name())).or_default() += 1;
                        changes = true;
                    }
                    Outcome::Duplicate => self.duplicates += 1,
                    Outcome::Conflict => {
                        (self.duplicates, self.conflicts) = (self.duplicates + 1, self.conflicts + 1);
                        self.in_conflict = Some(id);
                    }
                }
            }
            if changes {
                changed.push((id, patient));
            }
        }
        changed
    }

    /// Tells the metrics, with how many records were no events.
    pub(super) fn tell(&self, dead: usize) {
        for (kind, count) in &self.applied {
            APPLIED.with_label_values(&[kind]).inc_by(*count);
        }
        DUPLICATES.inc_by(self.duplicates);
        CONFLICTS.inc_by(self.conflicts);
        if let Some(patient_id) = self.in_conflict {
            tracing::warn!(
                events = self.conflicts,
                %patient_id,
                "versions came again with other changes, which are not counted: was the publisher's database restored?"
            );
        }
        DEAD.inc_by(dead as u64);
    }
}

/// Events with those of a patient together, in the order of the topic: a patient's are in one partition. What different
/// patients' events add up to does not depend on their order.
fn by_patient(batches: &[Batch]) -> Vec<&Received> {
    let mut events: Vec<_> = batches.iter().flat_map(|batch| &batch.events).collect();
    events.sort_by_key(|event| event.patient_id);
    events
}

/// The ids of patients, whose events these are; none if there are none.
fn ids(patients: Option<&&[&[&Received]]>) -> Vec<Uuid> {
    patients.into_iter().flat_map(|patients| patients.iter()).map(|events| events[0].patient_id).collect()
}

#[cfg(test)]
mod tests {
    use codec::event::Kind::{self, Created, Updated};
    use testbed::Scratch;

    use super::*;
    use crate::state::SavedPosition;

    fn batch(events: impl Iterator<Item = (Uuid, Kind, i64)>) -> Batch {
        let event = |(patient_id, kind, version)| Received {
            patient_id,
            kind: Some(kind),
            version: Some(version),
            time: None,
            registered_date: None,
            birth_year: Some(1900 + (patient_id.as_u128() % 100) as i32),
        };
        let mut batch = Batch::empty(0, SavedPosition { next: 0, last_timestamp: None, topic_id: None });
        batch.events = events.map(event).collect();
        batch
    }

    #[test]
    fn patients_are_known_again_however_many_come_at_once() {
        let patients: Vec<Uuid> = (0..Transaction::PATIENTS as u128 * 2 + 100).map(Uuid::from_u128).collect();
        let count = patients.len() as u64;
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, _) = State::open(&file).await.unwrap();
            let created = || patients.iter().map(|id| (*id, Created, 1));
            let counted = BatchApplier::store(&mut state, &[batch(created())], &mut Delta::default()).await.unwrap();
            assert_eq!((counted.applied[Created.name()], counted.duplicates), (count, 0));
            let updated = patients.iter().step_by(2).map(|id| (*id, Updated, 2));
            let mut commit = Delta::default();
            let batches = [batch(created()), batch(updated)];
            let counted = BatchApplier::store(&mut state, &batches, &mut commit).await.unwrap();
            assert_eq!((counted.applied[Updated.name()], counted.duplicates), (count.div_ceil(2), count));
            assert_eq!((commit.counts.active, commit.counts.updated), (0, count.div_ceil(2) as i64));
            state.close().await;
            let (_, saved) = State::open(&file).await.unwrap();
            assert_eq!((saved.counts.active, saved.counts.created), (count as i64, count as i64));
            assert_eq!(saved.counts.births.values().sum::<i64>(), count as i64);
        });
    }
}
