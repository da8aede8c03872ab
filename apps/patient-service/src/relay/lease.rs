use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::outbox::{Hold, LeaseToken, Outbox};

/// The holder renews the lease this often at least, however long it lasts, so that others notice soon that nobody does.
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(2);
/// A standby does not look more often than this.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Renewals that may fail or be late before the others take it that nobody renews the lease.
const MISSED_RENEWALS: u32 = 3;

/// The right to send a shard's events, for a while.
///
/// No clock of a calendar decides about it: PostgreSQL's may step by an hour when it is started on another host, or when
/// somebody sets it. The holder counts the lease's length on its own monotonic clock, from before it asked. A standby
/// watches the lease's token, which changes with every renewal, and takes over when it has not changed for the lease's
/// length on the standby's monotonic clock. The takeover names the token, so that a renewal that comes in between wins.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    outbox: Outbox,
    shard: i32,
    holder: Uuid,
    duration: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Until when the lease is ours without doubt; none if it is not.
    until: Option<Instant>,
    /// The lease of another holder, and since when we have seen it like this.
    watched: Option<(LeaseToken, Instant)>,
}

impl Lease {
    pub(super) fn new(outbox: Outbox, shard: i32, duration: Duration) -> Self {
        Self { outbox, shard, holder: Uuid::now_v7(), duration, state: Arc::default() }
    }

    /// Takes or keeps it; false if another holder has it.
    pub(super) async fn hold(&self) -> Result<bool, postgres::Error> {
        // From before the question: what others count begins after the commit, so that ours ends first.
        let asked = Instant::now();
        let abandoned = self.lock().abandoned(asked, self.duration);
        let hold = self.outbox.hold_lease(self.shard, self.holder, self.duration, abandoned.as_ref()).await?;
        let (mut state, now) = (self.lock(), Instant::now());
        match hold {
            Hold::Ours => *state = State { until: Some(asked + self.duration), watched: None },
            Hold::Others(token) => {
                state.until = None;
                // From after the answer: it may have been renewed while we asked.
                let since =
                    state.watched.take().filter(|(watched, _)| *watched == token).map_or(now, |(_, since)| since);
                state.watched = Some((token, since));
            }
            // Somebody has just taken it, or given it up.
            Hold::Unknown => *state = State::default(),
        }
        Ok(state.until.is_some())
    }

    pub(super) fn is_ours(&self) -> bool {
        self.lock().until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether another holder has renewed it lately.
    pub(super) fn is_renewed_by_another(&self) -> bool {
        let limit = self.renewal_interval() * MISSED_RENEWALS;
        self.lock().watched.as_ref().is_some_and(|(_, since)| since.elapsed() < limit)
    }

    /// The time until it has to be renewed, or may be taken over.
    pub(super) fn pause(&self) -> Duration {
        let watched = self.lock().watched.as_ref().map(|(_, since)| self.duration.saturating_sub(since.elapsed()));
        watched.unwrap_or(self.duration).clamp(MIN_PAUSE, self.renewal_interval().max(MIN_PAUSE))
    }

    pub(super) fn renewal_interval(&self) -> Duration {
        (self.duration / 3).min(MAX_RENEWAL_INTERVAL)
    }

    pub(super) async fn release(&self) {
        *self.lock() = State::default();
        // A lease that cannot be given back is taken over in its time.
        let _ = self.outbox.release_lease(self.shard, self.holder).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The token of a lease that nobody has renewed for its length.
    fn abandoned(&self, now: Instant, duration: Duration) -> Option<LeaseToken> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= duration;
        self.watched.as_ref().filter(|(_, since)| is_over(*since)).map(|(token, _)| token.clone())
    }
}
