use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::outbox::{LeaseAttempt, LeaseToken, Outbox};

/// Longest interval between renewals, however long the lease lasts, so that standbys notice soon that nobody renews it.
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest interval between a standby's attempts.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Missing renewals after which standbys regard the lease as not renewed.
const MISSED_RENEWALS: u32 = 3;

/// The lease of a shard: the exclusive right to send its events.
///
/// It does not depend on wall clocks: PostgreSQL's may step by an hour when the server moves to another host or somebody sets
/// the clock. The holder measures the duration on its monotonic clock, from before the statement. A standby observes the
/// lease's token, which changes with every renewal, and takes over when the token has not changed for the duration on its own
/// monotonic clock. The takeover is conditional on the token, so that a concurrent renewal wins.
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
    /// The lease, if we hold it.
    held: Option<HeldLease>,
    /// The token of another holder's lease, and since when we have observed it unchanged.
    observed: Option<(LeaseToken, Instant)>,
}

/// A lease that we hold.
#[derive(Clone, Copy, Debug)]
struct HeldLease {
    /// Since when it is held without interruption: nobody else has held it since.
    since: Instant,
    /// Until when it is held for certain.
    until: Instant,
}

impl Lease {
    pub(super) fn new(outbox: Outbox, shard: i32, duration: Duration) -> Self {
        Self { outbox, shard, holder: Uuid::now_v7(), duration, state: Arc::default() }
    }

    /// Takes or renews it; false if another relay holds it.
    pub(super) async fn acquire_or_renew(&self) -> Result<bool, postgres::Error> {
        // Measured from before the statement, while standbys measure from after the commit: ours ends first.
        let started = Instant::now();
        let expired = self.lock().expired(started, self.duration);
        let attempt =
            self.outbox.acquire_or_renew_lease(self.shard, self.holder, self.duration, expired.as_ref()).await?;
        let (mut state, now) = (self.lock(), Instant::now());
        match attempt {
            LeaseAttempt::Held => {
                // If it ran out, another relay may have held it in between.
                let before = state.held.filter(|held| now < held.until);
                let since = before.map_or(now, |held| held.since);
                *state = State { held: Some(HeldLease { since, until: started + self.duration }), observed: None };
            }
            LeaseAttempt::HeldByAnother(token) => {
                state.held = None;
                // Measured from after the response: it may have been renewed during the statement.
                let since =
                    state.observed.take().filter(|(observed, _)| *observed == token).map_or(now, |(_, since)| since);
                state.observed = Some((token, since));
            }
            // Another relay has just taken or released it.
            LeaseAttempt::Unknown => *state = State::default(),
        }
        Ok(state.held.is_some())
    }

    pub(super) fn is_ours(&self) -> bool {
        self.held_since().is_some()
    }

    /// Since when it is held without interruption, if it is.
    pub(super) fn held_since(&self) -> Option<Instant> {
        let held = self.lock().held?;
        (Instant::now() < held.until).then_some(held.since)
    }

    /// Whether another relay has renewed it recently.
    pub(super) fn is_renewed_by_another(&self) -> bool {
        let limit = self.renewal_interval() * MISSED_RENEWALS;
        self.lock().observed.as_ref().is_some_and(|(_, since)| since.elapsed() < limit)
    }

    /// Time until the next attempt to renew it or to take it over.
    pub(super) fn pause(&self) -> Duration {
        let until_expiry =
            self.lock().observed.as_ref().map(|(_, since)| self.duration.saturating_sub(since.elapsed()));
        until_expiry.unwrap_or(self.duration).clamp(MIN_PAUSE, self.renewal_interval().max(MIN_PAUSE))
    }

    pub(super) fn renewal_interval(&self) -> Duration {
        (self.duration / 3).min(MAX_RENEWAL_INTERVAL)
    }

    pub(super) async fn release(&self) {
        *self.lock() = State::default();
        // A lease that cannot be released expires.
        let _ = self.outbox.release_lease(self.shard, self.holder).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The token of a lease that was not renewed for its duration.
    fn expired(&self, now: Instant, duration: Duration) -> Option<LeaseToken> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= duration;
        self.observed.as_ref().filter(|(_, since)| is_over(*since)).map(|(token, _)| token.clone())
    }
}
