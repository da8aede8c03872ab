//! Which work is retried, and when: work whose first attempt certainly had no effect, or that has the same effect if it is executed
//! twice.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use runtime::{Backoff, timeout};
use sqlx::{Connection as _, PgConnection};
use telemetry::metrics::{self, IntCounterVec};

use super::Database;
use crate::{
    Error, Settings,
    error::{Cause, certainly_had_no_effect},
    pool::{Abandoned, PooledConnection, unavailable},
};

/// How often work is retried after its prepared statements turned out to be stale, at most.
const MAX_REPREPARED: u32 = 2;

/// How often work is retried after the violation of an index of `REINDEX CONCURRENTLY`, at most: it may be a violation of the
/// constraint itself.
const MAX_AFTER_REINDEX: u32 = 3;

/// First and longest pause before work is retried after a serialization failure or a deadlock.
const CONFLICT_BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

static RETRIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters(
        "db_retries_total",
        "Database work that was retried: its first attempt certainly had no effect, or executing it twice has the same effect.",
        &["cause"],
    )
});

impl Database {
    /// Runs work on a connection of the pool, again if the attempt may be repeated, until the deadline.
    pub(super) async fn run_with_retries<T, W>(&self, progress: Progress<'_>, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        let now = Instant::now();
        let end = self.end(now);
        if now >= end {
            return Err(unavailable("its deadline had passed before it started"));
        }
        let is_read = matches!(progress, Progress::Read);
        let mut connection = self.pool.acquire(end.min(now + acquire), is_read).await?;
        if let Some(abandoned) = self.pool.too_many_abandoned(is_read) {
            connection = Box::pin(self.admit(connection, abandoned, is_read, end)).await?;
        }
        let mut retries = Retries::new(end);
        loop {
            let begun = Instant::now();
            let limit = deadline.min(end.saturating_duration_since(begun));
            match timeout(limit, attempt(progress, connection.get(), work.clone())).await {
                Ok(Ok(value)) => {
                    connection.release();
                    return Ok(value);
                }
                Ok(Err(error)) => {
                    // Boxed, because it is large and rare.
                    connection = Box::pin(self.recover(connection, error, progress, begun, &mut retries)).await?;
                }
                Err(late) => {
                    connection.abandon();
                    self.inner.pools.clear();
                    return Err(unavailable(late.to_string()));
                }
            }
        }
    }

