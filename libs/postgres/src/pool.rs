//! The connection pool.

use std::{
    borrow::Cow,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_intrusive::sync::{Semaphore, SemaphoreReleaser};
use runtime::timeout;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use telemetry::metrics::{self, IntGauge, IntGaugeVec};

use crate::{
    Error, Settings,
    error::{is_connection_limit, of_connecting, of_session_settings},
    settings::OWNER_URL,
};

mod abandoned;
mod probe;

pub(crate) use abandoned::Abandoned;

/// A connection is closed after this time, which frees its memory on the server and follows changes of the server's
/// address.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The server's `statement_timeout` is shorter than the client's deadline by this, so that it does not work for a
/// client that has given up.
const SERVER_TIMEOUT_MARGIN: Duration = Duration::from_millis(100);
/// A connection that has been idle for longer is pinged before use: the server (`idle_session_timeout`) or a firewall
/// may have closed it. Under load connections are not idle that long and no ping is sent.
const PING_AFTER_IDLE: Duration = Duration::from_millis(200);
/// While the server takes no more connections: how often work looks for one that was released, and tries to open one.
const RELEASE_POLL_INTERVAL: Duration = Duration::from_millis(10);
const REOPEN_INTERVAL: Duration = Duration::from_millis(200);
/// A connection limit that is reached, lock and statement timeouts, missing privileges and resources, and each statement that fails are
/// logged this often at most.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// A read-only server is logged and all connections to it are closed this often at most: it may be the only server.
const MIN_INVALIDATE_INTERVAL: Duration = Duration::from_secs(1);

static CONNECTIONS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("db_pool_connections", "Connections to the database, by pool and state.", &["pool", "state"])
});

/// All pools of one database, and how to connect to it.
#[derive(Debug)]
pub(crate) struct Pools {
    settings: Settings,
    members: Mutex<Vec<Weak<Pool>>>,
    /// Connections of earlier generations are not used again: they lead to a server that is not the primary any more.
    generation: AtomicU64,
    /// Whether the last connection for work found a PostgreSQL server at `DATABASE_URL`.
    is_postgresql: AtomicBool,
    /// It is logged that the server takes no more connections.
    limit_reported: LastTime,
    /// The generation changes because of a read-only server.
    invalidated: LastTime,
}

/// The connections of one kind of work.
#[derive(Debug)]
pub(crate) struct Pool {
    name: &'static str,
    pools: Arc<Pools>,
    /// One permit for each connection, granted in the order of requests. smol's semaphore is not fair: at the limit,
    /// some work would wait until its deadline while later work hardly waits.
    permits: Semaphore,
    shares: Shares,
    idle: Mutex<Vec<OpenConnection>>,
    /// How many connections there are at most.
    connections: usize,
    abandoned: Abandoned,
}

/// How much of a pool such work gets: a quarter of the connections each, so that the rest is free for other work.
#[derive(Debug)]
pub(crate) struct Shares {
    /// For requests whose shared statement has failed, so that each is executed by itself.
    pub(crate) retries: Semaphore,
    /// For requests that wait for locks of other transactions.
    pub(crate) lock_waits: Semaphore,
}

/// A connection, and since when it has been open and idle.
#[derive(Debug)]
struct OpenConnection {
    connection: PgConnection,
    /// The server's session: its process id and its start.
    session: Box<str>,
    since: Instant,
    idle_since: Instant,
    generation: u64,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything but migrations: with `statement_timeout`, `lock_timeout` and `idle_in_transaction_session_timeout` by
    /// `DATABASE_DEADLINE`.
    Work,
    /// A migration: by the owner's URL if there is one, and with neither of the first two timeouts.
    Migration,
}

/// When something was last done that is done only now and then.
#[derive(Debug, Default)]
struct LastTime(Mutex<Option<Instant>>);

