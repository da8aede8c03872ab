use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use runtime::{Backoff, Shutdown, within};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    migrate::{MigrateError, Migrator},
};
use telemetry::{Span, span::Kind};

use crate::{
    Error, Settings,
    pool::{Pool, Pools, unavailable},
    statement::UNNAMED,
};

/// Time for all migrations together. A large table takes long to index.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);

/// For so long after an answer the database is known to be there, and need not be asked.
const FRESH: Duration = Duration::from_secs(1);

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
}

#[derive(Debug)]
struct Inner {
    pools: Arc<Pools>,
    migrated: AtomicBool,
    /// Whether the outage has been logged; it is logged once, and so is its end.
    away: AtomicBool,
    /// When `away` last changed.
    turned: Mutex<Option<Instant>>,
    created: Instant,
    /// When the server last answered, in microseconds after `created`; 0 before it ever has.
    answered: AtomicU64,
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
            away: AtomicBool::new(false),
            turned: Mutex::default(),
            created: Instant::now(),
            answered: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner), pool }
    }

    /// The same database over connections of its own, so many at most, besides those that there are. Work of one kind
    /// that is slow, or waits, then takes none from work of another kind: searches cannot keep a lease from being renewed.
    ///
    /// `name` is the pool's in the metric `db_pool_connections`.
    #[must_use]
    pub fn reserve(&self, name: &'static str, connections: usize) -> Self {
        Self { inner: self.inner.clone(), pool: self.inner.pools.pool(name, connections) }
    }

    /// Brings the schema up to date, trying again until the database is there. Several instances may do it at once.
    /// Until it is done, [`run`](Self::run) finds the database unavailable.
    ///
    /// # Errors
    /// If the schema cannot be migrated, or its history is not ours; not if the shutdown comes first.
    pub async fn migrate(&self, migrator: &Migrator, shutdown: &Shutdown) -> Result<(), MigrationError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            match within(MIGRATION_LIMIT, Box::pin(self.try_migrate(migrator)))
                .await
                .unwrap_or_else(|late| Err(MigrationFailure::Passing(unavailable(format!("migrating: {late}")))))
            {
                Ok(()) => {
                    self.tell(Instant::now(), &Ok::<_, Error>(()));
                    self.inner.migrated.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(MigrationFailure::Final(error)) => return Err(MigrationError(error)),
                Err(MigrationFailure::Passing(error)) => self.tell(Instant::now(), &Err::<(), _>(error)),
            }
            if shutdown.or_stop(backoff.pause()).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn try_migrate(&self, migrator: &Migrator) -> Result<(), MigrationFailure> {
        let settings = self.inner.pools.settings();
        // A connection of its own, because a statement here may take longer than any of the service's work.
        let options = settings.url.expose().0.clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        let connecting = within(settings.acquire, options.connect()).await;
        let connection =
            connecting.map_err(|late| MigrationFailure::Passing(unavailable(format!("connecting: {late}"))))?;
        let mut connection = connection.map_err(|error| MigrationFailure::Passing(error.into()))?;
        match migrator.run_direct(None, &mut connection, false).await {
            Ok(()) => {
                let _ = connection.close().await;
                Ok(())
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => match error.into() {
                error @ (Error::Unavailable(_) | Error::Locked) => Err(MigrationFailure::Passing(error)),
                error => Err(MigrationFailure::Final(error.to_string())),
            },
            Err(error) => Err(MigrationFailure::Final(error.to_string())),
        }
    }

    /// Does one piece of work on a connection of its own, within one deadline.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also when no connection is free in time or the work takes too long.
    pub async fn run<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    {
        // An outage before the migration is the migration's to tell.
        if !self.inner.migrated.load(Ordering::Acquire) {
            return Err(unavailable("its schema is not migrated yet"));
        }
        let started = Instant::now();
        let mut span = Span::child(Kind::Client, UNNAMED);
        span.set("db.system.name", "postgresql");
        let result = span.scope(self.attempt(work)).await;
        if matches!(result, Err(Error::Unavailable(_))) {
            // Work that is late, or that waited for a place, while the server answered other work tells of no outage.
            if !self.inner.has_answered_since(started) {
                self.tell(started, &result);
            }
        } else {
            self.inner.answered.store(self.inner.at(Instant::now()), Ordering::Relaxed);
            self.tell(started, &result);
        }
        match &result {
            Ok(_) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
        result
    }

    async fn attempt<T, W>(&self, work: W) -> Result<T, Error>
    where
        W: AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    {
        let mut connection = self.pool.acquire().await?;
        match within(self.inner.pools.settings().deadline, work(connection.get())).await {
            Ok(Ok(value)) => {
                connection.give_back();
                Ok(value)
            }
            Ok(Err(error @ sqlx::Error::Database(_))) if !ends_session(&error) => {
                // It may be in the middle of a transaction, whose rollback goes out with the next message.
                match within(self.inner.pools.settings().deadline, connection.get().ping()).await {
                    Ok(Ok(())) => connection.give_back(),
                    _ => connection.discard(),
                }
                Err(error.into())
            }
            Ok(Err(error)) => {
                connection.discard();
                Err(error.into())
            }
            Err(late) => {
                connection.discard();
                Err(unavailable(late.to_string()))
            }
        }
    }

    /// Whether it answers. An answer of a moment ago will do: under load a question of our own would only wait in line.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        if !self.inner.away.load(Ordering::Relaxed) && self.inner.has_just_answered() {
            return Ok(());
        }
        self.run(async |connection| connection.ping().await).await
    }

    /// How long work waits for a free connection.
    pub fn acquire_limit(&self) -> Duration {
        self.inner.pools.settings().acquire
    }

    /// Closes the connections that nobody uses.
    pub async fn close(&self) {
        self.inner.pools.close().await;
    }

    /// Logs an outage and its end, as work that began at `started` has found it.
    fn tell<T>(&self, started: Instant, result: &Result<T, Error>) {
        let unavailable = match result {
            Err(Error::Unavailable(why)) => Some(why),
            _ => None,
        };
        let Inner { away, turned, .. } = &*self.inner;
        if away.load(Ordering::Relaxed) == unavailable.is_some() {
            return;
        }
        // Nothing panics while it is held.
        let mut turned = turned.lock().unwrap_or_else(PoisonError::into_inner);
        // Work that began before the last turn may have met what was before it, and tells nothing new.
        let is_news = turned.is_none_or(|turned| started >= turned);
        if !is_news || away.swap(unavailable.is_some(), Ordering::Relaxed) == unavailable.is_some() {
            return;
        }
        *turned = Some(Instant::now());
        match unavailable {
            Some(why) => tracing::warn!(%why, "the database is away"),
            None => tracing::info!("the database is back"),
        }
    }
}

impl Inner {
    /// A time as `answered` has it.
    fn at(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.created).as_micros() as u64 + 1
    }

    fn has_answered_since(&self, time: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) > self.at(time)
    }

    fn has_just_answered(&self) -> bool {
        Instant::now().checked_sub(FRESH).is_some_and(|time| self.has_answered_since(time))
    }
}

/// Whether the server closed the session together with this error.
fn ends_session(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // 57P01 to 57P05: the server is going down, or has ended the session.
    code.is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
}

enum MigrationFailure {
    Passing(Error),
    Final(String),
}

/// The schema cannot be brought up to date.
#[derive(Debug)]
pub struct MigrationError(String);

impl fmt::Display for MigrationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the schema cannot be migrated: {}", self.0)
    }
}

impl std::error::Error for MigrationError {}

/// Makes sure that work on a database can be part of a spawned task.
#[expect(dead_code, reason = "it only has to compile")]
fn work_is_send(database: &Database) -> impl Future<Output = Result<(), Error>> + Send + '_ {
    database.run(async |connection| connection.ping().await)
}
