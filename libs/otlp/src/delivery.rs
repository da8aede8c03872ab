//! What becomes of what is exported: the client of the SDK's exporters, and what is counted and told of each delivery.

use std::{
    fmt,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use surf::utils::async_trait;
use telemetry::{
    Outage,
    metrics::{self, IntCounterVec},
};

use crate::{
    collector::{Answer, Collector},
    settings::Destination,
};

/// Items that wait at most, of each signal. The SDK's queue takes its room, some 400 bytes for a span, from the start.
pub(crate) const QUEUE: usize = 4096;

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

/// Deliveries of one signal to its collector.
#[derive(Debug)]
pub(crate) struct Delivery {
    signal: Signal,
    collector: Collector,
    /// Items that wait for their delivery.
    waiting: AtomicUsize,
    /// What became of the last attempt at the delivery under way.
    last: Mutex<Option<Outcome>>,
    outage: Outage,
}

/// What becomes of an attempt.
#[derive(Clone, Debug)]
enum Outcome {
    /// The collector has taken all but so many items.
    Taken { rejected: u64 },
    /// It has answered that it does not take them.
    Refused { status: u16 },
    /// It has not answered.
    Unanswered { why: String },
}

impl Delivery {
    pub(crate) fn new(signal: Signal, destination: Destination) -> Self {
        for outcome in ["exported", "dropped", "failed", "rejected"] {
            signal.count(outcome, 0);
        }
        let collector = Collector::new(destination);
        Self { signal, collector, waiting: AtomicUsize::new(0), last: Mutex::new(None), outage: Outage::new() }
    }

    pub(crate) fn destination(&self) -> &Destination {
        self.collector.destination()
    }

    /// Whether there is room for an item to wait in; else it is counted as dropped.
    pub(crate) fn admit(&self) -> bool {
        let room = self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE;
        if !room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.signal.count("dropped", 1);
        }
        room
    }

    /// Begins to deliver items that have waited.
    pub(crate) fn begin(&self, items: usize) {
        self.waiting.fetch_sub(items, Ordering::Relaxed);
        *self.last() = None;
    }

    /// One attempt.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn attempt(&self, message: &[u8]) -> Result<Answer, String> {
        let answer = self.collector.post(message).await;
        *self.last() = Some(match &answer {
            // What was refused is part of an answer that is a success otherwise. The answers about metrics and logs are the
            // same on the wire.
            Ok(Answer { status, body, .. }) if status.is_success() => {
                let answer = ExportTraceServiceResponse::decode(&**body).unwrap_or_default();
                let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
                Outcome::Taken { rejected: u64::try_from(rejected).unwrap_or(0) }
            }
            Ok(Answer { status, .. }) => Outcome::Refused { status: u16::from(*status) },
            Err(why) => Outcome::Unanswered { why: why.clone() },
        });
        answer
    }

    /// Counts what became of so many items after the last attempt, and tells of it if it is news.
    pub(crate) fn end(&self, items: u64) {
        let last = self.last().take();
        let failure = match last {
            Some(Outcome::Taken { rejected }) => {
                let rejected = rejected.min(items);
                self.signal.count("exported", items - rejected);
                self.signal.count("rejected", rejected);
                None
            }
            Some(Outcome::Refused { status }) => {
                // By these it says that it may take them later, which has been tried.
                let later = matches!(status, 429 | 502 | 503 | 504);
                self.signal.count(if later { "failed" } else { "rejected" }, items);
                Some(format!("it answered {status}"))
            }
            Some(Outcome::Unanswered { why }) => {
                self.signal.count("failed", items);
                Some(why)
            }
            None => {
                self.signal.count("failed", items);
                Some("nothing was sent".to_owned())
            }
        };
        let items = self.signal;
        match failure {
            Some(error) if self.outage.failed("not delivered") => {
                tracing::warn!(%error, "the collector takes no {items}; they are dropped until it does");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outage.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "the collector takes {items} again");
                }
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Outcome>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// What the SDK's exporter sends through. It asks again by itself where that may help.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryClient(pub(crate) Arc<Delivery>);

#[async_trait]
impl HttpClient for DeliveryClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Answer { status, retry_after, body } = self.0.attempt(request.body()).await?;
        let mut response = Response::builder().status(u16::from(status));
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        Ok(response.body(body.into())?)
    }
}
