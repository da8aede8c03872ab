//! Whether it is an event that the broker rejects, or the topic that rejects every event.
//!
//! A broker answers with the same codes if a record is too large or invalid and if the topic's configuration rejects whatever it is
//! sent, such as a `max.message.bytes` in the wrong unit, which an operator corrects. So an event is dead-lettered if the broker has
//! rejected it, then accepted another one, then rejected it again. Until then it stays in the outbox with the later events of its
//! patient, and an event of another patient is sent in its place.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::batch::Batch;
use crate::outbox::OutboxRow;

/// Rejections without an acceptance in between from which on the topic is reported to reject every event.
const MAX_IN_A_ROW: u32 = 5;

/// The events that the broker has rejected, each sent alone.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    /// By the id of the event. Those of a topic that rejects every event are as many as a read returns, at most.
    rejected: BTreeMap<Uuid, Rejected>,
    /// Batches that the broker has accepted, and how many they were before the batches under way were sent.
    accepted: u64,
    accepted_before: u64,
    in_a_row: u32,
}

#[derive(Debug)]
struct Rejected {
    patient_id: Uuid,
    /// Batches that were accepted up to the rejection.
    accepted: u64,
}

impl Rejections {
    /// What to send of a batch: all of it, unless the broker has rejected an event in it and accepted no other one since. Then the
    /// first event of another patient, else the rejected one: it may have become valid for the topic.
    pub(super) fn to_send(&self, batch: Batch) -> Batch {
        let unresolved = self.rejected.values().filter(|rejected| rejected.accepted == self.accepted);
        let patients: BTreeSet<Uuid> = unresolved.map(|rejected| rejected.patient_id).collect();
        let is_held = |event: &OutboxRow| patients.contains(&event.patient_id);
        if !batch.events.iter().any(is_held) {
            return batch;
        }
        let other = batch.events.iter().position(|event| !is_held(event));
        batch.only(other.unwrap_or_default())
    }

    /// Batches are about to be sent.
    pub(super) fn begin(&mut self) {
        self.accepted_before = self.accepted;
    }

    /// The broker has accepted these events.
    pub(super) fn accept(&mut self, events: &[OutboxRow]) {
        self.accepted += 1;
        self.in_a_row = 0;
        if !self.rejected.is_empty() {
            for event in events {
                self.rejected.remove(&event.event_id);
            }
        }
    }

    /// The broker has rejected this event, which was sent alone. Returns whether it is the event's fault.
    pub(super) fn reject(&mut self, event: &OutboxRow) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let &mut Rejected { accepted, .. } = self
            .rejected
            .entry(event.event_id)
            .or_insert(Rejected { patient_id: event.patient_id, accepted: self.accepted });
        // One that was accepted at the same time shows nothing: the configuration may have been corrected in between.
        accepted < self.accepted_before
    }

    /// The event is dead-lettered.
    pub(super) fn forget(&mut self, event: &OutboxRow) {
        self.rejected.remove(&event.event_id);
    }

    /// How many single events the broker has rejected since it accepted one, if they are so many that it may be the topic.
    pub(super) fn in_a_row(&self) -> Option<u32> {
        (self.in_a_row >= MAX_IN_A_ROW).then_some(self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use codec::event::EventKind;

    use super::*;

    fn event(id: i64, patient: u128) -> OutboxRow {
        OutboxRow {
            id,
            patient_id: Uuid::from_u128(patient),
            key_hash: 0,
            event_id: Uuid::from_u128(id.unsigned_abs().into()),
            event_type: EventKind::Updated.name().to_owned(),
            value: Vec::new(),
            traceparent: None,
            created_at: Utc::now(),
        }
    }

    /// The ids of what is sent of these events, by id and patient.
    fn sent(rejections: &Rejections, events: &[(i64, u128)]) -> Vec<i64> {
        let mut batch = Batch::default();
        events.iter().for_each(|&(id, patient)| batch.add(event(id, patient)));
        rejections.to_send(batch).events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn an_event_is_at_fault_only_if_it_is_rejected_again_after_another_one_was_accepted() {
        let mut rejections = Rejections::default();
        let reject = |rejections: &mut Rejections, accepted_meanwhile: bool| {
            rejections.begin();
            if accepted_meanwhile {
                rejections.accept(&[event(9, 9)]);
            }
            rejections.reject(&event(1, 1))
        };
        assert!(!reject(&mut rejections, true), "the configuration may have changed after the other one");
        for _ in 0..3 {
            assert!(!reject(&mut rejections, false));
        }
        assert!(!reject(&mut rejections, true), "the configuration may have been corrected for the other one");
        assert!(reject(&mut rejections, false));
        rejections.forget(&event(1, 1));
        assert!(!reject(&mut rejections, false), "it was sent again");
        rejections.accept(&[event(1, 1)]);
        assert!(!reject(&mut rejections, false), "it was accepted meanwhile");
    }

    #[test]
    fn other_patients_are_tried_while_an_event_is_rejected_and_its_patients_events_keep_their_order() {
        let mut rejections = Rejections::default();
        let events = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)];
        assert_eq!(sent(&rejections, &events), [1, 2, 3, 4, 5]);
        for (rejected, next) in [(1, 3), (3, 5), (5, 1), (1, 1)] {
            rejections.begin();
            rejections.reject(&event(rejected, events[rejected as usize - 1].1));
            assert_eq!(sent(&rejections, &events), [next], "after {rejected}");
        }
        assert_eq!(sent(&rejections, &[(6, 4), (7, 4)]), [6, 7], "another partition");
        rejections.begin();
        rejections.accept(&[event(6, 4)]);
        assert_eq!(sent(&rejections, &events), [1, 2, 3, 4, 5], "now it shows which of them are at fault");
    }

    #[test]
    fn rejections_in_a_row_are_reported_until_an_event_is_accepted() {
        let mut rejections = Rejections::default();
        for number in 1..=MAX_IN_A_ROW {
            assert_eq!(rejections.in_a_row(), None);
            rejections.reject(&event(number.into(), number.into()));
        }
        assert_eq!(rejections.in_a_row(), Some(MAX_IN_A_ROW));
        rejections.accept(&[]);
        assert_eq!(rejections.in_a_row(), None);
    }
}
