//! Dead-lettered billing tasks: calls that billing has rejected for good.

use chrono::{DateTime, Utc};
use postgres::{Error, Row as _, query};
use uuid::Uuid;

use super::{Action, BillingTasks, Task};

/// A dead-lettered task, without name and email.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskDeadLetter {
    /// The account's patient, who has at most one task.
    pub patient_id: Uuid,
    /// The call to make.
    pub action: Action,
    /// When it was dead-lettered.
    pub since: DateTime<Utc>,
    /// Billing's error.
    pub error: String,
}

impl BillingTasks {
    /// Dead-letters a task, unless another action has replaced it meanwhile.
    ///
    /// # Errors
    /// If the database fails; then another attempt is made when the claim ends.
    pub async fn dead_letter(&self, task: &Task, error: &str) -> Result<(), Error> {
        let dead_letter = self.database.run_idempotent(async |connection| {
            query(
                "-- dead-letter billing task
                WITH rejected AS (
                    DELETE FROM billing_tasks WHERE patient_id = $1 AND action = $2
                    RETURNING patient_id, action, name, email, traceparent, attempts
                )
                INSERT INTO billing_task_dead_letters (patient_id, action, name, email, traceparent, attempts, error)
                SELECT *, $3 FROM rejected
                ON CONFLICT (patient_id) DO UPDATE
                SET action = excluded.action, name = excluded.name, email = excluded.email,
                    traceparent = excluded.traceparent, attempts = excluded.attempts, error = excluded.error,
                    dead_lettered_at = excluded.dead_lettered_at",
            )
            .bind(task.patient_id)
            .bind(task.action.name())
            .bind(error)
            .execute(connection)
            .await
        });
        dead_letter.await.map(drop)
    }

    /// The dead letters after one of them, by its patient, or from the first on, in the order of the patients' ids; at most
    /// `limit`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn dead_letters(&self, after: Option<Uuid>, limit: i64) -> Result<Vec<TaskDeadLetter>, Error> {
        let list = self.database.read(async |connection| {
            let rows = query(
                "-- list dead letters of billing tasks
                SELECT patient_id, action, dead_lettered_at, error FROM billing_task_dead_letters
                WHERE $1::uuid IS NULL OR patient_id > $1 ORDER BY patient_id LIMIT $2",
            )
            .bind(after)
            .bind(limit)
            .fetch_all(connection)
            .await?;
            let read = |row: &postgres::PgRow| {
                Ok(TaskDeadLetter {
                    patient_id: row.try_get("patient_id")?,
                    action: Action::parse(row.try_get("action")?),
                    since: row.try_get("dead_lettered_at")?,
                    error: row.try_get("error")?,
                })
            };
            rows.iter().map(read).collect()
        });
        list.await
    }

    /// Resubmits dead-lettered tasks, without their count of rejections; returns the patients. Those that no longer exist are
    /// ignored.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn resend(&self, patient_ids: &[Uuid]) -> Result<Vec<Uuid>, Error> {
        let resend = self.database.run(async |connection| {
            // An existing task of the patient is newer.
            let rows = query(
                "-- resend dead letters of billing tasks
                WITH chosen AS (
                    DELETE FROM billing_task_dead_letters WHERE patient_id = ANY($1)
                    RETURNING patient_id, action, name, email, traceparent
                ), task AS (
                    INSERT INTO billing_tasks (patient_id, action, name, email, traceparent, next_attempt_at)
                    SELECT *, now() FROM chosen ON CONFLICT (patient_id) DO NOTHING
                )
                SELECT patient_id FROM chosen",
            )
            .bind(patient_ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| row.try_get("patient_id")).collect()
        });
        resend.await
    }

    /// Which of these patients have a task that waits for an attempt.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn still_pending(&self, patient_ids: &[Uuid]) -> Result<Vec<Uuid>, Error> {
        let pending = self.database.read(async |connection| {
            let rows = query(
                "-- billing tasks still pending\nSELECT patient_id FROM billing_tasks WHERE patient_id = ANY($1)",
            )
            .bind(patient_ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| row.try_get("patient_id")).collect()
        });
        pending.await
    }
}
