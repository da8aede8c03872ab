//! Forgets what has served its time.

use std::time::Duration;

use runtime::Shutdown;

use crate::store::{ClockLook, Store};

/// How often it is looked for.
const INTERVAL: Duration = Duration::from_secs(60);
/// Two looks at the database's clock that are further apart by it have time between them that nobody saw pass.
const MAX_GAP: Duration = Duration::from_secs(120);
/// Rows that one statement changes at most, so that none takes long.
const BATCH: i64 = 1000;

/// Forgets idempotency keys that are older than `retention`, until the shutdown.
pub(crate) async fn run(store: Store, retention: Duration, shutdown: Shutdown) {
    while shutdown.run_until_stopped(smol::Timer::after(INTERVAL)).await.is_some() {
        // A database that is away is asked again a minute later.
        let Ok(ClockLook { keys_expired_before, step }) = store.look_at_clock(retention, MAX_GAP).await else {
            continue;
        };
        if let Some(step) = step {
            let seconds = step.num_seconds();
            tracing::warn!(
                seconds,
                "PostgreSQL's clock is not where the last look expects it: it was set, or no replica ran; idempotency keys \
                 are kept as long as if it had not"
            );
        }
        let all = BATCH as u64;
        while !shutdown.is_triggered() && matches!(store.date_keys_of_the_future(BATCH).await, Ok(n) if n == all) {}
        while !shutdown.is_triggered()
            && matches!(store.forget_keys(keys_expired_before, BATCH).await, Ok(n) if n == all)
        {}
    }
}
