use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use sqlx::{PgConnection, Row as _, query};

/// The sessions of a pool that were given up while the server worked for them: the client's deadline passed, or nobody waits for
/// the work any more.
///
/// `lock_timeout` and `statement_timeout` end such a session soon, but not a commit that waits for a synchronous standby or for the
/// storage, and PostgreSQL does not notice there that its client is gone. Each holds a slot of `max_connections`, in addition to
/// the connections of the pool. So they are counted, and no more changes begin while there are many.
///
/// They are not terminated: PostgreSQL would show the change to others although no standby has it, and a repeated request would
/// be answered as if it were safe.
#[derive(Debug, Default)]
pub(crate) struct Abandoned {
    sessions: Mutex<Vec<Session>>,
    /// How many of `sessions` may change something, and how many there are, so that work takes no lock while there are none.
    changes: AtomicUsize,
    all: AtomicUsize,
}

#[derive(Debug)]
struct Session {
    /// Its process id and its start.
    id: Box<str>,
    is_read: bool,
}

/// Connections of the pool for one abandoned session: with more of them, no change begins.
const SHARE_OF_CHANGES: usize = 4;
/// A small pool begins no read with this many.
const MIN_READS: usize = 4;

impl Abandoned {
    /// How many there may be for work to begin, in a pool of this many connections.
    pub(crate) fn limit(connections: usize, is_read: bool) -> usize {
        // Reads commit nothing, so they go on while commits wait. Only if reads do not end either, they are limited too.
        if is_read { (connections * 2).max(MIN_READS) } else { (connections / SHARE_OF_CHANGES).max(1) }
    }

    /// How many count for this kind of work: searches that were given up block no change.
    pub(crate) fn count(&self, is_read: bool) -> usize {
        if is_read { &self.all } else { &self.changes }.load(Ordering::Relaxed)
    }

    /// Adds a session; of too many, the oldest is forgotten.
    pub(super) fn add(&self, id: Box<str>, is_read: bool, connections: usize) {
        let mut sessions = self.lock();
        if sessions.len() >= connections * SHARE_OF_CHANGES {
            sessions.remove(0);
        }
        sessions.push(Session { id, is_read });
        self.update(&sessions);
    }

    /// Forgets a session.
    pub(super) fn remove(&self, id: &str) {
        if self.count(true) > 0 {
            let mut sessions = self.lock();
            sessions.retain(|session| &*session.id != id);
            self.update(&sessions);
        }
    }

    /// Forgets the sessions for which the server does not work any more, and those that wait for a lock, which `lock_timeout` ends.
    pub(crate) async fn forget_ended(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let before: Vec<String> = self.lock().iter().map(|session| session.id.to_string()).collect();
        // Without `track_activities` a state is `disabled`; a session that does nothing reads from its client then too.
        let working = query(
            "-- abandoned sessions
            SELECT session FROM (
                SELECT concat_ws('/', pid, extract(epoch FROM backend_start)) AS session
                FROM pg_stat_activity
                WHERE state NOT LIKE 'idle%' AND wait_event IS DISTINCT FROM 'ClientRead'
                    AND wait_event_type IS DISTINCT FROM 'Lock'
            ) sessions WHERE session = ANY($1)",
        );
        let working = working.bind(&before).persistent(false).fetch_all(connection).await?;
        let working = working.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
        let mut sessions = self.lock();
        // Others were added meanwhile.
        sessions.retain(|session| {
            let is = |other: &String| **other == *session.id;
            working.iter().any(is) || !before.iter().any(is)
        });
        self.update(&sessions);
        Ok(())
    }

    fn update(&self, sessions: &[Session]) {
        let changes = sessions.iter().filter(|session| !session.is_read).count();
        self.changes.store(changes, Ordering::Relaxed);
        self.all.store(sessions.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        // Nothing panics while it is held.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
