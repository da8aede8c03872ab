use std::{
    future::Future,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use runtime::{Backoff, Shutdown, timeout};
use sqlx::{
    Connection as _, PgConnection,
    migrate::{MigrateError, Migrator},
};
use telemetry::{
    Outage, Span, SpanKind,
    metrics::{self, IntCounterVec},
};

use crate::{
    Error, Settings,
    error::{Cause, MigrationFailure, certainly_had_no_effect},
    pool::{Pool, PooledConnection, Pools, ServerTimeouts, unavailable},
    requirements,
    statement::DEFAULT_SPAN_NAME,
};

/// Time for all migrations together: indexing a large table takes long.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// A ping succeeds without a query for this long after the last answer of the server.
const PING_VALIDITY: Duration = Duration::from_secs(1);

/// How often work is retried after its prepared statements turned out to be stale, at most.
const MAX_REPREPARED: u32 = 2;

/// First and longest pause before work is retried after a serialization failure or a deadlock.
const CONFLICT_BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Lock and statement timeouts are logged this often at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

static RETRIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters(
        "db_repeats_total",
        "Database work that was retried because the first attempt certainly had no effect.",
        &["cause"],
    )
});

static TIMEOUTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters(
        "db_timeouts_total",
        "Statements that a healthy server cancelled: lock_timeout or statement_timeout.",
        &["kind"],
    )
});

/// The pool of a new [`Database`].
const DEFAULT_POOL: &str = "requests";

/// A database, usable once its schema is migrated. Clones share one connection pool; [`reserve`](Self::reserve) makes
/// another one.
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
    pool: Arc<Pool>,
    /// Deadline of all work through this clone; without it each piece of work has its own.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    pools: Arc<Pools>,
    migrated: AtomicBool,
    outage: Outage,
    created: Instant,
    /// When the server last answered, in microseconds since `created`; 0 if it never has.
    answered: AtomicU64,
    /// Error of the last attempt to migrate the schema.
    migration_error: Mutex<Option<String>>,
    permanent_error: OnceLock<MigrationError>,
    /// When a lock or statement timeout was last logged.
    reported: Mutex<Option<Instant>>,
}

impl Database {
    /// Connects on first use.
    pub fn new(settings: Settings) -> Self {
        let connections = settings.connections;
        let pools = Pools::new(settings);
        let pool = pools.pool(DEFAULT_POOL, connections);
        let inner = Inner {
            pools,
            migrated: AtomicBool::new(false),
            outage: Outage::new(),
            created: Instant::now(),
            answered: AtomicU64::new(0),
            migration_error: Mutex::default(),
            permanent_error: OnceLock::new(),
            reported: Mutex::default(),
        };
        Self { inner: Arc::new(inner), pool, until: None }
    }

    /// The same database with a pool of its own of at most `connections`, in addition to the existing pools. Slow work
    /// in one pool then takes no connection from work in another: searches cannot keep a lease from being renewed.
    ///
    /// `name` is the label `pool` of the metric `db_pool_connections`.
    #[must_use]
    pub fn reserve(&self, name: &'static str, connections: usize) -> Self {
        Self { pool: self.inner.pools.pool(name, connections), ..self.clone() }
    }

    /// Migrates the schema, and retries until the database is available. Several replicas may do so at once. Until it
    /// is done, [`run`](Self::run) returns [`Error::Unavailable`].
    ///
    /// # Errors
    /// If the schema cannot be migrated, or its migration history belongs to another program; not if the shutdown comes
    /// first.
    pub async fn migrate(&self, migrator: &Migrator, shutdown: &Shutdown) -> Result<(), MigrationError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            match timeout(MIGRATION_TIMEOUT, Box::pin(self.try_migrate(migrator)))
                .await
                .unwrap_or_else(|late| Err(MigrationFailure::Transient(unavailable(format!("migrating: {late}")))))
            {
                Ok(()) => {
                    self.inner.report(Instant::now(), None);
                    self.inner.migrated.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(MigrationFailure::Permanent(error)) => {
                    let error = MigrationError(error);
                    let _ = self.inner.permanent_error.set(error.clone());
                    return Err(error);
                }
                Err(MigrationFailure::Transient(error)) => {
                    let error = error.to_string();
                    // The server comes up, and then the password is wrong: each reason is logged once.
                    if self.inner.outage.failed(&error) {
                        tracing::warn!(error, "the database is unavailable");
                    }
                    *self.inner.migration_error() = Some(error);
                }
            }
            if shutdown.run_until_stopped(backoff.pause()).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn try_migrate(&self, migrator: &Migrator) -> Result<(), MigrationFailure> {
        let pools = &self.inner.pools;
        let until = Instant::now() + pools.settings().acquire;
        let failed = |error: Error| match error {
            error @ Error::Query(_) => MigrationFailure::Permanent(error.to_string()),
            error => MigrationFailure::Transient(error),
        };
        // A connection of its own without timeouts: a statement of a migration may take longer than any other.
        let mut connection = pools.connect(until, ServerTimeouts::Migration).await.map_err(failed)?;
        requirements::check(&mut connection, pools, until).await?;
        match migrator.run_direct(None, &mut connection, false).await {
            Ok(()) => {
                let _ = connection.close().await;
                Ok(())
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                Err(requirements::classify(&mut connection, error).await)
            }
            Err(error) => Err(MigrationFailure::Permanent(requirements::history_error(&error))),
        }
    }

    /// Allows work without a migration: for an operator's command or a test beside the service that migrates.
    pub fn assume_migrated(&self) {
        self.inner.migrated.store(true, Ordering::Release);
    }

    /// Runs work on a connection of the pool within one deadline, which covers acquiring the connection, the work and
    /// its retries. The work is one statement, or several that only read; use [`transaction`](Self::transaction) for
    /// several that write.
    ///
    /// It is retried only if the first attempt certainly had no effect: stale prepared statements are prepared again,
    /// serialization failures and deadlocks are retried, and a connection that was closed, or leads to a read-only
    /// server, is replaced.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also if no connection is free in time or the work takes too long.
    pub async fn run<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        self.observe(Box::pin(self.run_with_retries(Progress::Statement, work))).await
    }

