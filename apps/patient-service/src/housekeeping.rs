//! Forgets what has served its time.

use std::time::Duration;

use runtime::Shutdown;

use crate::store::Store;

/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(60);
/// Rows that one statement deletes at most, so that none takes long.
const AT_ONCE: i64 = 1000;

/// Forgets idempotency keys older than `age`, until the shutdown.
pub(crate) async fn run(store: Store, age: Duration, shutdown: Shutdown) {
    while shutdown.or_stop(smol::Timer::after(LOOK)).await.is_some() {
        // A database that is away is asked again a minute later.
        while !shutdown.is_triggered() && matches!(store.forget_keys(age, AT_ONCE).await, Ok(n) if n == AT_ONCE as u64)
        {
        }
    }
}
