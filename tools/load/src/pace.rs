//! When requests begin.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use runtime::Shutdown;

/// The plan of a run: it warms up, then it is measured, then it ends.
#[derive(Debug)]
pub(crate) struct Pace {
    kind: Kind,
    begin: Instant,
    measured_from: Instant,
    end: Instant,
    /// When requests that should have begun by `end` are given up.
    give_up: Instant,
    shutdown: Shutdown,
}

#[derive(Debug)]
enum Kind {
    /// A client sends when it has the last answer.
    Closed,
    /// Request n should begin n / rate after the beginning, whoever is free to send it.
    Open { rate: f64, next: AtomicU64 },
}

impl Pace {
    /// Begins now. With a rate, requests begin at that rate, else as soon as a client is free. Requests that could not
    /// begin on time are made up for until `patience` after the end.
    pub(crate) fn new(
        rate: Option<f64>,
        warm_up: Duration,
        duration: Duration,
        patience: Duration,
        shutdown: Shutdown,
    ) -> Self {
        let kind = rate.map_or(Kind::Closed, |rate| Kind::Open { rate, next: AtomicU64::new(0) });
        let begin = Instant::now();
        let measured_from = begin + warm_up;
        let end = measured_from + duration;
        Self { kind, begin, measured_from, end, give_up: end + patience, shutdown }
    }

    /// Waits until the next request should begin, and gives that time. It may have passed already: then every client was
    /// busy, and the request counts from when it should have begun. None after the end.
    pub(crate) async fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.shutdown.is_triggered() {
            return None;
        }
        match &self.kind {
            Kind::Closed => (now < self.end).then_some(now),
            Kind::Open { rate, next } => {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let intended = self.begin + Duration::from_secs_f64(number as f64 / rate);
                if intended >= self.end || now >= self.give_up {
                    return None;
                }
                if intended > now {
                    self.shutdown.run_until_stopped(smol::Timer::at(intended)).await?;
                }
                Some(intended)
            }
        }
    }

    /// Whether a request that should begin then counts.
    pub(crate) fn counts(&self, intended: Instant) -> bool {
        intended >= self.measured_from
    }

    /// When measuring begins.
    pub(crate) fn measured_from(&self) -> Instant {
        self.measured_from
    }

    /// When no further request should begin.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// How many requests should have begun while it was measured; none if that was up to the answers.
    pub(crate) fn intended(&self) -> Option<u64> {
        match &self.kind {
            Kind::Closed => None,
            Kind::Open { rate, .. } => {
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
            // The patience is longer than any stall of a busy machine.
            let pace = Pace::new(Some(1000.0), Duration::ZERO, MS(100), MS(20_000), Shutdown::new());
            // One client that is busy for 50 ms finds the requests of that time waiting.
            smol::Timer::after(MS(50)).await;
            for number in 0..50 {
                let intended = pace.next().await.unwrap();
                assert_eq!(intended, pace.begin + MS(number));
            }
            let mut last = pace.begin;
            while let Some(intended) = pace.next().await {
                assert!(intended > last && Instant::now() >= intended, "never early, never twice");
                last = intended;
            }
            assert_eq!(pace.intended(), Some(100));
            assert_eq!(last, pace.begin + MS(99));
        });
    }

    #[test]
    fn a_backlog_is_given_up_in_the_end() {
        smol::block_on(async {
            let pace = Pace::new(Some(1000.0), Duration::ZERO, MS(20), MS(10), Shutdown::new());
            smol::Timer::after(MS(35)).await;
            assert_eq!(pace.next().await, None);
        });
    }

    #[test]
    fn a_closed_loop_does_not_wait_and_ends() {
        smol::block_on(async {
            let pace = Pace::new(None, MS(10), MS(10), Duration::ZERO, Shutdown::new());
            let first = pace.next().await.unwrap();
            assert!(!pace.counts(first));
            smol::Timer::after(MS(12)).await;
            assert!(pace.next().await.is_none_or(|second| pace.counts(second)));
            smol::Timer::after(MS(12)).await;
            assert_eq!(pace.next().await, None);
        });
    }
}
