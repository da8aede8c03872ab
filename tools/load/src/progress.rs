//! What the user sees while it runs: one line a second on stderr.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::pace::Pace;

/// How often a line is printed.
const EVERY: Duration = Duration::from_secs(1);

/// Counts of all clients, since the beginning.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    answered: AtomicU64,
    failed: AtomicU64,
    /// The longest latency since it was last looked at, in microseconds.
    slowest: AtomicU64,
}

impl Progress {
    pub(crate) fn add(&self, latency: Duration, success: bool) {
        let count = if success { &self.answered } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.slowest.fetch_max(latency.as_micros() as u64, Ordering::Relaxed);
    }

    /// Prints until it is dropped.
    pub(crate) async fn show<T>(&self, pace: &Pace) -> T {
        let (mut before, mut looked) = (0, Instant::now());
        loop {
            smol::Timer::after(EVERY).await;
            let now = Instant::now();
            let answered = self.answered.load(Ordering::Relaxed);
            let rate = (answered - before) as f64 / now.duration_since(looked).as_secs_f64();
            (before, looked) = (answered, now);
            let what = if now < pace.measured_from() {
                format!("warming up, {:>3} s left", pace.measured_from().duration_since(now).as_secs())
            } else if now < pace.end() {
                format!("measuring,  {:>3} s left", pace.end().duration_since(now).as_secs())
            } else {
                "finishing".to_owned()
            };
            let slowest = self.slowest.swap(0, Ordering::Relaxed) as f64 / 1e3;
            let failed = self.failed.load(Ordering::Relaxed);
            eprintln!("  {what:<24}{rate:>10.0} /s   slowest {slowest:>9.1} ms   failed {failed}");
        }
    }
}
