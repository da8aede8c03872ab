//! Progress of a run: one line a second on stderr.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::schedule::Schedule;

/// Time between two lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Counts of all clients, since the beginning.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// The longest latency since the last line, in microseconds.
    slowest: AtomicU64,
}

impl Progress {
    pub(crate) fn add(&self, latency: Duration, success: bool) {
        let count = if success { &self.succeeded } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.slowest.fetch_max(latency.as_micros() as u64, Ordering::Relaxed);
    }

    /// Prints until it is dropped.
    pub(crate) async fn report<T>(&self, schedule: &Schedule) -> T {
        let (mut before, mut reported) = (0, Instant::now());
        loop {
            smol::Timer::after(REPORT_INTERVAL).await;
            let now = Instant::now();
            let succeeded = self.succeeded.load(Ordering::Relaxed);
            let rate = (succeeded - before) as f64 / now.duration_since(reported).as_secs_f64();
            (before, reported) = (succeeded, now);
            let what = if now < schedule.measured_from() {
                format!("warming up, {:>3} s left", schedule.measured_from().duration_since(now).as_secs())
            } else if now < schedule.end() {
                format!("measuring,  {:>3} s left", schedule.end().duration_since(now).as_secs())
            } else {
                "finishing".to_owned()
            };
            let slowest = self.slowest.swap(0, Ordering::Relaxed) as f64 / 1e3;
            let failed = self.failed.load(Ordering::Relaxed);
            eprintln!("  {what:<24}{rate:>10.0} /s   slowest {slowest:>9.1} ms   failed {failed}");
        }
    }
}
