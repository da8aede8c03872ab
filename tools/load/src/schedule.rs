//! The schedule of requests.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use runtime::Shutdown;

/// The schedule of a run: warm-up, measurement, end.
#[derive(Debug)]
pub(crate) struct Schedule {
    kind: LoopKind,
    begin: Instant,
    measured_from: Instant,
    end: Instant,
    /// When requests that should have started by `end` are given up.
    deadline: Instant,
    shutdown: Shutdown,
}

#[derive(Debug)]
enum LoopKind {
    /// A client sends its next request when it has the response to the last one.
    Closed,
    /// Request n starts n / rate after the beginning, on any free client.
    Open { rate: f64, next: AtomicU64 },
}

impl Schedule {
    /// Starts now. With a rate, requests start at that rate, else as soon as a client is free. Requests that could not
    /// start on time are sent until `grace` after the end.
    pub(crate) fn new(
        rate: Option<f64>,
        warm_up: Duration,
        duration: Duration,
        grace: Duration,
        shutdown: Shutdown,
    ) -> Self {
        let kind = rate.map_or(LoopKind::Closed, |rate| LoopKind::Open { rate, next: AtomicU64::new(0) });
        let begin = Instant::now();
        let measured_from = begin + warm_up;
        let end = measured_from + duration;
        Self { kind, begin, measured_from, end, deadline: end + grace, shutdown }
    }

    /// Waits until the scheduled start of the next request and returns that time. If it has passed, every client was busy,
    /// and the latency of the request counts from its scheduled start. None after the end.
    pub(crate) async fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.shutdown.is_triggered() {
            return None;
        }
        match &self.kind {
            LoopKind::Closed => (now < self.end).then_some(now),
            LoopKind::Open { rate, next } => {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let intended = self.begin + Duration::from_secs_f64(number as f64 / rate);
                if intended >= self.end || now >= self.deadline {
                    return None;
                }
                if intended > now {
                    self.shutdown.run_until_stopped(smol::Timer::at(intended)).await?;
                }
                Some(intended)
            }
        }
    }

    /// Whether a request with this scheduled start is measured.
    pub(crate) fn is_measured(&self, intended: Instant) -> bool {
        intended >= self.measured_from
    }

    /// When the measurement begins.
    pub(crate) fn measured_from(&self) -> Instant {
        self.measured_from
    }

    /// The end of the measurement.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// The number of requests scheduled during the measurement; none in a closed loop.
    pub(crate) fn intended(&self) -> Option<u64> {
        match &self.kind {
            LoopKind::Closed => None,
            LoopKind::Open { rate, .. } => {
                let up_to = |time: Instant| (time.duration_since(self.begin).as_secs_f64() * rate).ceil() as u64;
                Some(up_to(self.end) - up_to(self.measured_from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_late_request_counts_from_its_scheduled_start() {
        smol::block_on(async {
            // The grace period is longer than any stall of a busy machine.
            let schedule = Schedule::new(Some(1000.0), Duration::ZERO, MS(100), MS(20_000), Shutdown::new());
            // One client that is busy for 50 ms finds the requests of that time waiting.
            smol::Timer::after(MS(50)).await;
            for number in 0..50 {
                let intended = schedule.next().await.unwrap();
                assert_eq!(intended, schedule.begin + MS(number));
            }
            let mut last = schedule.begin;
            while let Some(intended) = schedule.next().await {
                assert!(intended > last && Instant::now() >= intended, "never early, never twice");
                last = intended;
            }
            assert_eq!(schedule.intended(), Some(100));
            assert_eq!(last, schedule.begin + MS(99));
        });
    }

    #[test]
    fn a_backlog_is_given_up_in_the_end() {
        smol::block_on(async {
            let schedule = Schedule::new(Some(1000.0), Duration::ZERO, MS(20), MS(10), Shutdown::new());
            smol::Timer::after(MS(35)).await;
            assert_eq!(schedule.next().await, None);
        });
    }

    #[test]
    fn a_closed_loop_does_not_wait_and_ends() {
        smol::block_on(async {
            let schedule = Schedule::new(None, MS(10), MS(10), Duration::ZERO, Shutdown::new());
            let first = schedule.next().await.unwrap();
            assert!(!schedule.is_measured(first));
            smol::Timer::after(MS(12)).await;
            assert!(schedule.next().await.is_none_or(|second| schedule.is_measured(second)));
            smol::Timer::after(MS(12)).await;
            assert_eq!(schedule.next().await, None);
        });
    }
}
