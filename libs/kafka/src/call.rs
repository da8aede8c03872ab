//! Deadlines and metrics of calls.

use std::{
    future::Future,
    sync::LazyLock,
    time::{Duration, Instant},
};

use config::HostPort;
use kafka_protocol::protocol::StrBytes;
use runtime::timeout;
use telemetry::metrics::{self, IntCounterVec};

use crate::{BrokerError, Error, error::Timeout};

static CALLS: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("kafka_calls_total", "Calls to Kafka, by outcome.", &["operation", "outcome"]));
static ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Error codes in responses of brokers, by request, name and remedy.";
    metrics::counters("kafka_broker_errors_total", help, &["request", "error", "ended_by"])
});

/// A duration as requests have it, in milliseconds.
pub(crate) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Text as requests have it.
pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// When a call has to end, with all its steps: name resolution, connecting, ApiVersions, the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limit: Duration,
    end: Instant,
}

impl Deadline {
    /// The deadline of a call that begins now.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, end: Instant::now() + limit }
    }

    /// The remaining time.
    pub(crate) fn remaining(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The deadline so much later.
    pub(crate) fn extended(self, by: Duration) -> Self {
        Self { end: self.end + by, ..self }
    }

    /// The first of `parts` equal parts of the remaining time.
    pub(crate) fn split(self, parts: usize) -> Self {
        Self::new(self.remaining() / u32::try_from(parts).unwrap_or(u32::MAX).max(1))
    }

    /// Runs `work` for the remaining time at most, then drops it. `broker` is the broker to name in the error, if it is known.
    pub(crate) async fn timeout<T>(
        self,
        broker: Option<&HostPort>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // It polls the work first: its own timeout names the broker.
        let ended = timeout(self.remaining(), work).await;
        ended.unwrap_or_else(|_| Err(Timeout { limit: self.limit, broker: broker.cloned() }.into()))
    }
}

/// Runs `work` until the deadline, then drops it, and counts its outcome.
pub(crate) async fn call<T>(
    operation: &'static str,
    deadline: Deadline,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    count(operation, deadline.timeout(None, work)).await
}

/// Counts the outcome of `work`, each step of which has a deadline.
pub(crate) async fn count<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let result = work.await;
    let outcome = result.as_ref().err().map_or("ok", Error::outcome);
    CALLS.with_label_values(&[operation, outcome]).inc();
    result
}

/// Counts and converts an error code of a response.
pub(crate) fn broker_error(request: &str, error: BrokerError) -> Error {
    ERRORS.with_label_values(&[request, &error.name(), error.remedy().name()]).inc();
    error.into()
}
