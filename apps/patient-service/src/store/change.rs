//! Updates and deletions, with optimistic locking. Concurrent ones share one read and one write, which is one commit.
//!
//! The event is encoded here and carries the new version, so the patient is read first, and the write applies only if the
//! version is still the one that was read. A patient that has changed in between, does not exist, or does not meet the
//! precondition is left to a transaction of its own, which decides under the row's lock
//! ([`Store::update`](super::Store::update)).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use codec::event::EventKind;
use postgres::{BatchStatement, Database, Error, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use super::{VersionCondition, column, find::Find};
use crate::{
    outbox::{self, NewEvent},
    patient::{Details, Patient},
};

/// An update of a patient.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) id: Uuid,
    pub(super) condition: VersionCondition,
    pub(super) details: Details,
    pub(super) trace: TraceContext,
}

/// A deletion of a patient.
#[derive(Debug)]
pub(super) struct Delete {
    pub(super) id: Uuid,
    pub(super) condition: VersionCondition,
    pub(super) trace: TraceContext,
}

/// The statements for many updates. The response is the patient; none if the update was not applied.
pub(super) enum Updates {}

/// The statements for many deletions. The response is whether the deletion was applied.
pub(super) enum Deletions {}

/// A patient after a change, with the event of the change.
struct Changed {
    patient: Patient,
    event: NewEvent,
}

impl Changed {
    fn new(patient: Patient, kind: EventKind, trace: TraceContext) -> Self {
        Self { event: NewEvent::of(&patient, kind, trace), patient }
    }

    /// The version that was read.
    fn known_version(&self) -> i64 {
        self.patient.version - 1
    }
}

impl BatchStatement for Updates {
    type Request = Update;
    type Response = Option<Patient>;
    const NAME: &'static str = "update patient";
    const MAX_REQUESTS: usize = 128;

    fn subject(update: &Update) -> Option<u128> {
        Some(update.id.as_u128())
    }

    async fn execute(database: &Database, updates: &[Update]) -> Result<Vec<Option<Patient>>, Error> {
        let mut known = read(database, updates.iter().map(|update| update.id).collect()).await?;
        let mut changed: Vec<Changed> = Vec::with_capacity(known.len());
        let mut emails = HashMap::<Uuid, &str>::new();
        let mut was_written = vec![false; updates.len()];
        for (Update { id, condition, details, trace }, was_written) in updates.iter().zip(&mut was_written) {
            let Some(known) = known.get_mut(id).filter(|known| condition.allows(known.version)) else { continue };
            // Updates of one patient build on each other, and only the last email is checked by the unique index.
            if *emails.entry(*id).or_insert(&details.email) != details.email {
                continue;
            }
            let Details { name, email, address, date_of_birth, registered_date } = details.clone();
            let registered_date = registered_date.unwrap_or(known.registered_date);
            let version = known.version + 1;
            let patient = Patient { id: *id, name, email, address, date_of_birth, registered_date, version };
            known.clone_from(&patient);
            *was_written = true;
            changed.push(Changed::new(patient, EventKind::Updated, *trace));
        }
        let done = outbox::store_events(database, || write_updates(database, &changed)).await?;
        // The versions of one patient are in the order of the requests, some of which may have been skipped.
        let mut versions = HashMap::<Uuid, VecDeque<Patient>>::new();
        for Changed { patient, .. } in changed.into_iter().filter(|one| done.contains(&one.patient.id)) {
            versions.entry(patient.id).or_default().push_back(patient);
        }
        Ok(was_written
            .into_iter()
            .zip(updates)
            .map(|(written, update)| if written { versions.get_mut(&update.id)?.pop_front() } else { None })
            .collect())
    }
}

impl BatchStatement for Deletions {
    type Request = Delete;
    type Response = bool;
    const NAME: &'static str = "delete patient";
    const MAX_REQUESTS: usize = 128;

    fn subject(delete: &Delete) -> Option<u128> {
        Some(delete.id.as_u128())
    }

    async fn execute(database: &Database, deletions: &[Delete]) -> Result<Vec<bool>, Error> {
        let mut known = read(database, deletions.iter().map(|delete| delete.id).collect()).await?;
        let mut changed = Vec::with_capacity(known.len());
        let mut was_written = vec![false; deletions.len()];
        for (Delete { id, condition, trace }, was_written) in deletions.iter().zip(&mut was_written) {
            let is_allowed = known.get(id).is_some_and(|known| condition.allows(known.version));
            let Some(known) = known.remove(id).filter(|_| is_allowed) else { continue };
            *was_written = true;
            let patient = Patient { version: known.version + 1, ..known };
            changed.push(Changed::new(patient, EventKind::Deleted, *trace));
        }
        // In the order of their ids, so that statements of several replicas lock the same rows in the same order.
        changed.sort_by_key(|one| one.patient.id);
        let done = outbox::store_events(database, || write_deletions(database, &changed)).await?;
        Ok(was_written
            .into_iter()
            .zip(deletions)
            .map(|(written, delete)| written && done.contains(&delete.id))
            .collect())
    }
}

/// The current patients, by id.
async fn read(database: &Database, ids: Vec<Uuid>) -> Result<HashMap<Uuid, Patient>, Error> {
    let found = Find::execute(database, &ids).await?;
    Ok(found.into_iter().flatten().map(|patient| (patient.id, patient)).collect())
}