    /// While many sessions are abandoned: the connection for the work, if the server works for few of them now.
    async fn admit<'a>(
        &self,
        mut connection: PooledConnection<'a>,
        abandoned: &Abandoned,
        is_read: bool,
        end: Instant,
    ) -> Result<PooledConnection<'a>, Error> {
        let limit = self.inner.pools.settings().deadline.min(end.saturating_duration_since(Instant::now()));
        match timeout(limit, abandoned.forget_ended(connection.get())).await {
            Ok(Ok(())) => self.inner.record_answer(),
            // What is wrong with the connection, the work itself finds out.
            Ok(Err(_)) => return Ok(connection),
            Err(late) => return Err(unavailable(late.to_string())),
        }
        self.inner.report_abandoned(&self.pool);
        if self.pool.too_many_abandoned(is_read).is_none() {
            return Ok(connection);
        }
        connection.release();
        let (pool, sessions) = (self.pool.name(), abandoned.count(is_read));
        let why = format!("the server has not finished {sessions} statements that were given up");
        // Reads that do not end keep no change from being sent.
        if !is_read && self.inner.commits.failed_for(pool, "abandoned", &*why) {
            let message = "statements that were given up do not end, as commits while a synchronous standby or the storage does not \
                           answer; no change is sent to the database meanwhile";
            tracing::warn!(pool, sessions, "{message}");
        }
        Err(unavailable(why))
    }

    /// After a failed attempt: the connection for the next one.
    ///
    /// # Errors
    /// `error`, if the work is not retried.
    async fn recover<'a>(
        &self,
        mut connection: PooledConnection<'a>,
        error: sqlx::Error,
        progress: Progress<'_>,
        begun: Instant,
        retries: &mut Retries,
    ) -> Result<PooledConnection<'a>, Error> {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        let cause = Cause::of(&error);
        let retry = retries.allow(cause) && progress.may_be_retried(&error);
        // The query on a healthy connection also flushes the ROLLBACK of a transaction that was dropped.
        let is_healthy = match cause {
            Cause::Statement | Cause::Conflict | Cause::Reindex => {
                matches!(timeout(retries.left().min(deadline), connection.get().ping()).await, Ok(Ok(())))
            }
            Cause::StaleStatement => {
                let clearing = connection.get().clear_cached_statements();
                matches!(timeout(retries.left().min(deadline), clearing).await, Ok(Ok(())))
            }
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => false,
        };
        if is_healthy {
            self.inner.record_answer();
        } else {
            if cause == Cause::Disconnected {
                // A proxy or pooler may have cut it while the server commits. If its session has ended, that is soon found out.
                connection.abandon();
            } else {
                connection.close();
            }
            self.inner.invalidate_connections(cause);
        }
        // An attempt that the deadline cut off would leave its outcome unknown.
        let is_conflict = matches!(cause, Cause::Conflict | Cause::Reindex);
        let needed = if is_conflict { begun.elapsed() * 2 + CONFLICT_BACKOFF.1 } else { Duration::ZERO };
        if !retry || retries.left() <= needed {
            if is_healthy {
                connection.release();
            }
            return Err(error.into());
        }
        RETRIES.with_label_values(&[cause.name()]).inc();
        if is_conflict {
            retries.backoff.pause().await;
        }
        if !is_healthy {
            connection.replace(retries.end.min(Instant::now() + acquire)).await?;
        }
        Ok(connection)
    }
}

/// One attempt at the work.
async fn attempt<T, W>(progress: Progress<'_>, connection: &mut PgConnection, work: W) -> Result<T, sqlx::Error>
where
    W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
{
    let Progress::Transaction(committing) = progress else { return work(connection).await };
    committing.store(false, Ordering::Relaxed);
    let mut transaction = connection.begin().await?;
    let value = work(&mut transaction).await?;
    committing.store(true, Ordering::Relaxed);
    transaction.commit().await?;
    Ok(value)
}

/// The retries of one piece of work.
struct Retries {
    end: Instant,
    backoff: Backoff,
    reprepared: u32,
    after_reindex: u32,
    reconnected: bool,
}

impl Retries {
    fn new(end: Instant) -> Self {
        let backoff = Backoff::new(CONFLICT_BACKOFF.0, CONFLICT_BACKOFF.1);
        Self { end, backoff, reprepared: 0, after_reindex: 0, reconnected: false }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether one more attempt is allowed after this cause.
    fn allow(&mut self, cause: Cause) -> bool {
        match cause {
            Cause::Statement => false,
            Cause::StaleStatement => {
                self.reprepared += 1;
                self.reprepared <= MAX_REPREPARED
            }
            Cause::Conflict => true,
            Cause::Reindex => {
                self.after_reindex += 1;
                self.after_reindex <= MAX_AFTER_REINDEX
            }
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => !std::mem::replace(&mut self.reconnected, true),
        }
    }
}

/// What a failed attempt at the work may have committed.
#[derive(Clone, Copy)]
pub(super) enum Progress<'a> {
    /// The work is one statement.
    Statement,
    /// Executing the work twice has the same effect as once.
    Idempotent,
    /// The work only reads.
    Read,
    /// The work is a transaction; whether its COMMIT was sent.
    Transaction(&'a AtomicBool),
}

impl Progress<'_> {
    /// Whether the work may be executed again after this error.
    fn may_be_retried(self, error: &sqlx::Error) -> bool {
        match self {
            Self::Statement => certainly_had_no_effect(error, false),
            Self::Idempotent | Self::Read => true,
            Self::Transaction(committing) => {
                let committing = committing.load(Ordering::Relaxed);
                !committing || certainly_had_no_effect(error, committing)
            }
        }
    }
}
