//! New patients. Registrations that come together are one statement and one commit.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use chrono::{DateTime, Utc};
use postgres::{BatchStatement, Database, Error, Row as _, query};
use uuid::Uuid;

use super::{IdempotencyKey, column};
use crate::{
    outbox::{self, NewEvent, OutboxRow},
    patient::Patient,
};

/// A patient to be stored, with its event, its task for billing and, if there is one, its key.
#[derive(Debug)]
pub(super) struct NewPatient {
    pub(super) patient: Patient,
    pub(super) event: NewEvent,
    pub(super) key: Option<IdempotencyKey>,
    /// The task is due after this time.
    pub(super) billing_after: Duration,
}

/// The statement that inserts many of them. The response is the event as the outbox has it.
pub(super) enum Insert {}

impl BatchStatement for Insert {
    type Request = NewPatient;
    type Response = OutboxRow;
    const NAME: &'static str = "insert patient";
    const MAX_REQUESTS: usize = 128;

    /// The email, of which equal ones wait for each other in the unique index. A collision costs a wait.
    fn subject(new: &NewPatient) -> Option<u128> {
        let mut hasher = DefaultHasher::new();
        new.patient.email.to_lowercase().hash(&mut hasher);
        Some(hasher.finish().into())
    }

    async fn execute(database: &Database, new: &[NewPatient]) -> Result<Vec<OutboxRow>, Error> {
        let stored = outbox::store_events(database, || insert(database, new)).await?;
        let row = |new: &NewPatient| {
            let (id, created_at) = *stored.get(&new.event.event_id).ok_or(Error::Query(sqlx::Error::RowNotFound))?;
            Ok(OutboxRow::of(new.event.clone(), id, created_at))
        };
        new.iter().map(row).collect()
    }
}

/// Stores them; returns the id and the time of each event, by its own id.
async fn insert(database: &Database, new: &[NewPatient]) -> Result<HashMap<Uuid, (i64, DateTime<Utc>)>, Error> {
    let insert = database.run(async |connection| {
        // A patient with a key is taken from the key's row, so that of many requests with one key all but the first
        // fail on the key, whatever else they have in common.
        //
        // The lock timeout is the batcher's: an open transaction may hold one of the emails. It is short at first, also for
        // a single registration; one that is still locked then waits apart, with a longer one.
        let rows = query(
            "-- insert patients
            WITH new AS (
                SELECT new.* FROM unnest(
                    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::date[], $6::date[],
                    $7::integer[], $8::uuid[], $9::bytea[], $10::text[], $11::float8[], $12::text[], $13::bytea[]
                ) AS new (
                    id, name, email, address, date_of_birth, registered_date,
                    key_hash, event_id, value, traceparent, billing_after, key, fingerprint
                ), set_config('lock_timeout', $14, true)
            ), key AS (
                INSERT INTO idempotency_keys (key, fingerprint, patient_id)
                SELECT key, fingerprint, id FROM new WHERE key IS NOT NULL RETURNING patient_id
            ), patient AS (
                INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
                SELECT id, name, email, address, date_of_birth, registered_date
                FROM new LEFT JOIN key ON key.patient_id = new.id WHERE new.key IS NULL OR key.patient_id IS NOT NULL
            ), event AS (
                INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
                SELECT id, key_hash, event_id, 'PATIENT_CREATED', value, traceparent FROM new
                RETURNING event_id, id, created_at
            ), task AS (
                INSERT INTO billing_tasks (patient_id, action, traceparent, next_attempt_at)
                SELECT id, 'OPEN', traceparent, now() + make_interval(secs => billing_after) FROM new
            )
            SELECT event_id, id, created_at FROM event",
        )
        .bind(column(new, |new| new.patient.id))
        .bind(column(new, |new| &*new.patient.name))
        .bind(column(new, |new| &*new.patient.email))
        .bind(column(new, |new| &*new.patient.address))
        .bind(column(new, |new| new.patient.date_of_birth))
        .bind(column(new, |new| new.patient.registered_date))
        .bind(column(new, |new| new.event.key_hash))
        .bind(column(new, |new| new.event.event_id))
        .bind(column(new, |new| &*new.event.value))
        .bind(column(new, |new| &*new.event.traceparent))
        .bind(column(new, |new| new.billing_after.as_secs_f64()))
        .bind(column(new, |new| new.key.as_ref().map(|key| &*key.key)))
        .bind(column(new, |new| new.key.as_ref().map(|key| &*key.fingerprint)))
        .bind(database.lock_timeout().as_millis().to_string())
        .fetch_all(connection)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)))).collect()
    });
    insert.await
}
