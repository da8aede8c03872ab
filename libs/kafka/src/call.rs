//! What every call has: a deadline, and a place in the metrics.

use std::{
    future::Future,
    sync::LazyLock,
    time::{Duration, Instant},
};

use config::HostPort;
use smol::{Timer, future::or};
use telemetry::metrics::{self, IntCounterVec};

use crate::{BrokerError, Error, error::Late};

static CALLS: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("kafka_calls_total", "Calls to Kafka, by outcome.", &["operation", "outcome"]));
static ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Errors that brokers answered with, by request, name and what ends them.";
    metrics::counters("kafka_broker_errors_total", help, &["request", "error", "ended_by"])
});

/// A time as Kafka has it in requests.
pub(crate) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// When a call has to be over, with everything that belongs to it: name look-ups, connections, versions, the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limit: Duration,
    end: Instant,
}

impl Deadline {
    /// So much time from now on.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, end: Instant::now() + limit }
    }

    /// The time that is left.
    pub(crate) fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// One part of so many equal ones of the time that is left.
    pub(crate) fn share(self, parts: usize) -> Self {
        Self::new(self.left() / u32::try_from(parts).unwrap_or(u32::MAX).max(1))
    }

    /// Does `work` in the time that is left, and drops it when that is over. `broker` is who is waited for, if that is known.
    pub(crate) async fn within<T>(
        self,
        broker: Option<&HostPort>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // The work first: what it knows of whom it waits for is better than what is known here.
        or(work, async {
            Timer::at(self.end).await;
            Err(Late { limit: self.limit, broker: broker.cloned() }.into())
        })
        .await
    }
}

/// Does `work` within the deadline; what is late is dropped.
pub(crate) async fn call<T>(
    operation: &'static str,
    deadline: Deadline,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let result = deadline.within(None, work).await;
    let outcome = result.as_ref().err().map_or("ok", Error::outcome);
    CALLS.with_label_values(&[operation, outcome]).inc();
    result
}

/// Counts an error that a broker answered a request with.
pub(crate) fn answered(request: &str, error: BrokerError) -> Error {
    ERRORS.with_label_values(&[request, &error.name(), error.remedy().name()]).inc();
    error.into()
}
