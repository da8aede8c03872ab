use std::{
    mem,
    time::{Duration, Instant},
};

use postgres::Error;
use runtime::Backoff;
use smol::Task;
use uuid::Uuid;

use crate::outbox::{Outbox, RowKey};

/// Events that are deleted without waiting for more.
const BATCH: usize = 500;
/// Events that wait to be deleted, at most: with more of them, the relay sends nothing until a deletion succeeds.
const MAX_WAITING: usize = 2_000;
/// Pauses after a deletion that failed, or that left locked rows behind.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Deletes from the outbox what the broker has acknowledged, while the next events are read and sent: a deletion is a
/// commit, and an event that comes meanwhile need not wait for the disk.
///
/// One statement is under way at a time; what is acknowledged meanwhile goes with the next one. What a statement could
/// not delete is kept for a later one: the broker has it, so it is not read and sent again.
#[derive(Debug)]
pub(super) struct AckedDeleter {
    outbox: Outbox,
    under_way: Option<Deletion>,
    waiting: Vec<RowKey>,
    /// How long they wait for more, so that one statement deletes them.
    linger: Duration,
    /// Since when the first of them waits.
    waiting_since: Option<Instant>,
    backoff: Backoff,
    /// No statement begins before this time.
    paused_until: Option<Instant>,
    /// Whether the next statement skips rows that others have locked, because the last one failed and may have waited for them.
    skip_locked: bool,
}

#[derive(Debug)]
struct Deletion {
    rows: Vec<RowKey>,
    /// Gives the rows that are still there.
    statement: Task<Result<Vec<RowKey>, Error>>,
}

impl AckedDeleter {
    pub(super) fn new(outbox: Outbox) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self {
            outbox,
            under_way: None,
            waiting: Vec::new(),
            linger: Duration::ZERO,
            waiting_since: None,
            backoff,
            paused_until: None,
            skip_locked: false,
        }
    }

    /// Has events wait this long for more from now on, so that one statement, which is a commit, deletes all of them.
    pub(super) fn set_linger(&mut self, linger: Duration) {
        self.linger = linger;
    }

    /// When the next statement should begin, if events wait for one and none is under way.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let due = self.waiting_since? + self.linger;
        Some(self.paused_until.map_or(due, |until| until.max(due)))
    }

    /// Begins to delete these, or has them wait for the statement under way.
    pub(super) fn add(&mut self, acked: impl IntoIterator<Item = RowKey>) {
        self.waiting.extend(acked);
        if !self.waiting.is_empty() {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        self.begin();
    }

    /// Takes the outcome of a statement that has ended, and begins the next one. Waits for the statement under way if more than
    /// [`MAX_WAITING`] events are to be deleted.
    ///
    /// # Errors
    /// If still more than [`MAX_WAITING`] events wait after that, so that nothing may be sent.
    pub(super) async fn advance(&mut self) -> Result<(), Error> {
        let is_finished = self.under_way.as_ref().is_some_and(|deletion| deletion.statement.is_finished());
        let outcome = if is_finished || self.len() > MAX_WAITING { self.end().await } else { Ok(()) };
        self.begin();
        if self.len() > MAX_WAITING { outcome.and(Err(Error::Locked)) } else { Ok(()) }
    }

    /// Deletes all that is left, as far as one more statement can.
    pub(super) async fn finish(&mut self) {
        // The statement under way, and one for all that has waited for it.
        for _ in 0..2 {
            (self.paused_until, self.linger) = (None, Duration::ZERO);
            self.begin();
            // What is left is published again by whoever holds the lease next.
            let _ = self.end().await;
        }
    }

    /// The events that are acknowledged and may still be in the outbox.
    pub(super) fn rows(&self) -> impl Iterator<Item = RowKey> {
        self.under_way.iter().flat_map(|deletion| &deletion.rows).chain(&self.waiting).copied()
    }

    /// Their event ids.
    pub(super) fn event_ids(&self) -> Vec<Uuid> {
        self.rows().map(|row| row.event_id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.rows().count()
    }

    async fn end(&mut self) -> Result<(), Error> {
        let Some(Deletion { rows, statement }) = self.under_way.take() else { return Ok(()) };
        let outcome = statement.await;
        let left = match &outcome {
            Ok(left) => left.clone(),
            Err(_) => rows,
        };
        self.skip_locked = outcome.is_err();
        if left.is_empty() {
            self.backoff.reset();
            self.paused_until = None;
        } else {
            self.paused_until = Some(Instant::now() + self.backoff.next_pause());
            // The oldest first, as they were.
            let newer = mem::replace(&mut self.waiting, left);
            self.waiting.extend(newer);
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        outcome.map(drop)
    }

    fn begin(&mut self) {
        let now = Instant::now();
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        let is_enough =
            self.waiting.len() >= BATCH || self.waiting_since.is_some_and(|since| since + self.linger <= now);
        if self.under_way.is_some() || is_paused || !is_enough {
            return;
        }
        self.waiting_since = None;
        let rows = mem::take(&mut self.waiting);
        let (outbox, deleted, skip_locked) = (self.outbox.clone(), rows.clone(), self.skip_locked);
        let statement = runtime::spawn(async move { outbox.delete(&deleted, skip_locked).await });
        self.under_way = Some(Deletion { rows, statement });
    }
}
