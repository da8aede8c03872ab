mod migration;
mod retries;
mod sequences;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use runtime::Notify;
use sqlx::{Connection as _, PgConnection};
use telemetry::{
    Outage, Span, SpanKind,
    metrics::{self, IntCounterVec},
};

pub use self::migration::MigrationError;
use self::retries::Progress;
use crate::{
    Error, Settings,
    error::Cause,
    pool::{Pool, Pools, REPORT_INTERVAL, Shares, unavailable},
    statement::{DEFAULT_SPAN_NAME, with_name},
};

/// A ping succeeds without a query for this long after the last answer of the server.
const PING_VALIDITY: Duration = Duration::from_secs(1);

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
    /// Longest wait for locks of work through this clone.
    lock_timeout: Duration,
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
    /// The pools whose changes wait because commits do not end.
    commits: Outage<&'static str>,
    /// Notified when a statement finds no table, schema or column of a name in it.
    schema_lost: Notify,
    /// When a kind of failure, of a statement if it is the statement's, was last logged.
    reported: Mutex<BTreeMap<(&'static str, String), Instant>>,
}

impl Database {
    /// Connects on first use.
    pub fn new(settings: Settings) -> Self {
        let connections = settings.connections;
        let pools = Pools::new(settings);
        let pool = pools.pool(DEFAULT_POOL, connections);
        let lock_timeout = pools.lock_timeout();
        let inner = Inner {
            pools,
            migrated: AtomicBool::new(false),
            outage: Outage::new(),
            created: Instant::now(),
            answered: AtomicU64::new(0),
            migration_error: Mutex::default(),
            permanent_error: OnceLock::new(),
            commits: Outage::new(),
            schema_lost: Notify::new(),
            reported: Mutex::default(),
        };
        Self { inner: Arc::new(inner), pool, until: None, lock_timeout }
    }

