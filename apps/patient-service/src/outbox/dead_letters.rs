//! Dead-lettered events: events that the broker has rejected for good.

use chrono::{DateTime, Utc};
use postgres::{Error, PgConnection, PgRow, Row as _, query};
use uuid::Uuid;

use super::{Outbox, RowKey};

/// A dead-lettered event, without its value, which is personal data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDeadLetter {
    /// The key that the event had in the outbox.
    pub key: RowKey,
    /// The patient.
    pub patient_id: Uuid,
    /// Type of the event, by its name on the wire.
    pub event_type: String,
    /// Length of the record's value.
    pub bytes: i64,
    /// When it was dead-lettered.
    pub since: DateTime<Utc>,
    /// The broker's error.
    pub error: String,
}

impl Outbox {
    /// Dead-letters an event, so that it does not block the others. Of a patient that was deleted meanwhile only the deletion is
    /// kept: sent later, any other event would be the last one of its key on a compacted topic, and bring the patient back.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn dead_letter(&self, row: RowKey, error: &str) -> Result<(), Error> {
        let dead_letter = self.database.run_idempotent(async |connection| {
            query(
                "-- dead-letter event
                WITH patient AS MATERIALIZED (
                    SELECT patients.id FROM patients JOIN outbox ON outbox.patient_id = patients.id
                    WHERE outbox.id = $1 AND outbox.event_id = $2 FOR KEY SHARE OF patients
                ), rejected AS (
                    DELETE FROM outbox WHERE id = $1 AND event_id = $2 AND (SELECT count(*) FROM patient) >= 0
                    RETURNING id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at
                )
                INSERT INTO outbox_dead_letters
                    (id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at, error)
                SELECT *, $3 FROM rejected
                WHERE event_type = 'PATIENT_DELETED' OR patient_id IN (SELECT id FROM patient)
                ON CONFLICT (id, event_id) DO UPDATE SET error = excluded.error, refused_at = excluded.refused_at",
            )
            .bind(row.id)
            .bind(row.event_id)
            .bind(error)
            .execute(connection)
            .await
        });
        dead_letter.await.map(drop)
    }

    /// The dead letters after one of them, or from the first on, in the order of their keys; at most `limit`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn dead_letters(&self, after: Option<RowKey>, limit: i64) -> Result<Vec<EventDeadLetter>, Error> {
        let list = self.database.read(async |connection| {
            let rows = query(
                "-- list dead letters of the outbox
                SELECT id, event_id, patient_id, event_type, length(value)::bigint AS bytes, refused_at, error
                FROM outbox_dead_letters WHERE $1::bigint IS NULL OR (id, event_id) > ($1, $2::uuid)
                ORDER BY id, event_id LIMIT $3",
            )
            .bind(after.map(|key| key.id))
            .bind(after.map(|key| key.event_id))
            .bind(limit)
            .fetch_all(connection)
            .await?;
            let read = |row: &PgRow| {
                Ok(EventDeadLetter {
                    key: row_key(row)?,
                    patient_id: row.try_get("patient_id")?,
                    event_type: row.try_get("event_type")?,
                    bytes: row.try_get("bytes")?,
                    since: row.try_get("refused_at")?,
                    error: row.try_get("error")?,
                })
            };
            rows.iter().map(read).collect()
        });
        list.await
    }

    /// Moves dead letters back into the outbox, where they get new ids; returns the new keys. Those that no longer exist are
    /// ignored.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn resend(&self, dead_letters: &[RowKey]) -> Result<Vec<RowKey>, Error> {
        let (ids, event_ids): (Vec<i64>, Vec<Uuid>) = dead_letters.iter().map(|key| (key.id, key.event_id)).unzip();
        super::store_events(&self.database, || self.enqueue_again(&ids, &event_ids)).await
    }

    async fn enqueue_again(&self, ids: &[i64], event_ids: &[Uuid]) -> Result<Vec<RowKey>, Error> {
        let resend = self.database.run(async |connection| {
            // The patients are locked first, as a deletion does: one that is under way ends before, and one that begins then gives its
            // event a greater id.
            let rows = query(
                "-- resend dead letters of the outbox
                WITH key AS (
                    SELECT * FROM unnest($1::bigint[], $2::uuid[]) AS key (id, event_id)
                ), patient AS MATERIALIZED (
                    SELECT id FROM patients
                    WHERE id IN (SELECT patient_id FROM outbox_dead_letters JOIN key USING (id, event_id))
                    ORDER BY id FOR KEY SHARE
                ), chosen AS (
                    DELETE FROM outbox_dead_letters
                    WHERE (id, event_id) IN (SELECT * FROM key) AND (SELECT count(*) FROM patient) >= 0
                    RETURNING id, patient_id, key_hash, event_id, event_type, value, traceparent
                )
                INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
                SELECT patient_id, key_hash, event_id, event_type, value, traceparent FROM chosen ORDER BY id
                RETURNING id, event_id",
            )
            .bind(ids)
            .bind(event_ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(row_key).collect()
        });
        resend.await
    }

    /// Which of these events are still in the outbox.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn still_pending(&self, keys: &[RowKey]) -> Result<Vec<RowKey>, Error> {
        let (ids, event_ids): (Vec<i64>, Vec<Uuid>) = keys.iter().map(|key| (key.id, key.event_id)).unzip();
        let pending = self.database.read(async |connection| {
            let rows = query(
                "-- events still pending
                SELECT id, event_id FROM outbox WHERE id = ANY($1) AND event_id = ANY($2)",
            )
            .bind(&ids)
            .bind(&event_ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(row_key).collect()
        });
        pending.await
    }
}

/// Deletes the dead-lettered events of a patient in the transaction that deletes the patient. They have no index by patient: there
/// are few, because each is an event that the broker has rejected by itself.
///
/// # Errors
/// If the database fails.
pub async fn delete_dead_letters(transaction: &mut PgConnection, patient_id: Uuid) -> Result<(), sqlx::Error> {
    let delete = query("-- delete dead letters of a patient\nDELETE FROM outbox_dead_letters WHERE patient_id = $1");
    delete.bind(patient_id).execute(transaction).await.map(drop)
}

fn row_key(row: &PgRow) -> Result<RowKey, sqlx::Error> {
    Ok(RowKey { id: row.try_get("id")?, event_id: row.try_get("event_id")? })
}
