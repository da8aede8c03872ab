//! Every query of the tasks for billing: what the billing service has to be told, and when it is tried next.

use std::time::Duration;

use postgres::{Database, Error, PgConnection, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::patient::Patient;

mod dead_letters;

pub use dead_letters::TaskDeadLetter;

/// The time after the end of a request's own call to billing before the reconciler makes it again.
pub(crate) const RECONCILE_AFTER: Duration = Duration::from_secs(4);

/// What billing has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// That the patient needs an account.
    Open,
    /// That the patient's account is to be closed.
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

/// Leaves the task to close a patient's account in the caller's transaction. It replaces one to open it, also one that
/// billing has rejected for good.
///
/// # Errors
/// If the database cannot do it.
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

/// A task that this instance tries now.
#[derive(Clone, Debug)]
pub struct Task {
    /// Whose account it is about.
    pub patient_id: Uuid,
    /// What to do.
    pub action: Action,
    /// The patient's name.
    pub name: String,
    /// The patient's email.
    pub email: String,
    /// The trace of the request that it came with.
    pub traceparent: Option<String>,
    /// Earlier attempts that failed.
    pub attempts: u32,
    /// Those of them in which billing rejected the task itself.
    pub rejections: u32,
}

/// How many tasks there are, each counted up to [`Counts::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that wait for an attempt.
    pub pending: i64,
    /// Tasks that billing has rejected for good.
    pub dead_letters: i64,
}

impl Counts {
    /// Where the counting stops, because it costs the more the more there are.
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

    /// Takes tasks that are due, at most `limit`. For the time `lease` no other instance gets them, and nothing is
    /// locked meanwhile.
    ///
    /// A task that seems due later than `longest_wait` from now is due: nobody postpones one for longer, so that the
    /// database's clock was set back since.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn claim(&self, limit: i64, lease: Duration, longest_wait: Duration) -> Result<Vec<Task>, Error> {
        let claim = self.database.run(async |connection| {
            let rows = query(
                "-- claim billing tasks
                WITH due AS (
                    SELECT patient_id, next_attempt_at FROM billing_tasks WHERE next_attempt_at <= now()
                    ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
                ), stranded AS (
                    SELECT patient_id, next_attempt_at FROM billing_tasks
                    WHERE next_attempt_at > now() + make_interval(secs => $3)
                    ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
                ), claimed AS (
                    UPDATE billing_tasks t SET next_attempt_at = now() + make_interval(secs => $2), attempts = attempts + 1
                    FROM (SELECT * FROM due UNION ALL SELECT * FROM stranded ORDER BY next_attempt_at LIMIT $1) next
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

    /// Forgets tasks that are done, unless they have been replaced by another action meanwhile.
    ///
    /// # Errors
    /// If the database cannot do it: then they are done again, which changes nothing.
    pub async fn done(&self, action: Action, patient_ids: &[Uuid]) -> Result<(), Error> {
        let done = self.database.run_idempotent(async |connection| {
            query("-- billing tasks done\nDELETE FROM billing_tasks WHERE patient_id = ANY($1) AND action = $2")
                .bind(patient_ids)
                .bind(action.name())
                .execute(connection)
                .await
        });
        done.await.map(drop)
    }

    /// Says when a task that failed is tried again, and whether billing rejected it, unless it has been replaced by another
    /// action meanwhile.
    ///
    /// # Errors
    /// If the database cannot do it: then it is tried again when its claim ends.
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

    /// How many tasks there are.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn count(&self) -> Result<Counts, Error> {
        let count = self.database.run_idempotent(async |connection| {
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
