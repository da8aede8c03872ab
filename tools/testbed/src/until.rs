use std::time::{Duration, Instant};

/// Time for a condition. It is long, because a loaded machine is slow.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a condition is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a condition is true, in a test.
///
/// # Panics
/// With the name of the condition, if it is not true within a minute.
pub async fn until(condition: &str, mut is_met: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_met().await {
        assert!(Instant::now() < end, "it has not happened: {condition}");
        smol::Timer::after(POLL_INTERVAL).await;
    }
}
