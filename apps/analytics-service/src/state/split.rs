//! Splits the counts of a state of an earlier version by partition.

use std::collections::BTreeSet;

use kafka::partitioner::{key_hash, of_hash};
use runtime::timeout;
use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection, query, query_scalar};
use uuid::Uuid;

use super::{
    STEP_TIMEOUT, State, StateError,
    encoding::decode_patient_state,
    load,
    script::Script,
    transaction::{PatientUpsert, Transaction, add_counts},
};
use crate::{
    counts::{Counts, PatientState},
    partition_counts::PartitionCounts,
};

/// What [`State::prepare`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// Nothing.
    Unchanged,
    /// The counts, and perhaps the positions, are others now.
    Changed,
}

impl State {
    pub(super) async fn load_unsplit(&mut self) -> Result<(), StateError> {
        let find = query_scalar::<_, i32>("-- unsplit\nSELECT partition FROM unsplit").fetch_all(&mut self.connection);
        self.unsplit = timeout(STEP_TIMEOUT, find).await??.into_iter().collect();
        Ok(())
    }

    /// Prepares the state to have these partitions, of a topic with `count`. A state of an earlier version has counts that are of no
    /// single partition. They are right as long as all partitions that they are from are assigned. Otherwise the patients are
    /// counted by the partitions of their ids.
    ///
    /// If something else was counted too, which is what the original services publish, its partition cannot be known: then the
    /// state forgets everything, and the partitions are counted from the beginning of the topic.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub async fn prepare(&mut self, assigned: &BTreeSet<i32>, count: i32) -> Result<Preparation, StateError> {
        if self.unsplit.is_subset(assigned) {
            return Ok(Preparation::Unchanged);
        }
        let mut transaction = timeout(STEP_TIMEOUT, self.connection.begin()).await??;
        let patients = split(&mut transaction, count).await?;
        if is_whole(&mut transaction).await? {
            tracing::info!(patients, "the counts of the state are split by partition");
        } else {
            let forget = "DELETE FROM patients; DELETE FROM totals; DELETE FROM births; DELETE FROM registrations;
                DELETE FROM positions";
            timeout(STEP_TIMEOUT, transaction.execute(forget)).await??;
            tracing::warn!(
                "the state has counted events without versions, and not by partition: its partitions are counted from the \
                 beginning of the topic"
            );
        }
        let finish = "UPDATE totals SET last_event = max(totals.last_event, rest.last_event)
                FROM (SELECT last_event FROM totals WHERE partition = -1) AS rest;
            DELETE FROM totals WHERE partition = -1; DELETE FROM births WHERE partition = -1;
            DELETE FROM registrations WHERE partition = -1; DELETE FROM unsplit";
        timeout(STEP_TIMEOUT, transaction.execute(finish)).await??;
        timeout(STEP_TIMEOUT, transaction.commit()).await??;
        self.unsplit.clear();
        Ok(Preparation::Changed)
    }
}

/// Counts the patients without a partition in that of their ids. Returns their number.
async fn split(connection: &mut SqliteConnection, count: i32) -> Result<usize, StateError> {
    let (mut moved, mut last) = (0, Vec::new());
    loop {
        let page = query("-- patients to split\nSELECT id, known FROM patients WHERE id > ? ORDER BY id LIMIT ?")
            .bind(last)
            .bind(Transaction::MAX_PATIENTS as i64);
        let rows = timeout(STEP_TIMEOUT, page.fetch_all(&mut *connection)).await??;
        let mut counts = PartitionCounts::default();
        let mut changed = Vec::new();
        for row in &rows {
            let (id, known) = (row.try_get("id")?, row.try_get("known")?);
            let (id, mut patient) = decode(id, known)?;
            if patient.partition.is_none() && patient.version > 0 {
                counts.move_patient(&mut patient, of_hash(key_hash(id.to_string().as_bytes()), count));
                changed.push((id, patient));
            }
        }
        moved += changed.len();
        if !changed.is_empty() {
            let upsert = PatientUpsert::new(&changed);
            timeout(STEP_TIMEOUT, upsert.0.execute(&mut *connection)).await??;
            let mut script = Script::default();
            add_counts(&mut script, &counts)?;
            timeout(STEP_TIMEOUT, script.execute(&mut *connection)).await??;
        }
        match rows.last() {
            Some(row) => last = row.try_get("id")?,
            None => return Ok(moved),
        }
    }
}

fn decode(id: &[u8], known: &[u8]) -> Result<(Uuid, PatientState), StateError> {
    let id = Uuid::from_slice(id).map_err(|_| StateError("a patient id is invalid".to_owned()))?;
    let patient = decode_patient_state(known).ok_or_else(|| StateError("a patient state is invalid".to_owned()))?;
    Ok((id, patient))
}

