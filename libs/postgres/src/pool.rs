//! Connections at rest and at work.

use std::{
    borrow::Cow,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_intrusive::sync::{Semaphore, SemaphoreReleaser};
use runtime::timeout;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use telemetry::metrics::{self, IntGauge, IntGaugeVec};

use crate::{Error, Settings};

/// A connection is not used again after this time, so that its memory on the server and changes of the server's
/// address do not stay for ever.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The server gives a statement up this much earlier than the client does, so that it does not work for nobody.
const SERVER_EARLIER: Duration = Duration::from_millis(100);
/// A connection that has rested for longer is asked for a sign of life before it is used: the server may have ended it
/// (`idle_session_timeout`), or something between. Under load connections do not rest, and the question is not asked.
const UNCHECKED_REST: Duration = Duration::from_millis(200);
/// A server that takes no writes is told, and all connections to it are closed, this often at most: it may be the only one.
const MIN_REOPEN_INTERVAL: Duration = Duration::from_secs(1);

static CONNECTIONS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("db_pool_connections", "Connections to the database, by pool and state.", &["pool", "state"])
});

/// All pools of one database.
#[derive(Debug)]
pub(crate) struct Pools {
    settings: Settings,
    members: Mutex<Vec<Weak<Pool>>>,
    /// Connections of earlier generations are not used again: they lead to the wrong place.
    generation: AtomicU64,
    /// When the generation was changed because a server took no writes.
    reopened: Mutex<Option<Instant>>,
}

/// Connections for one kind of work. No other kind can use them up.
#[derive(Debug)]
pub(crate) struct Pool {
    name: &'static str,
    siblings: Arc<Pools>,
    /// Given in the order of asking. smol's semaphore lets newcomers overtake: at its limit, some would wait until their
    /// deadline while others hardly wait at all.
    places: Semaphore,
    idle: Mutex<Vec<Open>>,
}

/// A connection, and since when it has been open and at rest.
#[derive(Debug)]
struct Open {
    connection: PgConnection,
    since: Instant,
    resting_since: Instant,
    generation: u64,
}

/// Which limits the server keeps on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limits {
    /// Those of the service's work.
    Work,
    /// None, for a migration.
    Migration,
}

impl Pools {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            members: Mutex::default(),
            generation: AtomicU64::new(0),
            reopened: Mutex::default(),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens a connection.
    ///
    /// Its settings are made by a statement and not by the startup message: a pooler between, such as PgBouncer, knows
    /// only some of those.
    pub(crate) async fn connect(&self, until: Instant, limits: Limits) -> Result<PgConnection, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let open = async {
            let url = self.settings.url.expose();
            let mut connection = PgConnection::connect_with(&url.options).await?;
            let settings = url.session.iter().map(|(name, value)| (&**name, value.clone())).chain(self.limits(limits));
            let settings: Vec<_> = settings
                .map(|(name, value)| format!("set_config({}, {}, false)", literal(name), literal(&value)))
                .collect();
            let statement = format!("-- session settings\nSELECT {}", settings.join(", "));
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        let opened = timeout(left, Box::pin(open)).await;
        Ok(opened.map_err(|elapsed| unavailable(format!("connecting: {elapsed}")))??)
    }

