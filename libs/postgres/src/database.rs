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
    Outage, Span,
    metrics::{self, IntCounterVec},
    span::Kind,
};

use crate::{
    Error, Settings,
    error::{Cause, MigrationFailure, is_certainly_undone},
    pool::{Limits, Pool, PooledConnection, Pools, unavailable},
    requirements,
    statement::UNNAMED,
};

/// Time for all migrations together. A large table takes long to index.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);

/// For so long after an answer the database is known to be there, and need not be asked.
const FRESH: Duration = Duration::from_secs(1);

/// How often a piece of work is repeated with its statements prepared anew, at most.
const MAX_PREPARED_ANEW: u32 = 2;

/// Pauses before work is repeated that was in conflict with other transactions.
const CONFLICT_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Statements that waited too long or took too long are logged this often at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

static REPEATS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("db_repeats_total", "Work that was repeated because nothing was done the first time.", &["cause"])
});

static TIMEOUTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("db_timeouts_total", "Statements that a healthy server gave up, by what was too long.", &["kind"])
});

/// The name of the pool that a database begins with.
const REQUESTS: &str = "requests";

/// A database, ready to be used once its schema is migrated. Clones share one pool of connections; [`reserve`] gives
/// another one.
///
/// [`reserve`]: Self::reserve
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
    pool: Arc<Pool>,
    /// When its work ends at the latest, if that is not measured for each piece of work alone.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    pools: Arc<Pools>,
    migrated: AtomicBool,
    outage: Outage,
    created: Instant,
    /// When the server last answered, in microseconds after `created`; 0 before it ever has.
    answered: AtomicU64,
    /// Why the last attempt to migrate the schema failed.
    unmigrated: Mutex<Option<String>>,
    refusal: OnceLock<MigrationError>,
    /// When a statement was last logged that a healthy server gave up.
    reported: Mutex<Option<Instant>>,
}

impl Database {
    /// A database that is connected to when it is first used.
    pub fn new(settings: Settings) -> Self {
        let connections = settings.connections;
        let pools = Pools::new(settings);
        let pool = pools.pool(REQUESTS, connections);
        let inner = Inner {
            pools,
            migrated: AtomicBool::new(false),
            outage: Outage::new(),
            created: Instant::now(),
            answered: AtomicU64::new(0),
            unmigrated: Mutex::default(),
            refusal: OnceLock::new(),
            reported: Mutex::default(),
        };
        Self { inner: Arc::new(inner), pool, until: None }
    }

    /// The same database over connections of its own, so many at most, besides those that there are. Work of one kind
    /// that is slow, or waits, then takes none from work of another kind: searches cannot keep a lease from being renewed.
    ///
    /// `name` is the pool's in the metric `db_pool_connections`.
    #[must_use]
    pub fn reserve(&self, name: &'static str, connections: usize) -> Self {
        Self { pool: self.inner.pools.pool(name, connections), ..self.clone() }
    }

    /// Brings the schema up to date, trying again until the database is there. Several instances may do it at once.
    /// Until it is done, [`run`](Self::run) finds the database unavailable.
    ///
    /// # Errors
    /// If the schema cannot be migrated, or its history is not ours; not if the shutdown comes first.
    pub async fn migrate(&self, migrator: &Migrator, shutdown: &Shutdown) -> Result<(), MigrationError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            match timeout(MIGRATION_LIMIT, Box::pin(self.try_migrate(migrator)))
                .await
                .unwrap_or_else(|late| Err(MigrationFailure::Passing(unavailable(format!("migrating: {late}")))))
            {
                Ok(()) => {
                    self.inner.report(Instant::now(), None);
                    self.inner.migrated.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(MigrationFailure::Final(error)) => {
                    let error = MigrationError(error);
                    let _ = self.inner.refusal.set(error.clone());
                    return Err(error);
                }
                Err(MigrationFailure::Passing(error)) => {
                    let error = error.to_string();
                    // The server comes up, and then the password is wrong: each reason is logged once.
                    if self.inner.outage.failed(&error) {
                        tracing::warn!(error, "the database is unavailable");
                    }
                    *self.inner.unmigrated() = Some(error);
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
            error @ Error::Query(_) => MigrationFailure::Final(error.to_string()),
            error => MigrationFailure::Passing(error),
        };
        // A connection of its own, because a statement here may take longer than any of the service's work.
        let mut connection = pools.connect(until, Limits::Migration).await.map_err(failed)?;
        requirements::check(&mut connection, pools, until).await?;
        match migrator.run_direct(None, &mut connection, false).await {
            Ok(()) => {
                let _ = connection.close().await;
                Ok(())
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                Err(requirements::explain(&mut connection, error).await)
            }
            Err(error) => Err(MigrationFailure::Final(requirements::of_history(&error))),
        }
    }

    /// Lets work begin without a migration of its own: for an operator's command or a test beside the service that migrates.
    pub fn assume_migrated(&self) {
        self.inner.migrated.store(true, Ordering::Release);
    }

    /// Does one piece of work on a connection of its own, within one deadline for all of it: the wait for a connection, the
    /// work, and its repetition. The work is one statement, or several that only read; [`transaction`](Self::transaction)
    /// is for several that write.
    ///
    /// It is repeated if it is certain that nothing was done: prepared statements that a change of the schema has made stale
    /// are prepared anew, serialization failures and deadlocks are tried again, and a connection that has ended, or leads
    /// to a server that takes no writes, is replaced.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also when no connection is free in time or the work takes too long.
    pub async fn run<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        self.observe(Box::pin(self.repeat(Progress::Statement, work))).await
    }

