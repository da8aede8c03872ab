//! Compares the data of a system with the acknowledged changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use codec::event::EventKind;
use uuid::Uuid;

use super::acknowledged::AcknowledgedPatient;

/// Ids that a report shows for each kind of loss.
const MAX_SHOWN: usize = 5;

/// The result of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Patients in PostgreSQL.
    pub patients: usize,
    /// Deleted patients.
    pub deleted: usize,
    /// Events on the topic, without duplicates.
    pub events: usize,
    /// Duplicates of events on the topic.
    pub duplicates: usize,
    /// Records on the topic that are not events of ours.
    pub others: usize,
    /// Ledger entries.
    pub entries: usize,
    /// Patients with an acknowledged change.
    pub acknowledged: usize,
    /// What was lost or is inconsistent; empty if nothing is.
    pub losses: Vec<String>,
}

impl Report {
    /// Returns the report.
    ///
    /// # Panics
    /// If there are losses, with the whole report.
    pub fn expect_no_loss(self) -> Self {
        assert!(self.losses.is_empty(), "{self}");
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { patients, deleted, events, duplicates, others, entries, acknowledged, losses } = self;
        write!(
            f,
            "{patients} patients, {deleted} deleted, {events} events, {duplicates} duplicates, {others} other records, \
             {entries} ledger entries; {acknowledged} patients were acknowledged to clients"
        )?;
        losses.iter().try_for_each(|loss| write!(f, "\n  LOST: {loss}"))
    }
}

/// The events of one patient on the topic.
#[derive(Clone, Debug, Default)]
pub(super) struct EventHistory {
    /// The version and the kind of each event without duplicates, in the order of the topic.
    pub(super) events: Vec<(i64, Option<EventKind>)>,
    pub(super) duplicates: usize,
    /// Whether compaction has deleted records of its partition.
    pub(super) is_compacted: bool,
}

/// Everything that an audit compares.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Patients with their versions.
    pub(super) patients: BTreeMap<Uuid, i64>,
    /// Accounts; true for active ones.
    pub(super) accounts: BTreeMap<Uuid, bool>,
    pub(super) entries: BTreeMap<(Uuid, String), i64>,
    /// Patients with a balance that is not the sum of the ledger.
    pub(super) unbalanced: Vec<Uuid>,
    pub(super) dead_lettered_events: i64,
    pub(super) histories: BTreeMap<Uuid, EventHistory>,
    pub(super) wrong_partition: BTreeSet<Uuid>,
    pub(super) others: usize,
    /// active, created, updated, deleted.
    pub(super) analytics: [i64; 4],
}