    /// As [`run`](Self::run), for work that has the same effect if it is executed twice. It is also retried if the
    /// connection was lost and the outcome is unknown.
    ///
    /// # Errors
    /// As those of [`run`](Self::run).
    pub async fn run_idempotent<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        self.observe(Box::pin(self.run_with_retries(Progress::Idempotent, work))).await
    }

    /// As [`run`](Self::run), in a transaction that is committed if the work succeeds. It is also retried if the
    /// connection was lost before COMMIT was sent, because nothing can have been committed then.
    ///
    /// # Errors
    /// As those of [`run`](Self::run).
    pub async fn transaction<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        let committing = AtomicBool::new(false);
        self.observe(Box::pin(self.run_with_retries(Progress::Transaction(&committing), work))).await
    }

    /// The same database, whose work from now on shares one deadline: that of a single piece of work that starts now.
    #[must_use]
    pub fn with_shared_deadline(&self) -> Self {
        self.with_deadline(self.end(Instant::now()))
    }

    /// The same database, whose work ends at `end` at the latest.
    #[must_use]
    pub fn with_deadline(&self, end: Instant) -> Self {
        Self { until: Some(self.until.map_or(end, |until| until.min(end))), ..self.clone() }
    }

    /// Deadline of work that starts at `now`.
    fn end(&self, now: Instant) -> Instant {
        let end = now + self.work_timeout();
        self.until.map_or(end, |until| until.min(end))
    }

    /// Runs work in a span and reports the start and end of an outage. Callers box the work, because each async layer
    /// would hold the future twice.
    async fn observe<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // An outage before the migration is reported by `migrate`.
        if !self.inner.migrated.load(Ordering::Acquire) {
            let why = self.inner.migration_error().as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return Err(unavailable(format!("its schema is not migrated yet{why}")));
        }
        let started = Instant::now();
        let mut span = Span::child(SpanKind::Client, DEFAULT_SPAN_NAME);
        span.set("db.system.name", "postgresql");
        let result = span.scope(work).await;
        if matches!(result, Err(Error::Unavailable(_))) {
            // Work that timed out while the server answered other work shows no outage: it was slow or waited for a
            // connection.
            if !self.inner.has_answered_since(started) {
                self.inner.report(started, result.as_ref().err());
            }
        } else {
            self.inner.note_answer();
            self.inner.report(started, None);
        }
        match &result {
            Ok(_) => span.end(),
            Err(error) => {
                self.inner.report_timeout(error, span.name());
                span.fail(error.outcome());
            }
        }
        result
    }

    async fn run_with_retries<T, W>(&self, progress: Progress<'_>, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        let now = Instant::now();
        let end = self.end(now);
        if now >= end {
            return Err(unavailable("its deadline had passed before it started"));
        }
        let mut connection = self.pool.acquire(end.min(now + acquire)).await?;
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
                    connection.close();
                    self.inner.pools.clear();
                    return Err(unavailable(late.to_string()));
                }
            }
        }
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
        let retry = retries.allow(cause) && (cause.is_rolled_back() || progress.may_be_retried(&error));
        // The query on a healthy connection also flushes the ROLLBACK of a transaction that was dropped.
        let is_healthy = match cause {
            Cause::Statement | Cause::Conflict => {
                matches!(timeout(retries.left().min(deadline), connection.get().ping()).await, Ok(Ok(())))
            }
            Cause::StaleStatement => {
                let clearing = connection.get().clear_cached_statements();
                matches!(timeout(retries.left().min(deadline), clearing).await, Ok(Ok(())))
            }
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => false,
        };
        if is_healthy {
            self.inner.note_answer();
        } else {
            connection.close();
            self.inner.invalidate_connections(cause);
        }
        // An attempt that the deadline cut off would leave its outcome unknown.
        let needed = if cause == Cause::Conflict { begun.elapsed() * 2 + CONFLICT_BACKOFF.1 } else { Duration::ZERO };
        if !retry || retries.left() <= needed {
            if is_healthy {
                connection.release();
            }
            return Err(error.into());
        }
        RETRIES.with_label_values(&[cause.name()]).inc();
        if cause == Cause::Conflict {
            retries.backoff.pause().await;
        }
        if !is_healthy {
            connection.replace(retries.end.min(Instant::now() + acquire)).await?;
        }
        Ok(connection)
    }

    /// Checks that the server answers. An answer to other work within the last second counts: under load a ping would
    /// only wait for a connection.
    ///
    /// # Errors
    /// Why the database is unavailable.
    pub async fn ping(&self) -> Result<(), Error> {
        if !self.inner.outage.is_ongoing() && self.inner.has_just_answered() {
            return Ok(());
        }
        self.run_idempotent(async |connection: &mut PgConnection| connection.ping().await).await
    }

    /// Why the schema can never be migrated as the database and the settings are, if that is so.
    pub fn permanent_error(&self) -> Option<&MigrationError> {
        self.inner.permanent_error.get()
    }

    /// How long work waits for a free connection: `DATABASE_ACQUIRE_DEADLINE`.
    pub fn acquire_timeout(&self) -> Duration {
        self.inner.pools.settings().acquire
    }

    /// Longest time for a piece of work: acquiring the connection, the work itself and its retries.
    pub fn work_timeout(&self) -> Duration {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        acquire + deadline
    }

    /// Closes the idle connections.
    pub async fn close(&self) {
        self.inner.pools.close().await;
    }
}