    /// Does work as [`run`](Self::run) does that may be done twice without a difference: it only reads, or what it writes
    /// is the same the second time. It is repeated also when a connection was lost and nobody knows what has been done.
    ///
    /// # Errors
    /// As those of [`run`](Self::run).
    pub async fn run_idempotent<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        self.observe(Box::pin(self.repeat(Progress::Idempotent, work))).await
    }

    /// Does work as [`run`](Self::run) does in a transaction, which is committed if the work succeeds. Until the commit is
    /// sent, nothing is done whatever happens; so the work is repeated also when its connection was lost before.
    ///
    /// # Errors
    /// As those of [`run`](Self::run).
    pub async fn transaction<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        let committing = AtomicBool::new(false);
        self.observe(Box::pin(self.repeat(Progress::Transaction(&committing), work))).await
    }

    /// The same database, whose work from now on has one deadline together: that of a single piece of work.
    #[must_use]
    pub fn with_one_deadline(&self) -> Self {
        self.until(self.end(Instant::now()))
    }

    /// The same database, whose work ends at this time at the latest.
    #[must_use]
    pub fn until(&self, end: Instant) -> Self {
        Self { until: Some(self.until.map_or(end, |until| until.min(end))), ..self.clone() }
    }

    /// When work that begins now ends at the latest.
    fn end(&self, now: Instant) -> Instant {
        let end = now + self.work_limit();
        self.until.map_or(end, |until| until.min(end))
    }

    /// Traces work, and notices an outage and its end. Work comes in a box, because each layer that a future passes through
    /// would hold it twice.
    async fn observe<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // An outage before the migration is the migration's to tell.
        if !self.inner.migrated.load(Ordering::Acquire) {
            let why = self.inner.unmigrated().as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return Err(unavailable(format!("its schema is not migrated yet{why}")));
        }
        let started = Instant::now();
        let mut span = Span::child(Kind::Client, UNNAMED);
        span.set("db.system.name", "postgresql");
        let result = span.scope(work).await;
        if matches!(result, Err(Error::Unavailable(_))) {
            // Work that is late, or that waited for a place, while the server answered other work tells of no outage.
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

    async fn repeat<T, W>(&self, progress: Progress<'_>, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        let now = Instant::now();
        let end = self.end(now);
        if now >= end {
            return Err(unavailable("the time for it was over before it began"));
        }
        let mut connection = self.pool.acquire(end.min(now + acquire)).await?;
        let mut repeats = Repeats::new(end);
        loop {
            let begun = Instant::now();
            let limit = deadline.min(end.saturating_duration_since(begun));
            match timeout(limit, attempt(progress, connection.get(), work.clone())).await {
                Ok(Ok(value)) => {
                    connection.give_back();
                    return Ok(value);
                }
                Ok(Err(error)) => {
                    // Boxed, because it is large and rare.
                    connection = Box::pin(self.recover(connection, error, progress, begun, &mut repeats)).await?;
                }
                Err(late) => {
                    connection.close();
                    self.inner.pools.clear();
                    return Err(unavailable(late.to_string()));
                }
            }
        }
    }

    /// A connection on which work is done again that has failed.
    ///
    /// # Errors
    /// If it is not done again, why it failed.
    async fn recover<'a>(
        &self,
        mut connection: PooledConnection<'a>,
        error: sqlx::Error,
        progress: Progress<'_>,
        begun: Instant,
        repeats: &mut Repeats,
    ) -> Result<PooledConnection<'a>, Error> {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        let cause = Cause::of(&error);
        let repeat = repeats.allow(cause) && (cause.is_of_server() || progress.is_undone(&error));
        // What is done here of a connection that is well also ends a transaction, whose rollback goes out with it.
        let is_well = match cause {
            Cause::Statement | Cause::Conflict => {
                matches!(timeout(repeats.left().min(deadline), connection.get().ping()).await, Ok(Ok(())))
            }
            Cause::StaleStatement => {
                let forgetting = connection.get().clear_cached_statements();
                matches!(timeout(repeats.left().min(deadline), forgetting).await, Ok(Ok(())))
            }
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => false,
        };
        if is_well {
            self.inner.note_answer();
        } else {
            connection.close();
            self.inner.forsake(cause);
        }
        // What would be late would leave it open whether it was done.
        let needed = if cause == Cause::Conflict { begun.elapsed() * 2 + CONFLICT_PAUSES.1 } else { Duration::ZERO };
        if !repeat || repeats.left() <= needed {
            if is_well {
                connection.give_back();
            }
            return Err(error.into());
        }
        REPEATS.with_label_values(&[cause.name()]).inc();
        if cause == Cause::Conflict {
            repeats.backoff.pause().await;
        }
        if !is_well {
            connection.replace(repeats.end.min(Instant::now() + acquire)).await?;
        }
        Ok(connection)
    }

    /// Whether it answers. An answer of a moment ago will do: under load a question of our own would only wait in line.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        if !self.inner.outage.is_ongoing() && self.inner.has_just_answered() {
            return Ok(());
        }
        self.run_idempotent(async |connection: &mut PgConnection| connection.ping().await).await
    }

    /// Why the service cannot work on this database, if the migration has found it out.
    pub fn refusal(&self) -> Option<&MigrationError> {
        self.inner.refusal.get()
    }

    /// How long work waits for a free connection.
    pub fn acquire_limit(&self) -> Duration {
        self.inner.pools.settings().acquire
    }

    /// How long a piece of work takes at most: the wait for a connection, the work itself and its repetition.
    pub fn work_limit(&self) -> Duration {
        let Settings { acquire, deadline, .. } = *self.inner.pools.settings();
        acquire + deadline
    }

    /// Closes the connections that nobody uses.
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

    /// Draws the conclusions for other connections from how one has ended.
    fn forsake(&self, cause: Cause) {
        match cause {
            Cause::ReadOnly if self.pools.reopen_elsewhere() => {
                tracing::warn!("the server takes no writes; the connections to it are closed, and new ones opened");
            }
            Cause::ReadOnly => {}
            Cause::Shutdown => self.pools.reopen(),
            _ => self.pools.clear(),
        }
    }

    /// Counts and logs a statement that was given up although the server is well.
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
            tracing::warn!(statement, %error, "a statement was given up; the database is well (db_timeouts_total counts)");
        }
    }

    /// A time as `answered` has it.
    fn at(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.created).as_micros() as u64 + 1
    }

    fn unmigrated(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        self.unmigrated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answer(&self) {
        self.answered.store(self.at(Instant::now()), Ordering::Relaxed);
    }

    fn has_answered_since(&self, time: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) > self.at(time)
    }

    fn has_just_answered(&self) -> bool {
        Instant::now().checked_sub(FRESH).is_some_and(|time| self.has_answered_since(time))
    }
}

