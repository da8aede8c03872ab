//! Deletes expired idempotency keys.

use std::time::Duration;

use runtime::Shutdown;

use crate::store::{ClockObservation, Store};

/// Interval between two runs.
const INTERVAL: Duration = Duration::from_secs(60);
/// Longest time between two observations of the database's clock that counts as observed.
const MAX_GAP: Duration = Duration::from_secs(120);
/// Most rows that one statement changes, so that none takes long.
const MAX_ROWS: i64 = 1000;

/// Deletes idempotency keys that are older than `retention`, until the shutdown.
pub(crate) async fn run(store: Store, retention: Duration, shutdown: Shutdown) {
    while shutdown.run_until_stopped(smol::Timer::after(INTERVAL)).await.is_some() {
        // After a failure of the database, which it logs, the next run tries again.
        let Ok(ClockObservation { keys_expired_before, step }) = store.observe_clock(retention, MAX_GAP).await else {
            continue;
        };
        if let Some(step) = step {
            let seconds = step.num_seconds();
            tracing::warn!(
                seconds,
                "PostgreSQL's clock is not where the last observation expects it: it was set, or no replica ran; that time does \
                 not count for the age of idempotency keys"
            );
        }
        let full = MAX_ROWS as u64;
        while !shutdown.is_triggered() && matches!(store.redate_future_keys(MAX_ROWS).await, Ok(n) if n == full) {}
        while !shutdown.is_triggered()
            && matches!(store.delete_keys(keys_expired_before, MAX_ROWS).await, Ok(n) if n == full)
        {}
    }
}