impl Snapshot {
    pub(super) fn compare(&self, acknowledged: &BTreeMap<Uuid, AcknowledgedPatient>) -> Report {
        let mut losses = Vec::new();
        let mut lost = |kind: &str, ids: Vec<String>| {
            if !ids.is_empty() {
                let more = ids.len().saturating_sub(MAX_SHOWN);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                losses.push(format!("{kind}: {}{more}", ids[..ids.len().min(MAX_SHOWN)].join(", ")));
            }
        };
        let found = |id: &Uuid| self.patients.get(id).copied();

        // Every acknowledged change is committed.
        let missing = acknowledged
            .iter()
            .filter(|(id, patient)| patient.version > 0 && !patient.delete_requested && found(id).is_none());
        lost("acknowledged patients are not in PostgreSQL", names(missing));
        let older =
            acknowledged.iter().filter(|(id, patient)| found(id).is_some_and(|version| version < patient.version));
        lost("acknowledged changes are not in PostgreSQL", names(older));
        let not_deleted = acknowledged.iter().filter(|(id, patient)| patient.deleted && found(id).is_some());
        lost("deleted patients are in PostgreSQL", names(not_deleted));
        let entries = acknowledged
            .iter()
            .flat_map(|(id, patient)| patient.entries.iter().map(move |(name, amount)| (*id, name, amount)));
        let missing_entries =
            entries.filter(|(id, name, amount)| self.entries.get(&(*id, (*name).clone())) != Some(amount));
        let missing_entries = missing_entries.map(|(id, name, _)| format!("{id} {name}"));
        lost("acknowledged transactions are not in the ledger, or not with their amount", missing_entries.collect());

        // Each patient has one account. There cannot be a second one: the patient's id is the primary key.
        let without_account = self.patients.keys().filter(|id| self.accounts.get(id) != Some(&true));
        lost("patients have no active billing account", without_account.map(Uuid::to_string).collect());
        let account_without_patient = self.accounts.iter().filter(|(id, active)| **active && found(id).is_none());
        lost("active billing accounts have no patient", names(account_without_patient));
        lost("balances are not the sum of their ledger", self.unbalanced.iter().map(Uuid::to_string).collect());

        // Each event is on the topic, in order, on the partition of its key.
        let out_of_order = self.histories.iter().filter(|(_, history)| !history.is_complete_and_ordered());
        let out_of_order = out_of_order.map(|(id, history)| format!("{id} {:?}", history.versions()));
        lost("versions are not in order on the topic", out_of_order.collect());
        let not_published = self.patients.iter().filter(|(id, version)| {
            self.histories.get(*id).is_none_or(|history| history.last() != Some(**version) || history.ends_deleted())
        });
        lost("patients are not on the topic as they are in PostgreSQL", names(not_published));
        let published_only =
            self.histories.iter().filter(|(id, history)| !history.ends_deleted() && found(id).is_none());
        lost("patients of the topic are not in PostgreSQL", names(published_only));
        lost(
            "events are on a partition that is not their key's",
            self.wrong_partition.iter().map(Uuid::to_string).collect(),
        );
        if self.dead_lettered_events > 0 {
            lost(
                "events that the broker rejected are in outbox_dead_letters",
                vec![self.dead_lettered_events.to_string()],
            );
        }

        // Analytics has counted each version once, also of events that compaction has deleted.
        let deleted = self.histories.values().filter(|history| history.ends_deleted()).count() as i64;
        let created = self.histories.len() as i64;
        let versions: i64 = self.histories.values().filter_map(EventHistory::last).sum();
        let expected = [self.patients.len() as i64, created, versions - created - deleted, deleted];
        if self.analytics != expected {
            let counted = format!("{:?} instead of {expected:?}", self.analytics);
            lost("analytics counts (active, created, updated, deleted)", vec![counted]);
        }

        Report {
            patients: self.patients.len(),
            deleted: self.histories.values().filter(|history| history.ends_deleted()).count(),
            events: self.histories.values().map(|history| history.events.len()).sum(),
            duplicates: self.histories.values().map(|history| history.duplicates).sum(),
            others: self.others,
            entries: self.entries.len(),
            acknowledged: acknowledged.len(),
            losses,
        }
    }
}

impl EventHistory {
    fn versions(&self) -> Vec<i64> {
        self.events.iter().map(|(version, _)| *version).collect()
    }

    fn last(&self) -> Option<i64> {
        self.events.last().map(|(version, _)| *version)
    }

    fn ends_deleted(&self) -> bool {
        matches!(self.events.last(), Some((_, Some(EventKind::Deleted))))
    }

