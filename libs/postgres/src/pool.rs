//! Connections at rest and at work.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_intrusive::sync::{Semaphore, SemaphoreReleaser};
use runtime::within;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use telemetry::metrics::{self, IntGauge, IntGaugeVec};

use crate::{Error, Settings};

/// A connection is not used again after this time, so that its memory on the server and changes of the server's
/// address do not stay for ever.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The server gives a statement up this much earlier than the client does, so that it does not work for nobody.
const SERVER_EARLIER: Duration = Duration::from_millis(100);

static CONNECTIONS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("db_pool_connections", "Connections to the database, by pool and state.", &["pool", "state"])
});

/// All pools of one database.
#[derive(Debug)]
pub(crate) struct Pools {
    settings: Settings,
    members: Mutex<Vec<Weak<Pool>>>,
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

/// A connection, and since when it has been open.
#[derive(Debug)]
struct Open {
    connection: PgConnection,
    since: Instant,
}

impl Pools {
    pub(crate) fn new(mut settings: Settings) -> Arc<Self> {
        let statement = settings.deadline.saturating_sub(SERVER_EARLIER).max(SERVER_EARLIER).as_millis().to_string();
        let options = settings.url.expose().0.clone().options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", statement.as_str()),
            ("idle_in_transaction_session_timeout", statement.as_str()),
        ]);
        settings.url = config::Secret::new(crate::Url(options.log_statements(LOG_NOTHING)));
        Arc::new(Self { settings, members: Mutex::default() })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
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
    fn clear(&self) {
        self.members().iter().for_each(|pool| pool.clear());
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
    fn settings(&self) -> &Settings {
        &self.siblings.settings
    }

    /// A connection at rest, or a new one.
    pub(crate) async fn acquire(&self) -> Result<PooledConnection<'_>, Error> {
        let Settings { acquire, .. } = *self.settings();
        let exhausted = |_| unavailable("every connection is in use");
        let place = within(acquire, self.places.acquire(1)).await.map_err(exhausted)?;
        let at_rest = self.take_idle();
        let open = match at_rest {
            Some(open) => open,
            None => {
                let connecting =
                    within(acquire, Box::pin(PgConnection::connect_with(&self.settings().url.expose().0))).await;
                let connection = connecting.map_err(|elapsed| unavailable(format!("connecting: {elapsed}")))??;
                Open { connection, since: Instant::now() }
            }
        };
        self.gauge("used").inc();
        Ok(PooledConnection { pool: self, open: Some(open), _place: place })
    }

    /// Closes the connections at rest.
    async fn close(&self) {
        let idle = std::mem::take(&mut *self.lock());
        for Open { connection, .. } in idle {
            // A server that is gone needs no farewell.
            let _ = within(Duration::from_millis(200), connection.close()).await;
        }
        self.tell_idle(0);
    }

    fn clear(&self) {
        self.lock().clear();
        self.tell_idle(0);
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
        self.tell_idle(idle.len());
        open
    }

    fn tell_idle(&self, count: usize) {
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

/// sqlx logs every statement at debug and slow ones at warn; the server's log does that better.
const LOG_NOTHING: log::LevelFilter = log::LevelFilter::Off;

/// A connection at work. Dropped without [`give_back`](Self::give_back), it is closed: nobody knows what it is in the
/// middle of.
pub(crate) struct PooledConnection<'a> {
    pool: &'a Pool,
    open: Option<Open>,
    _place: SemaphoreReleaser<'a>,
}

impl PooledConnection<'_> {
    pub(crate) fn get(&mut self) -> &mut PgConnection {
        &mut self.open.as_mut().expect("it is there until it is given back").connection
    }

    /// Puts the connection back to rest.
    pub(crate) fn give_back(mut self) {
        let mut idle = self.pool.lock();
        idle.extend(self.open.take());
        self.pool.tell_idle(idle.len());
    }

    /// Closes the connection, which is broken, and those at rest with it.
    pub(crate) fn discard(self) {
        self.pool.siblings.clear();
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
