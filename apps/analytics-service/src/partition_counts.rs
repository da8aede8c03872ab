//! Counts by partition. Pure: no I/O, no clock.

use std::{
    collections::{BTreeMap, btree_map},
    ops::AddAssign,
};

use codec::event::ReceivedEvent;

use crate::counts::{Counts, Outcome, PatientState};

/// Counts by partition. `None` has those of a state of an earlier version, which are of no single partition.
///
/// A patient is counted in one partition: in the one of its last event. When partitions are added to the topic, its later
/// events are on another one, and what it adds to the counts moves there with the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionCounts(BTreeMap<Option<i32>, Counts>);

impl PartitionCounts {
    /// Counts an event of a partition, and updates the state of its patient.
    pub fn apply(&mut self, partition: i32, patient: &mut PatientState, event: &ReceivedEvent) -> Outcome {
        if let Some(outcome) = patient.repeated(event) {
            return outcome;
        }
        self.move_patient(patient, partition);
        self.of(Some(partition)).count(patient, event);
        Outcome::Applied
    }

    /// Counts a patient in this partition and no longer in the one before.
    pub fn move_patient(&mut self, patient: &mut PatientState, partition: i32) {
        if patient.partition == Some(partition) {
            return;
        }
        if patient.is_counted() {
            self.of(patient.partition).add_patient(patient, -1);
            self.of(Some(partition)).add_patient(patient, 1);
        }
        patient.partition = Some(partition);
    }

    /// The counts of a partition, to change them.
    pub fn of(&mut self, partition: Option<i32>) -> &mut Counts {
        self.0.entry(partition).or_default()
    }

    /// The counts of a partition, if there are any.
    pub fn get(&self, partition: Option<i32>) -> Option<&Counts> {
        self.0.get(&partition)
    }

    /// The counts that are of no single partition alone.
    pub fn unsplit(&self) -> Self {
        Self(self.0.get(&None).map(|counts| (None, counts.clone())).into_iter().collect())
    }

    /// The counts of each partition.
    pub fn iter(&self) -> btree_map::Iter<'_, Option<i32>, Counts> {
        self.0.iter()
    }

    /// The sum over all partitions that meet a condition. `None` is always part of it.
    pub fn sum(&self, is_part: impl Fn(i32) -> bool) -> Counts {
        let parts = self.0.iter().filter(|(partition, _)| partition.is_none_or(&is_part));
        parts.fold(Counts::default(), |mut sum, (_, counts)| {
            sum += counts;
            sum
        })
    }
}

impl AddAssign<&Self> for PartitionCounts {
    fn add_assign(&mut self, other: &Self) {
        for (partition, counts) in other.iter() {
            *self.of(*partition) += counts;
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use codec::event::EventKind::{self, Created, Deleted, Updated};
    use uuid::Uuid;

    use super::*;

    fn event(kind: EventKind, version: Option<i64>) -> ReceivedEvent {
        ReceivedEvent {
            patient_id: Uuid::nil(),
            kind: Some(kind),
            version,
            time: DateTime::from_timestamp(version.unwrap_or_default(), 0),
            registered_date: Some("2024-02-29".parse().unwrap()),
            birth_year: (kind != Deleted).then_some(1990),
        }
    }

    fn without_zeros(mut counts: Counts) -> Counts {
        counts.births.retain(|_, patients| *patients != 0);
        counts.registrations.retain(|_, patients| *patients != 0);
        counts.last_event = None;
        counts
    }

    #[test]
    fn a_patient_whose_events_come_on_another_partition_is_counted_there_and_nowhere_else() {
        for versions in [[None; 4], [Some(1), Some(2), Some(3), Some(4)]] {
            let kinds = [Created, Updated, Updated, Deleted];
            for partitions in [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 2, 3]] {
                let (mut by_partition, mut whole) = (PartitionCounts::default(), Counts::default());
                let (mut patient, mut other) = (PatientState::default(), PatientState::default());
                for ((kind, version), partition) in kinds.into_iter().zip(versions).zip(partitions) {
                    let event = event(kind, version);
                    assert_eq!(by_partition.apply(partition, &mut patient, &event), whole.apply(&mut other, &event));
                    assert_eq!(
                        without_zeros(by_partition.sum(|_| true)),
                        without_zeros(whole.clone()),
                        "{version:?} on {partitions:?}"
                    );
                    if version.is_some() {
                        let others = by_partition.sum(|part| part != partition);
                        assert_eq!(without_zeros(others), Counts::default(), "it has moved");
                    }
                }
            }
        }
    }

    #[test]
    fn a_repeated_event_on_another_partition_moves_nothing() {
        let (mut counts, mut patient) = (PartitionCounts::default(), PatientState::default());
        assert_eq!(counts.apply(0, &mut patient, &event(Updated, Some(2))), Outcome::Applied);
        let before = (counts.clone(), patient);
        assert_eq!(counts.apply(1, &mut patient, &event(Created, Some(1))), Outcome::Duplicate);
        assert_eq!((counts, patient), before);
    }

    #[test]
    fn the_sum_has_the_partitions_that_are_asked_for_and_what_is_of_none() {
        let mut counts = PartitionCounts::default();
        for (partition, created) in [(None, 1), (Some(0), 2), (Some(1), 4)] {
            counts.of(partition).created = created;
        }
        assert_eq!(counts.sum(|partition| partition == 1).created, 5);
        let mut twice = counts.clone();
        twice += &counts;
        assert_eq!(twice.sum(|_| true).created, 14);
    }
}
