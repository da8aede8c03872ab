//! Deliveries of one signal, and what is told of them.

use std::{fmt, sync::LazyLock, time::Duration};

use runtime::{Backoff, Shutdown};
use telemetry::metrics::{self, IntCounterVec};

use crate::collector::{Collector, Failure};

/// Attempts at one delivery, and the pauses between them.
const ATTEMPTS: u32 = 4;
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

static ITEMS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "What was to be exported, by what became of it: exported; dropped for lack of room in the queue; \
                failed, because the collector was away too long; rejected by the collector.";
    metrics::counters("otlp_items_total", help, &["signal", "outcome"])
});

/// A kind of thing that is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    /// The name by the OpenTelemetry specification.
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }

    /// Counts items of it by what became of them.
    pub(crate) fn count(self, outcome: &str, items: u64) {
        ITEMS.with_label_values(&[self.name(), outcome]).inc_by(items);
    }
}

/// What one item of it is called.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Traces => "spans",
            Self::Metrics => "metrics",
            Self::Logs => "log lines",
        })
    }
}

/// Delivers one signal to its collector.
#[derive(Debug)]
pub(crate) struct Delivery {
    signal: Signal,
    collector: Collector,
    /// Whether the last delivery failed; that is logged once, and so is its end.
    away: bool,
}

impl Delivery {
    pub(crate) fn new(signal: Signal, collector: Collector) -> Self {
        for outcome in ["exported", "dropped", "failed", "rejected"] {
            signal.count(outcome, 0);
        }
        Self { signal, collector, away: false }
    }

    pub(crate) fn signal(&self) -> Signal {
        self.signal
    }

    /// Delivers a message with so many items, if need be after some attempts, and counts what became of them.
    pub(crate) async fn deliver(&mut self, message: Vec<u8>, count: u64, stop: &Shutdown) {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        for attempt in 1..=ATTEMPTS {
            let outcome = self.collector.deliver(&message).await;
            // A connection that the collector has just closed is no outage yet.
            if attempt > 1 || !matches!(outcome, Err(Failure::Passing { .. })) {
                self.tell(outcome.as_ref().err());
            }
            match outcome {
                Ok(rejected) => {
                    let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
                    self.signal.count("exported", count - rejected);
                    self.signal.count("rejected", rejected);
                    return;
                }
                Err(Failure::Final { .. }) => {
                    self.signal.count("rejected", count);
                    return;
                }
                // Whoever stops does not wait for a collector to come back.
                Err(Failure::Passing { pause, .. }) if attempt < ATTEMPTS && !stop.is_triggered() => {
                    let pause = pause.unwrap_or_else(|| backoff.next_pause());
                    stop.or_stop(smol::Timer::after(pause)).await;
                }
                Err(Failure::Passing { .. }) => break,
            }
        }
        self.signal.count("failed", count);
    }

    fn tell(&mut self, failure: Option<&Failure>) {
        let items = self.signal;
        match failure {
            Some(error) if !self.away => {
                tracing::warn!(%error, "the collector takes no {items}; they are dropped until it does");
            }
            None if self.away => tracing::info!("the collector takes {items} again"),
            _ => {}
        }
        self.away = failure.is_some();
    }
}