/// Whether nothing is left that is of no single partition, apart from changes whose events were not read when they were counted.
async fn is_whole(connection: &mut SqliteConnection) -> Result<bool, StateError> {
    let saved = timeout(STEP_TIMEOUT, load(connection)).await??;
    let Some(mut rest) = saved.counts.get(None).cloned() else { return Ok(true) };
    rest.births.retain(|_, patients| *patients != 0);
    rest.registrations.retain(|_, patients| *patients != 0);
    let Counts { updated, last_event, .. } = rest;
    Ok(rest == Counts { updated, last_event, ..Counts::default() } && updated <= 0)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use codec::event::{EventKind, ReceivedEvent};
    use testbed::Scratch;

    use super::*;
    use crate::state::{Delta, SavedPosition};

    const COUNT: i32 = 3;

    /// A state of an earlier version with more patients than a page has, after a migration: their number, and what was counted of
    /// them.
    async fn earlier_state(file: &std::path::Path, version: Option<i64>) -> (State, Counts, Vec<Uuid>) {
        let (mut state, _) = State::open(file).await.unwrap();
        let ids: Vec<Uuid> = (0..Transaction::MAX_PATIENTS as u128 + 100).map(|n| Uuid::from_u128(n << 64)).collect();
        let mut counts = Counts::default();
        let mut patients = Vec::new();
        for (number, id) in (0..).zip(&ids) {
            let mut patient = PatientState::default();
            let event = ReceivedEvent {
                patient_id: *id,
                kind: Some(if number % 7 == 0 { EventKind::Deleted } else { EventKind::Updated }),
                version: version.map(|version| version + number % 5),
                time: DateTime::from_timestamp(number, 0),
                registered_date: Some("2024-02-29".parse().unwrap()),
                birth_year: Some(1950 + (number % 50) as i32),
            };
            counts.count(&mut patient, &event);
            patients.push((*id, patient));
        }
        let position = SavedPosition { next: 7, last_timestamp: None, topic_id: None, leader_epoch: None };
        let mut delta = Delta { positions: (0..COUNT).map(|n| (n, position)).collect(), ..Delta::default() };
        *delta.counts.of(None) = counts.clone();
        let mut transaction = state.begin().await.unwrap();
        for page in patients.chunks(Transaction::MAX_PATIENTS) {
            transaction.upsert_patients(PatientUpsert::new(page)).await.unwrap();
        }
        transaction.commit(&delta).await.unwrap();
        // As the migration finds it.
        state.connection.execute("INSERT INTO unsplit SELECT partition FROM positions").await.unwrap();
        state.close().await;
        (State::open(file).await.unwrap().0, counts, ids)
    }

    fn without_zeros(mut counts: Counts) -> Counts {
        counts.births.retain(|_, patients| *patients != 0);
        counts.registrations.retain(|_, patients| *patients != 0);
        counts
    }

    #[test]
    fn counts_of_before_are_split_by_partition_once_one_of_them_is_assigned_to_another() {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, counted, ids) = earlier_state(&file, Some(1)).await;
            let before = state.saved().await.unwrap();
            assert_eq!(state.prepare(&[0, 1, 2, 3].into(), 4).await.unwrap(), Preparation::Unchanged);
            assert_eq!(state.saved().await.unwrap(), before, "as long as all of them are here, nothing is to do");
            assert_eq!(state.prepare(&[0, 2].into(), COUNT).await.unwrap(), Preparation::Changed);
            state.close().await;
            let (mut state, saved) = State::open(&file).await.unwrap();
            assert_eq!(saved.positions, before.positions);
            assert_eq!(without_zeros(saved.counts.sum(|_| true)), counted, "nothing is lost");
            assert_eq!(saved.counts.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
            for partition in 0..COUNT {
                let of_id = |id: &&Uuid| of_hash(key_hash(id.to_string().as_bytes()), COUNT) == partition;
                let expected = ids.iter().filter(of_id).count() as i64;
                assert_eq!(saved.counts.get(Some(partition)).unwrap().created, expected);
            }
            assert_eq!(state.prepare(&[1].into(), COUNT).await.unwrap(), Preparation::Unchanged, "once is enough");
        });
    }

    #[test]
    fn counts_of_before_that_no_partition_can_be_told_of_are_counted_again() {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, ..) = earlier_state(&file, None).await;
            assert_eq!(state.prepare(&[0].into(), COUNT).await.unwrap(), Preparation::Changed);
            assert_eq!(state.saved().await.unwrap(), crate::state::SavedState::default());
        });
    }
}