impl Inner {
    /// Logs an outage and its end, as work that began at `started` shows them.
    fn report(&self, started: Instant, unavailable: Option<&Error>) {
        match unavailable {
            Some(error) if self.outage.failed_since(started, "unavailable") => {
                tracing::warn!(%error, "the database is unavailable");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outage.recovered_since(started) {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "the database is available again");
                }
            }
        }
    }

    /// Drops other connections that cannot be used either after one has failed for this cause.
    fn invalidate_connections(&self, cause: Cause) {
        match cause {
            Cause::ReadOnly if self.pools.invalidate_after_failover() => {
                tracing::warn!("the server is read-only; its connections are closed and new ones opened");
            }
            Cause::ReadOnly => {}
            Cause::Shutdown => self.pools.invalidate(),
            _ => self.pools.clear(),
        }
    }

    /// Counts and logs a lock or statement timeout.
    fn report_timeout(&self, error: &Error, statement: &str) {
        let kind = match error {
            Error::Locked => "lock",
            Error::Timeout => "statement",
            _ => return,
        };
        TIMEOUTS.with_label_values(&[kind]).inc();
        // Nothing panics while it is held.
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            *reported = Some(Instant::now());
            tracing::warn!(statement, %error, "a healthy server cancelled a statement (counted in db_timeouts_total)");
        }
    }

    /// Microseconds since `created`, as in `answered`.
    fn micros(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.created).as_micros() as u64 + 1
    }

    fn migration_error(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        self.migration_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answer(&self) {
        self.answered.store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    fn has_answered_since(&self, time: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) > self.micros(time)
    }

    fn has_just_answered(&self) -> bool {
        Instant::now().checked_sub(PING_VALIDITY).is_some_and(|time| self.has_answered_since(time))
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
    reconnected: bool,
}

impl Retries {
    fn new(end: Instant) -> Self {
        let backoff = Backoff::new(CONFLICT_BACKOFF.0, CONFLICT_BACKOFF.1);
        Self { end, backoff, reprepared: 0, reconnected: false }
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
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => !std::mem::replace(&mut self.reconnected, true),
        }
    }
}

/// What a failed attempt at the work may have committed.
#[derive(Clone, Copy)]
enum Progress<'a> {
    /// The work is one statement.
    Statement,
    /// Executing the work twice has the same effect as once.
    Idempotent,
    /// The work is a transaction; whether its COMMIT was sent.
    Transaction(&'a AtomicBool),
}

impl Progress<'_> {
    /// Whether the work may be executed again after this error.
    fn may_be_retried(self, error: &sqlx::Error) -> bool {
        match self {
            Self::Statement => certainly_had_no_effect(error, false),
            Self::Idempotent => true,
            Self::Transaction(committing) => {
                let committing = committing.load(Ordering::Relaxed);
                !committing || certainly_had_no_effect(error, committing)
            }
        }
    }
}

/// Why the service cannot use this database until somebody changes it or the settings.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

/// Compile-time check that work on a database can be part of a spawned task.
#[expect(dead_code, reason = "it only has to compile")]
fn work_is_send(database: &Database) -> impl Future<Output = Result<(), Error>> + Send + '_ {
    database.transaction(async |connection: &mut PgConnection| connection.ping().await)
}
