//! Queries of the billing tasks: calls to billing that have to be made, and when the next attempt is due.

use std::time::Duration;

use postgres::{Database, Error, PgConnection, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::patient::Patient;

mod dead_letters;

pub use dead_letters::TaskDeadLetter;

/// Time after the deadline of a request's own call before the reconciler makes it again.
pub(crate) const RECONCILE_AFTER: Duration = Duration::from_secs(4);

/// The call to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open the patient's account.
    Open,
    /// Close the patient's account.
    Close,
}

impl Action {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Close => "CLOSE",
        }
    }

    fn parse(name: &str) -> Self {
        // The column allows no other name.
        if name == "OPEN" { Self::Open } else { Self::Close }
    }
}

/// Stores the task to close a patient's account in the caller's transaction. It replaces a task to open it, also a
/// dead-lettered one.
///
/// # Errors
/// If the database fails.
pub async fn enqueue_close(
    transaction: &mut PgConnection,
    patient: &Patient,
    trace: TraceContext,
) -> Result<(), sqlx::Error> {
    query(
        "-- enqueue close
        WITH superseded AS (DELETE FROM billing_task_dead_letters WHERE patient_id = $1)
        INSERT INTO billing_tasks (patient_id, action, name, email, traceparent, next_attempt_at)
        VALUES ($1, 'CLOSE', $2, $3, $4, now())
        ON CONFLICT (patient_id) DO UPDATE
        SET action = excluded.action, name = excluded.name, email = excluded.email, traceparent = excluded.traceparent,
            attempts = 0, rejections = 0, next_attempt_at = excluded.next_attempt_at",
    )
    .bind(patient.id)
    .bind(&patient.name)
    .bind(&patient.email)
    .bind(trace.to_string())
    .execute(transaction)
    .await?;
    Ok(())
}

/// A claimed task.
#[derive(Clone, Debug)]
pub struct Task {
    /// The account's patient.
    pub patient_id: Uuid,
    /// The call to make.
    pub action: Action,
    /// The patient's name.
    pub name: String,
    /// The patient's email.
    pub email: String,
    /// `traceparent` of the request that stored it.
    pub traceparent: Option<String>,
    /// Failed attempts.
    pub attempts: u32,
    /// Attempts that billing rejected.
    pub rejections: u32,
}

/// Numbers of tasks, counted up to [`Counts::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pending tasks.
    pub pending: i64,
    /// Dead-lettered tasks.
    pub dead_letters: i64,
}

impl Counts {
    /// Most that are counted, because counting costs time for each.
    pub const MAX: i64 = 100_000;
}

/// The tasks in a database.
#[derive(Clone, Debug)]
pub struct BillingTasks {
    database: Database,
}

impl BillingTasks {
    /// The tasks in this database.
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Claims due tasks, at most `limit`. For the time `lease` no other replica gets them; no row is locked meanwhile.
    ///
    /// A task that is due later than `longest_wait` from now is claimed too. No task is postponed for longer, so the database's
    /// clock was set back after the task was stored.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn claim(&self, limit: i64, lease: Duration, longest_wait: Duration) -> Result<Vec<Task>, Error> {
        let claim = self.database.run(async |connection| {
            let rows = query(
                "-- claim billing tasks
                WITH due AS (
                    SELECT patient_id, next_attempt_at FROM billing_tasks WHERE next_attempt_at <= now()
                    ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
                ), postponed_too_long AS (
                    SELECT patient_id, next_attempt_at FROM billing_tasks
                    WHERE next_attempt_at > now() + make_interval(secs => $3)
                    ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
                ), claimed AS (
                    UPDATE billing_tasks t SET next_attempt_at = now() + make_interval(secs => $2), attempts = attempts + 1
                    FROM (SELECT * FROM due UNION ALL SELECT * FROM postponed_too_long ORDER BY next_attempt_at LIMIT $1) next
                    WHERE t.patient_id = next.patient_id
                    RETURNING t.patient_id, t.action, t.name, t.email, t.traceparent, t.attempts - 1 AS attempts, t.rejections
                )
                SELECT patient_id, action, coalesce(c.name, p.name, '') AS name, coalesce(c.email, p.email, '') AS email,
                       traceparent, attempts, rejections
                FROM claimed c LEFT JOIN patients p ON p.id = c.patient_id",
            )
            .bind(limit)
            .bind(lease.as_secs_f64())
            .bind(longest_wait.as_secs_f64())
            .fetch_all(connection)
            .await?;
            let read = |row: &postgres::PgRow| {
                Ok(Task {
                    patient_id: row.try_get("patient_id")?,
                    action: Action::parse(row.try_get("action")?),
                    name: row.try_get("name")?,
                    email: row.try_get("email")?,
                    traceparent: row.try_get("traceparent")?,
                    attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
                    rejections: row.try_get::<i32, _>("rejections")?.unsigned_abs(),
                })
            };
            rows.iter().map(read).collect()
        });
        claim.await
    }

    /// Deletes completed tasks, unless another action has replaced them meanwhile.
    ///
    /// # Errors
    /// If the database fails; then the calls are made again, which changes nothing at billing.
    pub async fn complete(&self, action: Action, patient_ids: &[Uuid]) -> Result<(), Error> {
        let complete = self.database.run_idempotent(async |connection| {
            query("-- delete completed billing tasks\nDELETE FROM billing_tasks WHERE patient_id = ANY($1) AND action = $2")
                .bind(patient_ids)
                .bind(action.name())
                .execute(connection)
                .await
        });
        complete.await.map(drop)
    }

    /// Schedules the next attempt of a failed task, and counts a rejection, unless another action has replaced the task
    /// meanwhile.
    ///
    /// # Errors
    /// If the database fails; then the next attempt is made when the claim ends.
    pub async fn postpone(&self, task: &Task, pause: Duration, rejected: bool) -> Result<(), Error> {
        let postpone = self.database.run(async |connection| {
            query(
                "-- postpone billing task
                UPDATE billing_tasks
                SET next_attempt_at = now() + make_interval(secs => $3), rejections = rejections + $4
                WHERE patient_id = $1 AND action = $2",
            )
            .bind(task.patient_id)
            .bind(task.action.name())
            .bind(pause.as_secs_f64())
            .bind(i32::from(rejected))
            .execute(connection)
            .await
        });
        postpone.await.map(drop)
    }

    /// Counts the tasks.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn count(&self) -> Result<Counts, Error> {
        let count = self.database.read(async |connection| {
            let row = query(
                "-- count billing tasks
                SELECT (SELECT count(*) FROM (SELECT 1 FROM billing_tasks LIMIT $1) tasks),
                       (SELECT count(*) FROM (SELECT 1 FROM billing_task_dead_letters LIMIT $1) dead_letters)",
            )
            .bind(Counts::MAX)
            .fetch_one(connection)
            .await?;
            Ok(Counts { pending: row.try_get(0)?, dead_letters: row.try_get(1)? })
        });
        count.await
    }
}