/// Updates patients and stores their events, of which one patient may have several. Returns the ids of those whose version
/// was still the one that was read.
async fn write_updates(database: &Database, changed: &[Changed]) -> Result<HashSet<Uuid>, Error> {
    if changed.is_empty() {
        return Ok(HashSet::new());
    }
    // By id: the version that was read, and the last version of the patient.
    let mut patients = BTreeMap::<Uuid, (i64, &Patient)>::new();
    for one in changed {
        let (_, patient) = patients.entry(one.patient.id).or_insert((one.known_version(), &one.patient));
        *patient = &one.patient;
    }
    let write = database.run(async |connection| {
        // Events take their ids under the row's lock, those of one patient in the order of their versions, so that the ids of a
        // patient's events grow with its versions.
        //
        // The lock timeout is the batcher's, as in "insert patient".
        let rows = query(
            "-- update patients
            WITH new AS (
                SELECT new.* FROM unnest(
                    $1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::date[], $8::date[]
                ) AS new (id, known_version, version, name, email, address, date_of_birth, registered_date),
                set_config('lock_timeout', $14, true)
            ), changed AS (
                UPDATE patients
                SET name = new.name, email = new.email, address = new.address, date_of_birth = new.date_of_birth,
                    registered_date = new.registered_date, version = new.version
                FROM new WHERE patients.id = new.id AND patients.version = new.known_version
                RETURNING new.id
            )
            INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
            SELECT event.patient_id, event.key_hash, event.event_id, 'PATIENT_UPDATED', event.value, event.traceparent
            FROM changed JOIN unnest($9::uuid[], $10::integer[], $11::uuid[], $12::bytea[], $13::text[])
                WITH ORDINALITY AS event (patient_id, key_hash, event_id, value, traceparent, number)
                ON event.patient_id = changed.id
            ORDER BY event.number
            RETURNING patient_id",
        )
        .bind(column(patients.values(), |(_, patient)| patient.id))
        .bind(column(patients.values(), |(known_version, _)| *known_version))
        .bind(column(patients.values(), |(_, patient)| patient.version))
        .bind(column(patients.values(), |(_, patient)| &*patient.name))
        .bind(column(patients.values(), |(_, patient)| &*patient.email))
        .bind(column(patients.values(), |(_, patient)| &*patient.address))
        .bind(column(patients.values(), |(_, patient)| patient.date_of_birth))
        .bind(column(patients.values(), |(_, patient)| patient.registered_date))
        .bind(column(changed, |one| one.patient.id))
        .bind(column(changed, |one| one.event.key_hash))
        .bind(column(changed, |one| one.event.event_id))
        .bind(column(changed, |one| &*one.event.value))
        .bind(column(changed, |one| &*one.event.traceparent))
        .bind(database.lock_timeout().as_millis().to_string())
        .fetch_all(connection)
        .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    });
    write.await
}

/// Deletes patients and stores their events and the tasks to close their accounts. Returns the ids of those whose version was
/// still the one that was read.
async fn write_deletions(database: &Database, changed: &[Changed]) -> Result<HashSet<Uuid>, Error> {
    if changed.is_empty() {
        return Ok(HashSet::new());
    }
    let write = database.run(async |connection| {
        let rows = query(
            "-- delete patients
            WITH gone AS (
                SELECT gone.* FROM unnest(
                    $1::uuid[], $2::bigint[], $3::integer[], $4::uuid[], $5::bytea[], $6::text[]
                ) AS gone (id, known_version, key_hash, event_id, value, traceparent),
                set_config('lock_timeout', $7, true)
            ), deleted AS (
                DELETE FROM patients USING gone WHERE patients.id = gone.id AND patients.version = gone.known_version
                RETURNING patients.id, patients.name, patients.email,
                          gone.key_hash, gone.event_id, gone.value, gone.traceparent
            ), event AS (
                INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
                SELECT id, key_hash, event_id, 'PATIENT_DELETED', value, traceparent FROM deleted
            ), superseded_events AS (
                DELETE FROM outbox_dead_letters dead USING deleted WHERE dead.patient_id = deleted.id
            ), superseded_task AS (
                DELETE FROM billing_task_dead_letters dead USING deleted WHERE dead.patient_id = deleted.id
            )
            INSERT INTO billing_tasks (patient_id, action, name, email, traceparent, next_attempt_at)
            SELECT id, 'CLOSE', name, email, traceparent, now() FROM deleted
            ON CONFLICT (patient_id) DO UPDATE
            SET action = excluded.action, name = excluded.name, email = excluded.email,
                traceparent = excluded.traceparent, attempts = 0, rejections = 0,
                next_attempt_at = excluded.next_attempt_at
            RETURNING patient_id",
        )
        .bind(column(changed, |one| one.patient.id))
        .bind(column(changed, Changed::known_version))
        .bind(column(changed, |one| one.event.key_hash))
        .bind(column(changed, |one| one.event.event_id))
        .bind(column(changed, |one| &*one.event.value))
        .bind(column(changed, |one| &*one.event.traceparent))
        .bind(database.lock_timeout().as_millis().to_string())
        .fetch_all(connection)
        .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    });
    write.await
}