    fn limits(&self, limits: Limits) -> [(&'static str, String); 3] {
        let statement = self.settings.deadline.saturating_sub(SERVER_EARLIER).max(SERVER_EARLIER);
        // Shorter, so that waiting for others is told from working for too long.
        let lock = statement * 3 / 4;
        let [statement, lock] = [statement, lock].map(|limit| limit.as_millis().to_string());
        let (work, waiting) = match limits {
            Limits::Work => (statement.clone(), lock),
            Limits::Migration => ("0".to_owned(), "0".to_owned()),
        };
        [("statement_timeout", work), ("lock_timeout", waiting), ("idle_in_transaction_session_timeout", statement)]
    }

    /// One more pool, which opens so many connections at most.
    pub(crate) fn pool(self: &Arc<Self>, name: &'static str, connections: usize) -> Arc<Pool> {
        let places = Semaphore::new(true, connections);
        CONNECTIONS.with_label_values(&[name, "most"]).set(connections as i64);
        let pool = Arc::new(Pool { name, siblings: self.clone(), places, idle: Mutex::default() });
        self.lock().push(Arc::downgrade(&pool));
        pool
    }

    /// Closes the connections at rest in every pool.
    pub(crate) async fn close(&self) {
        for pool in self.members() {
            pool.close().await;
        }
    }

    /// Drops the connections at rest in every pool, of which one has shown that the others are dead too.
    pub(crate) fn clear(&self) {
        self.members().iter().for_each(|pool| pool.clear());
    }

    /// Drops the connections at rest in every pool, and those at work when they come back: they lead to a server that
    /// is no longer the one to talk to.
    pub(crate) fn reopen(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.clear();
    }

    /// As [`reopen`](Self::reopen), because a server takes no writes; false if that has just been done.
    pub(crate) fn reopen_elsewhere(&self) -> bool {
        {
            // Nothing panics while it is held.
            let mut reopened = self.reopened.lock().unwrap_or_else(PoisonError::into_inner);
            if reopened.is_some_and(|at| at.elapsed() < MIN_REOPEN_INTERVAL) {
                return false;
            }
            *reopened = Some(Instant::now());
        }
        self.reopen();
        true
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn members(&self) -> Vec<Arc<Pool>> {
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
    /// A place for one piece of work, and with it a connection.
    pub(crate) async fn acquire(&self, until: Instant) -> Result<PooledConnection<'_>, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let exhausted = |_| unavailable("every connection is in use");
        let place = timeout(left, self.places.acquire(1)).await.map_err(exhausted)?;
        self.gauge("used").inc();
        let mut connection = PooledConnection { pool: self, open: None, _place: place };
        connection.connect(until).await?;
        Ok(connection)
    }

    /// Closes the connections at rest.
    async fn close(&self) {
        let idle = std::mem::take(&mut *self.lock());
        for Open { connection, .. } in idle {
            // A server that is gone needs no farewell.
            let _ = timeout(Duration::from_millis(200), connection.close()).await;
        }
        self.report_idle(0);
    }

    fn clear(&self) {
        self.lock().clear();
        self.report_idle(0);
    }

    fn take_idle(&self) -> Option<Open> {
        let mut idle = self.lock();
        let open = loop {
            // The one used last is the most likely to be in the processor's caches, on both sides.
            match idle.pop() {
                Some(open) if open.since.elapsed() > LIFETIME => drop(open),
                open => break open,
            }
        };
        self.report_idle(idle.len());
        open
    }

    /// A connection at rest that has shown that it lives.
    async fn take_living(&self, until: Instant) -> Option<Open> {
        while let Some(mut open) = self.take_idle() {
            if open.resting_since.elapsed() < UNCHECKED_REST {
                return Some(open);
            }
            // Half of the time, so that there is some left for a new connection.
            let limit = until.saturating_duration_since(Instant::now()) / 2;
            if matches!(timeout(limit, Box::pin(open.connection.ping())).await, Ok(Ok(()))) {
                return Some(open);
            }
            drop(open);
            self.siblings.clear();
        }
        None
    }

    fn report_idle(&self, count: usize) {
        self.gauge("idle").set(count as i64);
    }

    fn gauge(&self, state: &str) -> IntGauge {
        CONNECTIONS.with_label_values(&[self.name, state])
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        // Nothing can panic while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection at work, and its place. Dropped without [`give_back`](Self::give_back), it is closed: nobody knows what it
/// is in the middle of.
pub(crate) struct PooledConnection<'a> {
    pool: &'a Pool,
    open: Option<Open>,
    _place: SemaphoreReleaser<'a>,
}

impl PooledConnection<'_> {
    pub(crate) fn get(&mut self) -> &mut PgConnection {
        &mut self.open.as_mut().expect("it is there until it is given back").connection
    }

    /// Takes a connection at rest, or opens one.
    async fn connect(&mut self, until: Instant) -> Result<(), Error> {
        match self.pool.take_living(until).await {
            Some(open) => self.open = Some(open),
            // Boxed, as the other, because it is rare.
            None => Box::pin(self.open(until)).await?,
        }
        Ok(())
    }

    /// Closes the connection, if it is still there, and opens one in its place.
    pub(crate) async fn replace(&mut self, until: Instant) -> Result<(), Error> {
        // Together with those at rest there must not be more than there are places.
        self.open = None;
        drop(self.pool.take_idle());
        self.open(until).await
    }

    async fn open(&mut self, until: Instant) -> Result<(), Error> {
        let siblings = &self.pool.siblings;
        // From before: what changes meanwhile may concern it.
        let generation = siblings.generation();
        let connection = siblings.connect(until, Limits::Work).await?;
        let now = Instant::now();
        self.open = Some(Open { connection, since: now, resting_since: now, generation });
        Ok(())
    }

    /// Closes the connection and keeps the place.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// Puts the connection back to rest, if it leads to where new ones lead.
    pub(crate) fn give_back(mut self) {
        let Some(mut open) = self.open.take() else { return };
        if open.generation == self.pool.siblings.generation() {
            open.resting_since = Instant::now();
            let mut idle = self.pool.lock();
            idle.push(open);
            self.pool.report_idle(idle.len());
        }
    }
}

impl Drop for PooledConnection<'_> {
    fn drop(&mut self) {
        self.pool.gauge("used").dec();
    }
}

pub(crate) fn unavailable(why: impl Into<Cow<'static, str>>) -> Error {
    Error::Unavailable(why.into())
}

/// A string as SQL writes it. Backslashes have no meaning in it: `standard_conforming_strings` has been on since
/// PostgreSQL 9.1, and `E` is not before it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
