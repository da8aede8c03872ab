//! What every call has: a deadline, and a place in the metrics.

use std::{future::Future, sync::LazyLock, time::Duration};

use runtime::within;
use telemetry::metrics::{self, IntCounterVec};

use crate::Error;

static CALLS: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("kafka_calls_total", "Calls to Kafka, by outcome.", &["operation", "outcome"]));

/// A time as Kafka has it in requests.
pub(crate) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// Does `work` within `limit`; what is late is dropped.
pub(crate) async fn call<T>(
    operation: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let result = match within(limit, work).await {
        Ok(result) => result,
        Err(elapsed) => Err(elapsed.into()),
    };
    let outcome = result.as_ref().err().map_or("ok", Error::outcome);
    CALLS.with_label_values(&[operation, outcome]).inc();
    result
}