impl LastTime {
    /// Whether the last time is so long ago. Then this is one.
    fn is_due_again(&self, interval: Duration) -> bool {
        // Nothing panics while it is held.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|at| at.elapsed() >= interval);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Why no connection was opened.
enum ConnectError {
    /// The server has none left. One of ours may be released.
    Limit(Error),
    /// Anything else.
    Other(Error),
}

impl ConnectError {
    fn of(error: sqlx::Error) -> Self {
        if is_connection_limit(&error) { Self::Limit(of_connecting(error)) } else { Self::Other(of_connecting(error)) }
    }

    fn into_error(self) -> Error {
        let (Self::Limit(error) | Self::Other(error)) = self;
        error
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Pools {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            members: Mutex::default(),
            generation: AtomicU64::new(0),
            is_postgresql: AtomicBool::new(false),
            limit_reported: LastTime::default(),
            invalidated: LastTime::default(),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens a connection.
    ///
    /// The session settings are made by a statement and not by the startup message, of which poolers such as PgBouncer
    /// accept only some parameters.
    pub(crate) async fn connect(&self, until: Instant, purpose: Purpose) -> Result<PgConnection, Error> {
        let (connection, _) = self.connect_session(until, purpose).await.map_err(ConnectError::into_error)?;
        Ok(connection)
    }

    /// As [`connect`](Self::connect), with what identifies the session.
    async fn connect_session(
        &self,
        until: Instant,
        purpose: Purpose,
    ) -> Result<(PgConnection, Box<str>), ConnectError> {
        let left = until.saturating_duration_since(Instant::now());
        let (url, variable) = match (purpose, &self.settings.owner) {
            (Purpose::Migration, Some(owner)) => (owner.expose(), OWNER_URL),
            _ => (self.settings.url.expose(), "DATABASE_URL"),
        };
        // A migration may have a URL of its own, so it neither relies on what work has found nor changes it.
        let is_proven = purpose == Purpose::Work && self.is_postgresql.load(Ordering::Acquire);
        let open = async {
            let options = url.options();
            if !is_proven {
                probe::check(&options).await?;
            }
            let mut connection = PgConnection::connect_with(&options).await.map_err(ConnectError::of)?;
            let settings =
                url.session.iter().map(|(name, value)| (&**name, value.clone())).chain(self.server_timeouts(purpose));
            let settings: Vec<_> = settings
                .map(|(name, value)| format!("set_config({}, {}, false)", literal(name), literal(&value)))
                .collect();
            let session = "(SELECT concat_ws('/', pid, extract(epoch FROM backend_start))
                FROM pg_stat_get_activity(pg_backend_pid())) AS session";
            let statement = format!("-- session settings\nSELECT {}, {session}", settings.join(", "));
            let set = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut connection).await;
            let row = set.map_err(|error| of_session_settings(error, variable))?;
            let session: String = row.try_get("session").map_err(Error::from)?;
            Ok::<_, ConnectError>((connection, session.into_boxed_str()))
        };
        let opened = timeout(left, Box::pin(open)).await;
        if purpose == Purpose::Work {
            self.is_postgresql.store(matches!(opened, Ok(Ok(_) | Err(ConnectError::Limit(_)))), Ordering::Release);
        }
        opened.map_err(|elapsed| unavailable(format!("connecting: {elapsed}")))?
    }

    fn server_timeouts(&self, purpose: Purpose) -> [(&'static str, String); 3] {
        let [statement, lock] =
            [self.statement_timeout(), self.lock_timeout()].map(|limit| limit.as_millis().to_string());
        let (work, waiting) = match purpose {
            Purpose::Work => (statement.clone(), lock),
            Purpose::Migration => ("0".to_owned(), "0".to_owned()),
        };
        [("statement_timeout", work), ("lock_timeout", waiting), ("idle_in_transaction_session_timeout", statement)]
    }

    fn statement_timeout(&self) -> Duration {
        self.settings.deadline.saturating_sub(SERVER_TIMEOUT_MARGIN).max(SERVER_TIMEOUT_MARGIN)
    }

    /// Shorter than `statement_timeout`, so that the error distinguishes waiting for a lock from a slow statement.
    pub(crate) fn lock_timeout(&self) -> Duration {
        self.statement_timeout() * 3 / 4
    }

    /// Adds a pool of at most `connections`.
    pub(crate) fn pool(self: &Arc<Self>, name: &'static str, connections: usize) -> Arc<Pool> {
        let permits = Semaphore::new(true, connections);
        let share = || Semaphore::new(true, (connections / 4).max(1));
        let shares = Shares { retries: share(), lock_waits: share() };
        CONNECTIONS.with_label_values(&[name, "max"]).set(connections as i64);
        let (pools, idle, abandoned) = (self.clone(), Mutex::default(), Abandoned::default());
        let pool = Arc::new(Pool { name, pools, permits, shares, idle, connections, abandoned });
        self.lock().push(Arc::downgrade(&pool));
        pool
    }

    /// Closes the idle connections of every pool.
    pub(crate) async fn close(&self) {
        for pool in self.members() {
            pool.close().await;
        }
    }

    /// Drops the idle connections of every pool, because one of them was found dead.
    pub(crate) fn clear(&self) {
        self.members().iter().for_each(|pool| pool.clear());
    }

    /// Drops the idle connections of every pool, and those in use when they are released: their server is not the
    /// primary any more.
    pub(crate) fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.clear();
    }

    /// As [`invalidate`](Self::invalidate), because the server is read-only. Returns false if that was done within the
    /// last second.
    pub(crate) fn invalidate_after_failover(&self) -> bool {
        let is_due = self.invalidated.is_due_again(MIN_INVALIDATE_INTERVAL);
        if is_due {
            self.invalidate();
        }
        is_due
    }

    /// Logs that the server takes no more connections.
    fn report_limit(&self, error: &Error) {
        if self.limit_reported.is_due_again(REPORT_INTERVAL) {
            tracing::warn!(%error, "the server takes no more connections; work waits for those that are open");
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn members(&self) -> Vec<Arc<Pool>> {
        let mut members = self.lock();
        members.retain(|pool| pool.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Pool>>> {
        // Nothing can panic while it is held.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Waits for a permit and takes an idle connection or opens one, for work that only reads or that may change something.
    ///
    /// # Errors
    /// If neither is possible until `until`.
    pub(crate) async fn acquire(&self, until: Instant, is_read: bool) -> Result<PooledConnection<'_>, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let exhausted = |_| unavailable("every connection is in use");
        let permit = timeout(left, self.permits.acquire(1)).await.map_err(exhausted)?;
        self.gauge("used").inc();
        let mut connection = PooledConnection { pool: self, open: None, is_read, _permit: permit };
        connection.connect(until).await?;
        Ok(connection)
    }

    /// Its label in metrics.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The sessions that were given up.
    pub(crate) fn abandoned(&self) -> &Abandoned {
        &self.abandoned
    }

    /// The sessions that were given up, if there are too many for work to begin.
    pub(crate) fn too_many_abandoned(&self, is_read: bool) -> Option<&Abandoned> {
        Some(&self.abandoned)
            .filter(|abandoned| abandoned.count(is_read) >= Abandoned::limit(self.connections, is_read))
    }

    /// Closes the idle connections.
    async fn close(&self) {
        let idle = std::mem::take(&mut *self.lock());
        for OpenConnection { connection, .. } in idle {
            // A server that does not answer needs no Terminate message.
            let _ = timeout(Duration::from_millis(200), connection.close()).await;
        }
        self.report_idle(0);
    }

    fn clear(&self) {
        self.lock().clear();
        self.report_idle(0);
    }

    fn take_idle(&self) -> Option<OpenConnection> {
        let mut idle = self.lock();
        let open = loop {
            // The most recently used one is the most likely to be in the CPU caches on both sides.
            match idle.pop() {
                Some(open) if open.since.elapsed() > MAX_LIFETIME => drop(open),
                open => break open,
            }
        };
        self.report_idle(idle.len());
        open
    }

    /// An idle connection that was used a moment ago or answered a ping.
    async fn take_live(&self, until: Instant) -> Option<OpenConnection> {
        while let Some(mut open) = self.take_idle() {
            if open.idle_since.elapsed() < PING_AFTER_IDLE {
                return Some(open);
            }
            // Half of the time, so that the rest suffices for a new connection.
            let limit = until.saturating_duration_since(Instant::now()) / 2;
            if matches!(timeout(limit, Box::pin(open.connection.ping())).await, Ok(Ok(()))) {
                return Some(open);
            }
            drop(open);
            self.pools.clear();
        }
        None
    }

    fn report_idle(&self, count: usize) {
        self.gauge("idle").set(count as i64);
    }

    pub(crate) fn report_abandoned(&self) {
        self.gauge("abandoned").set(self.abandoned.count(true) as i64);
    }

    fn gauge(&self, state: &str) -> IntGauge {
        CONNECTIONS.with_label_values(&[self.name, state])
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OpenConnection>> {
        // Nothing can panic while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use, and its permit. Dropped without [`release`](Self::release), the connection is abandoned, because a
/// statement may still be running on it.
pub(crate) struct PooledConnection<'a> {
    pool: &'a Pool,
    open: Option<OpenConnection>,
    is_read: bool,
    _permit: SemaphoreReleaser<'a>,
}

impl PooledConnection<'_> {
    pub(crate) fn get(&mut self) -> &mut PgConnection {
        &mut self.open.as_mut().expect("it is there until it is released").connection
    }

    /// Takes an idle connection, or opens one. If the server takes no more, waits for one that is released.
    async fn connect(&mut self, until: Instant) -> Result<(), Error> {
        loop {
            if let Some(open) = self.pool.take_live(until).await {
                self.open = Some(open);
                return Ok(());
            }
            // Boxed because it is large and rare.
            let error = match Box::pin(self.open(until)).await {
                Err(ConnectError::Limit(error)) => error,
                opened => return opened.map_err(ConnectError::into_error),
            };
            self.pool.pools.report_limit(&error);
            let refused = Instant::now();
            while self.pool.lock().is_empty() && refused.elapsed() < REOPEN_INTERVAL {
                if Instant::now() >= until {
                    return Err(error);
                }
                smol::Timer::after(RELEASE_POLL_INTERVAL).await;
            }
        }
    }

    /// Closes the connection, if it is still open, and opens another one under the same permit.
    pub(crate) async fn replace(&mut self, until: Instant) -> Result<(), Error> {
        // Idle connections and those in use together must not exceed the number of permits.
        self.open = None;
        drop(self.pool.take_idle());
        match self.open(until).await {
            // The server may not have ended the session of the closed one yet.
            Err(ConnectError::Limit(_)) => self.connect(until).await,
            opened => opened.map_err(ConnectError::into_error),
        }
    }

    async fn open(&mut self, until: Instant) -> Result<(), ConnectError> {
        let pools = &self.pool.pools;
        // Read before connecting: an invalidation meanwhile applies to this connection too.
        let generation = pools.generation();
        let (connection, session) = pools.connect_session(until, Purpose::Work).await?;
        // If a pooler handed it on to us, the server does not work any more for whoever gave it up.
        for pool in pools.members() {
            pool.abandoned.remove(&session);
            pool.report_abandoned();
        }
        let now = Instant::now();
        self.open = Some(OpenConnection { connection, session, since: now, idle_since: now, generation });
        Ok(())
    }

    /// Closes the connection, whose session has ended, and keeps the permit.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// Closes the connection, for whose session the server may still work: nobody waits for it any more, or the connection to it
    /// broke, which the server does not notice while it commits.
    pub(crate) fn abandon(&mut self) {
        if let Some(OpenConnection { session, .. }) = self.open.take() {
            self.pool.abandoned.add(session, self.is_read, self.pool.connections);
            self.pool.report_abandoned();
        }
    }

    /// Returns the connection to the pool, unless its generation was invalidated.
    pub(crate) fn release(mut self) {
        let Some(mut open) = self.open.take() else { return };
        if open.generation == self.pool.pools.generation() {
            open.idle_since = Instant::now();
            let mut idle = self.pool.lock();
            idle.push(open);
            self.pool.report_idle(idle.len());
        }
    }
}

impl Drop for PooledConnection<'_> {
    fn drop(&mut self) {
        self.abandon();
        self.pool.gauge("used").dec();
    }
}

pub(crate) fn unavailable(why: impl Into<Cow<'static, str>>) -> Error {
    Error::Unavailable(why.into())
}

/// An SQL string literal. Backslashes are plain characters in it: `standard_conforming_strings` has been on since
/// PostgreSQL 9.1.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
