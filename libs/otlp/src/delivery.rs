//! The HTTP client of the SDK's exporters, and the metrics and log lines about each delivery.

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
    collector::{Collector, CollectorResponse},
    settings::Destination,
};

/// Length of the queue of each signal. The SDK allocates it at the start, some 400 bytes for each span.
pub(crate) const QUEUE_SIZE: usize = 4096;

static ITEMS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Items to export by outcome: exported; dropped, because the queue was full; \
                failed, because the collector was unavailable; rejected by the collector.";
    metrics::counters("otlp_items_total", help, &["signal", "outcome"])
});

/// A signal of OpenTelemetry.
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

    /// Counts items by their outcome.
    pub(crate) fn count(self, outcome: &str, items: u64) {
        ITEMS.with_label_values(&[self.name(), outcome]).inc_by(items);
    }
}

/// The name of its items.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Traces => "spans",
            Self::Metrics => "metrics",
            Self::Logs => "log lines",
        })
    }
}

/// The deliveries of one signal to its collector.
#[derive(Debug)]
pub(crate) struct Delivery {
    signal: Signal,
    collector: Collector,
    /// Items in the queue.
    waiting: AtomicUsize,
    /// Outcome of the last attempt at the current delivery.
    last: Mutex<Option<Outcome>>,
    outage: Outage,
}

/// The outcome of an attempt.
#[derive(Clone, Debug)]
enum Outcome {
    /// The collector accepted all but `rejected` items.
    Taken { rejected: u64 },
    /// Its response had an error status.
    Rejected { status: u16 },
    /// It sent no response.
    NoResponse { why: String },
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

    /// Whether the queue has room for an item; if not, the item is counted as dropped.
    pub(crate) fn admit(&self) -> bool {
        let room = self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE_SIZE;
        if !room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.signal.count("dropped", 1);
        }
        room
    }

    /// Starts the delivery of this many items of the queue.
    pub(crate) fn begin(&self, items: usize) {
        self.waiting.fetch_sub(items, Ordering::Relaxed);
        *self.last() = None;
    }

    /// One attempt.
    ///
    /// # Errors
    /// Why there is no response.
    pub(crate) async fn attempt(&self, message: &[u8]) -> Result<CollectorResponse, String> {
        let response = self.collector.post(message).await;
        *self.last() = Some(match &response {
            // A successful response can say that some items were rejected. The messages for metrics and logs have the
            // same wire format.
            Ok(CollectorResponse { status, body, .. }) if status.is_success() => {
                let exported = ExportTraceServiceResponse::decode(&**body).unwrap_or_default();
                let rejected = exported.partial_success.map_or(0, |partial| partial.rejected_spans);
                Outcome::Taken { rejected: u64::try_from(rejected).unwrap_or(0) }
            }
            Ok(CollectorResponse { status, .. }) => Outcome::Rejected { status: u16::from(*status) },
            Err(why) => Outcome::NoResponse { why: why.clone() },
        });
        response
    }

    /// Counts the items by the outcome of the last attempt, and logs the start and end of an outage.
    pub(crate) fn end(&self, items: u64) {
        let last = self.last().take();
        let failure = match last {
            Some(Outcome::Taken { rejected }) => {
                let rejected = rejected.min(items);
                self.signal.count("exported", items - rejected);
                self.signal.count("rejected", rejected);
                None
            }
            Some(Outcome::Rejected { status }) => {
                // The retryable statuses of OTLP; the retries have failed too.
                let later = matches!(status, 429 | 502 | 503 | 504);
                self.signal.count(if later { "failed" } else { "rejected" }, items);
                Some(format!("it answered {status}"))
            }
            Some(Outcome::NoResponse { why }) => {
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

/// The HTTP client of the SDK's exporter, which retries by itself.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryClient(pub(crate) Arc<Delivery>);

#[async_trait]
impl HttpClient for DeliveryClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let CollectorResponse { status, retry_after, body } = self.0.attempt(request.body()).await?;
        let mut response = Response::builder().status(u16::from(status));
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        Ok(response.body(body.into())?)
    }
}