    /// The same database with a pool of its own of at most `connections`, in addition to the existing pools. Slow work
    /// in one pool then takes no connection from work in another: searches cannot keep a lease from being renewed.
    ///
    /// `name` is the label `pool` of the metric `db_pool_connections`.
    #[must_use]
    pub fn reserve(&self, name: &'static str, connections: usize) -> Self {
        Self { pool: self.inner.pools.pool(name, connections), ..self.clone() }
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

    /// As [`run_idempotent`](Self::run_idempotent), for work that only reads. It goes on while commits do not end; other work then
    /// fails at once, so that the sessions of those that were given up do not use up the server's connections.
    ///
    /// # Errors
    /// As those of [`run`](Self::run).
    pub async fn read<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        self.observe(Box::pin(self.run_with_retries(Progress::Read, work))).await
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

    /// The same database, whose work waits for locks no longer than `limit`, if it asks [`lock_timeout`](Self::lock_timeout).
    pub(crate) fn with_lock_timeout(&self, limit: Duration) -> Self {
        // Zero would be no limit.
        Self { lock_timeout: self.lock_timeout.min(limit).max(Duration::from_millis(1)), ..self.clone() }
    }

    /// What certain work gets of the pool.
    pub(crate) fn pool_shares(&self) -> &Shares {
        self.pool.shares()
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
        let (result, statement) = with_name(span.scope(work)).await;
        if matches!(result, Err(Error::Unavailable(_))) {
            // Work that timed out while the server answered other work shows no outage: it was slow or waited for a
            // connection.
            if !self.inner.has_answered_since(started) {
                self.inner.report(started, result.as_ref().err());
            }
        } else {
            self.inner.record_answer();
            self.inner.report(started, None);
        }
        match result {
            Ok(value) => {
                span.end();
                Ok(value)
            }
            Err(error) => {
                self.inner.report_failure(&error, statement.as_str());
                let error = self.inner.check_schema(error);
                span.fail(error.outcome());
                Err(error)
            }
        }
    }

    /// Checks that the server answers. An answer to other work within the last second counts: under load a ping would
    /// only wait for a connection.
    ///
    /// It also finds out which of the sessions that were given up have ended, of all pools, as no work does while they are few.
    ///
    /// # Errors
    /// Why the database is unavailable.
    pub async fn ping(&self) -> Result<(), Error> {
        let is_migrated = self.inner.migrated.load(Ordering::Acquire);
        let abandoning = self.inner.abandoning();
        let is_available = is_migrated && !self.inner.outage.is_ongoing() && self.inner.has_just_answered();
        if is_available && abandoning.is_empty() {
            return Ok(());
        }
        let ping = self.read(async |connection: &mut PgConnection| {
            connection.ping().await?;
            for pool in &abandoning {
                match pool.abandoned().forget_ended(connection).await {
                    // The server answers; that is what the ping is for.
                    Ok(()) | Err(sqlx::Error::Database(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        ping.await?;
        abandoning.iter().for_each(|pool| self.inner.report_abandoned(pool));
        Ok(())
    }

    /// How long work waits for a free connection: `DATABASE_ACQUIRE_DEADLINE`.
    pub fn acquire_timeout(&self) -> Duration {
        self.inner.pools.settings().acquire
    }

    /// The session's `lock_timeout`; less in a [`BatchStatement`](crate::BatchStatement) that others wait for, which sets it for
    /// itself.
    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout
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

    /// The pools with sessions that were given up, or whose changes wait for such sessions.
    fn abandoning(&self) -> Vec<Arc<Pool>> {
        let is_waiting = self.commits.is_ongoing();
        let mut pools = self.pools.members();
        pools.retain(|pool| is_waiting || pool.abandoned().count(true) > 0);
        pools
    }

    /// Reports how many sessions of a pool are given up, and logs it if changes are sent again.
    fn report_abandoned(&self, pool: &Pool) {
        pool.report_abandoned();
        if pool.too_many_abandoned(false).is_none() && self.commits.recovered_for(&pool.name()).is_some() {
            tracing::info!(pool = pool.name(), "changes are sent to the database again");
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

    /// Logs a failure that is no outage: a lock or statement timeout, which is counted too, a missing privilege, a full disk, or a
    /// statement that fails. Not every caller does: background work only tries again.
    fn report_failure(&self, error: &Error, statement: &str) {
        let what = match error {
            Error::Locked | Error::Timeout => {
                let kind = if matches!(error, Error::Locked) { "lock" } else { "statement" };
                TIMEOUTS.with_label_values(&[kind]).inc();
                "a healthy server cancelled a statement (counted in db_timeouts_total)"
            }
            Error::Denied(_) => "the server rejects a statement until a privilege is granted",
            Error::Resources(_) => "the server lacks resources for a statement",
            Error::Query(_) => "a statement failed",
            _ => return,
        };
        let is_statements_fault = matches!(error, Error::Query(_));
        let failed = if is_statements_fault { statement } else { "" };
        {
            // Nothing panics while it is held.
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            reported.retain(|_, at| at.elapsed() < REPORT_INTERVAL);
            let key = (what, failed.to_owned());
            if reported.contains_key(&key) {
                return;
            }
            reported.insert(key, Instant::now());
        }
        if is_statements_fault {
            tracing::error!(statement, %error, "{what}");
        } else {
            tracing::warn!(statement, %error, "{what}");
        }
    }

    /// The error for the caller. If the schema is not the one that was migrated, no statement of the program is to blame: it is
    /// migrated again, and the same work may succeed afterwards.
    fn check_schema(&self, error: Error) -> Error {
        if !error.is_of_schema() {
            return error;
        }
        self.schema_lost.notify();
        unavailable(format!("its schema is not complete: {error}"))
    }

    /// Microseconds since `created`, as in `answered`.
    fn micros(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.created).as_micros() as u64 + 1
    }

    fn migration_error(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        self.migration_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_answer(&self) {
        self.answered.store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    fn has_answered_since(&self, time: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) > self.micros(time)
    }

    fn has_just_answered(&self) -> bool {
        Instant::now().checked_sub(PING_VALIDITY).is_some_and(|time| self.has_answered_since(time))
    }
}

/// Compile-time check that work on a database can be part of a spawned task.
#[expect(dead_code, reason = "it only has to compile")]
fn work_is_send(database: &Database) -> impl Future<Output = Result<(), Error>> + Send + '_ {
    database.transaction(async |connection: &mut PgConnection| connection.ping().await)
}
