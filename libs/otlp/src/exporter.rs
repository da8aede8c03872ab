//! The queue between those who end spans and the collector, and the task that empties it.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    time::Duration,
};

use runtime::{Backoff, Shutdown, Wake, within};
use smol::channel::{self, Receiver, Sender};
use telemetry::{
    metrics::{self, IntCounterVec},
    span::{self, Finished},
};

use crate::{
    Settings,
    collector::{Collector, Failure},
    messages,
};

/// Spans that wait at most; a span takes about half a kilobyte.
const QUEUE: usize = 8192;
/// Spans of one sending at most. As many wake the exporter before its time.
const BATCH: usize = 512;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Attempts at one sending, and the pauses between them.
const ATTEMPTS: u32 = 4;
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Time for what is left when the service has stopped.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static SPANS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Spans, by what became of them: exported; dropped for lack of room in the queue; failed, because the \
                collector was away too long; rejected by the collector.";
    metrics::counters("otlp_spans_total", help, &["outcome"])
});

/// Does a service's work from its beginning to its end, and exports the spans of it if there is a collector.
pub async fn exporting<T>(settings: Settings, work: impl Future<Output = T>) -> T {
    let stop = Shutdown::new();
    let export = settings.traces.clone().map(|url| {
        tracing::info!(collector = %url, "exporting traces");
        let (queue, exporter) = Exporter::new(Collector::new(url, settings.clone()), settings);
        span::collect(move |span| queue.add(span));
        runtime::spawn(exporter.run(stop.clone()))
    });
    let outcome = work.await;
    stop.trigger();
    if let Some(export) = export
        && within(FLUSH_LIMIT, export).await.is_err()
    {
        tracing::warn!("the last spans were not delivered in time");
    }
    outcome
}

/// Takes spans from whoever ends them.
struct Queue {
    sender: Sender<Finished>,
    full_batch: Arc<Wake>,
}

impl Queue {
    /// Never waits.
    fn add(&self, span: Finished) {
        if self.sender.try_send(span).is_err() {
            SPANS.with_label_values(&["dropped"]).inc();
        } else if self.sender.len() >= BATCH {
            self.full_batch.notify();
        }
    }
}

struct Exporter {
    collector: Collector,
    settings: Settings,
    waiting: Receiver<Finished>,
    full_batch: Arc<Wake>,
    /// Whether the last sending failed; that is logged once, and so is its end.
    away: bool,
}

impl Exporter {
    fn new(collector: Collector, settings: Settings) -> (Queue, Self) {
        for outcome in ["exported", "dropped", "failed", "rejected"] {
            SPANS.with_label_values(&[outcome]);
        }
        let (sender, waiting) = channel::bounded(QUEUE);
        let full_batch = Arc::new(Wake::new());
        let queue = Queue { sender, full_batch: full_batch.clone() };
        (queue, Self { collector, settings, waiting, full_batch, away: false })
    }

    /// Sends what is there now and then until `stop`; then what is left.
    async fn run(mut self, stop: Shutdown) {
        let mut stopping = false;
        while !stopping {
            // The outcome does not matter: time, a full batch, or the end.
            let _ = stop.or_stop(within(DELAY, self.full_batch.wait())).await;
            stopping = stop.is_triggered();
            loop {
                let batch: Vec<_> = std::iter::from_fn(|| self.waiting.try_recv().ok()).take(BATCH).collect();
                let full = batch.len() == BATCH;
                if !batch.is_empty() {
                    self.send(batch, &stop).await;
                }
                if !full {
                    break;
                }
            }
        }
    }

    async fn send(&mut self, batch: Vec<Finished>, stop: &Shutdown) {
        let count = batch.len() as u64;
        let request = messages::request(&self.settings.resource, batch);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        for attempt in 1..=ATTEMPTS {
            let outcome = self.collector.deliver(&request).await;
            // A connection that the collector has just closed is no outage yet.
            if attempt > 1 || !matches!(outcome, Err(Failure::Passing { .. })) {
                self.tell(&outcome);
            }
            match outcome {
                Ok(rejected) => {
                    let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
                    SPANS.with_label_values(&["exported"]).inc_by(count - rejected);
                    SPANS.with_label_values(&["rejected"]).inc_by(rejected);
                    return;
                }
                Err(Failure::Final { .. }) => {
                    SPANS.with_label_values(&["rejected"]).inc_by(count);
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
        SPANS.with_label_values(&["failed"]).inc_by(count);
    }

    fn tell(&mut self, outcome: &Result<i64, Failure>) {
        match outcome {
            Err(error) if !self.away => {
                tracing::warn!(%error, "the collector takes no spans; they are dropped until it does");
            }
            Ok(_) if self.away => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        self.away = outcome.is_err();
    }
}

#[cfg(test)]
mod tests;