/// Does work once.
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

/// How often a piece of work was repeated, and may be.
struct Repeats {
    end: Instant,
    backoff: Backoff,
    prepared_anew: u32,
    reconnected: bool,
}

impl Repeats {
    fn new(end: Instant) -> Self {
        let backoff = Backoff::new(CONFLICT_PAUSES.0, CONFLICT_PAUSES.1);
        Self { end, backoff, prepared_anew: 0, reconnected: false }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether it may be once more because of this.
    fn allow(&mut self, cause: Cause) -> bool {
        match cause {
            Cause::Statement => false,
            Cause::StaleStatement => {
                self.prepared_anew += 1;
                self.prepared_anew <= MAX_PREPARED_ANEW
            }
            Cause::Conflict => true,
            Cause::ReadOnly | Cause::Shutdown | Cause::Disconnected => !std::mem::replace(&mut self.reconnected, true),
        }
    }
}

/// How far a piece of work can have got when it fails.
#[derive(Clone, Copy)]
enum Progress<'a> {
    /// It is one statement.
    Statement,
    /// It may be done twice.
    Idempotent,
    /// It is a transaction, whose commit may have been sent.
    Transaction(&'a AtomicBool),
}

impl Progress<'_> {
    /// Whether it may be done again after this error.
    fn is_undone(self, error: &sqlx::Error) -> bool {
        match self {
            Self::Statement => is_certainly_undone(error, false),
            Self::Idempotent => true,
            Self::Transaction(committing) => {
                let committing = committing.load(Ordering::Relaxed);
                !committing || is_certainly_undone(error, committing)
            }
        }
    }
}

/// The service cannot work on this database as it is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

/// Makes sure that work on a database can be part of a spawned task.
#[expect(dead_code, reason = "it only has to compile")]
fn work_is_send(database: &Database) -> impl Future<Output = Result<(), Error>> + Send + '_ {
    database.transaction(async |connection: &mut PgConnection| connection.ping().await)
}