    /// Whether no version is out of order, none is missing that compaction has not deleted, and nothing follows a deletion.
    fn is_complete_and_ordered(&self) -> bool {
        let before_last = self.events.split_last().map_or(&[][..], |(_, before)| before);
        let versions = self.versions();
        let is_ordered = versions.is_sorted_by(|one, next| one < next);
        is_ordered
            && (self.is_compacted || versions.into_iter().eq(1..=self.events.len() as i64))
            && !before_last.iter().any(|(_, kind)| *kind == Some(EventKind::Deleted))
    }
}
fn names<'a, T: 'a>(found: impl Iterator<Item = (&'a Uuid, T)>) -> Vec<String> {
    found.map(|(id, _)| id.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Acknowledged;

    const CREATED: (i64, Option<EventKind>) = (1, Some(EventKind::Created));
    const UPDATED: (i64, Option<EventKind>) = (2, Some(EventKind::Updated));

    fn history(events: &[(i64, Option<EventKind>)]) -> EventHistory {
        EventHistory { events: events.to_vec(), ..EventHistory::default() }
    }

    /// Three patients, the last of them deleted, without losses.
    fn consistent() -> (Snapshot, Acknowledged, [Uuid; 3]) {
        let ids @ [one, two, deleted] = [1, 2, 3].map(Uuid::from_u128);
        let snapshot = Snapshot {
            patients: [(one, 1), (two, 2)].into(),
            accounts: [(one, true), (two, true), (deleted, false)].into(),
            entries: [((one, "t-1".to_owned()), 100)].into(),
            histories: [
                (one, history(&[CREATED])),
                (two, history(&[CREATED, UPDATED])),
                (deleted, history(&[CREATED, (2, Some(EventKind::Deleted))])),
            ]
            .into(),
            analytics: [2, 3, 1, 1],
            ..Snapshot::default()
        };
        let acknowledged = Acknowledged::default();
        acknowledged.stored(one, 1);
        acknowledged.transaction_recorded(one, "t-1", 100);
        acknowledged.stored(two, 2);
        acknowledged.stored(deleted, 1);
        acknowledged.delete_requested(deleted);
        acknowledged.deleted(deleted);
        (snapshot, acknowledged, ids)
    }

    fn losses(change: impl FnOnce(&mut Snapshot, &Acknowledged, [Uuid; 3])) -> String {
        let (mut snapshot, acknowledged, ids) = consistent();
        change(&mut snapshot, &acknowledged, ids);
        let report = snapshot.compare(&acknowledged.lock());
        report.losses.join("\n")
    }

    #[test]
    fn consistent_data_have_no_loss() {
        assert_eq!(losses(|_, _, _| ()), "");
    }

    #[test]
    fn every_kind_of_loss_is_reported() {
        let reported = |expected: &str, change: fn(&mut Snapshot, &Acknowledged, [Uuid; 3])| {
            let losses = losses(change);
            assert!(losses.contains(expected), "{expected:?} in {losses:?}");
        };
        reported("acknowledged patients are not in PostgreSQL", |_, acknowledged, _| {
            acknowledged.stored(Uuid::from_u128(4), 1)
        });
        reported("acknowledged changes are not in PostgreSQL", |_, acknowledged, [one, ..]| {
            acknowledged.stored(one, 2)
        });
        reported("deleted patients are in PostgreSQL", |_, acknowledged, [one, ..]| acknowledged.deleted(one));
        reported("not in the ledger, or not with their amount", |_, acknowledged, [one, ..]| {
            acknowledged.transaction_recorded(one, "t-1", 101)
        });
        reported("not in the ledger, or not with their amount", |_, acknowledged, [one, ..]| {
            acknowledged.transaction_recorded(one, "t-2", 100)
        });
        reported("patients have no active billing account", |found, _, [one, ..]| {
            found.accounts.insert(one, false);
        });
        reported("active billing accounts have no patient", |found, _, [.., deleted]| {
            found.accounts.insert(deleted, true);
        });
        reported("balances are not the sum", |found, _, [one, ..]| found.unbalanced.push(one));
        reported("versions are not in order", |found, _, [_, two, _]| {
            found.histories.insert(two, history(&[UPDATED, CREATED]));
        });
        reported("versions are not in order", |found, _, [_, two, _]| {
            found
                .histories
                .insert(two, history(&[CREATED, (2, Some(EventKind::Deleted)), (3, Some(EventKind::Updated))]));
        });
        reported("not on the topic as they are in PostgreSQL", |found, _, [_, two, _]| {
            found.histories.insert(two, history(&[CREATED]));
        });
        reported("patients of the topic are not in PostgreSQL", |found, _, [one, ..]| {
            found.patients.remove(&one);
        });
        reported("a partition that is not their key's", |found, _, [one, ..]| {
            found.wrong_partition.insert(one);
        });
        reported("that the broker rejected", |found, _, _| found.dead_lettered_events = 1);
        reported("analytics counts", |found, _, _| found.analytics = [3, 3, 1, 1]);
    }

    #[test]
    fn events_that_compaction_has_deleted_are_no_loss_and_others_are() {
        let without_first = |is_compacted| {
            losses(|found, _, [_, two, _]| {
                found.histories.insert(two, EventHistory { is_compacted, ..history(&[UPDATED]) });
            })
        };
        assert_eq!(without_first(true), "");
        assert!(without_first(false).contains("versions are not in order on the topic"));
    }

    #[test]
    fn a_deletion_without_a_response_is_not_a_loss() {
        let losses = losses(|found, acknowledged, [one, ..]| {
            acknowledged.delete_requested(one);
            found.patients.remove(&one);
            found.accounts.insert(one, false);
            found.histories.insert(one, history(&[CREATED, (2, Some(EventKind::Deleted))]));
            found.analytics = [1, 3, 1, 2];
        });
        assert_eq!(losses, "");
    }
}
