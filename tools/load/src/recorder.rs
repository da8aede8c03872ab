//! The results of requests: latencies by action, and errors by kind.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    scenario::Action,
    target::{RequestError, Response},
};

/// Latencies in microseconds with three digits, up to ten minutes.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// In microseconds.
    const MAX_LATENCY: u64 = 600_000_000;

    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, Self::MAX_LATENCY, 3).expect("the bounds are right"))
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The summary; `over` is the time in which they were measured.
    pub(crate) fn summary(&self, over: Duration) -> Summary {
        let ms = |microseconds: u64| microseconds as f64 / 1e3;
        let quantile = |quantile| ms(self.0.value_at_quantile(quantile));
        Summary {
            count: self.0.len(),
            per_second: self.0.len() as f64 / over.as_secs_f64().max(f64::MIN_POSITIVE),
            mean_ms: self.0.mean() / 1e3,
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            p999_ms: quantile(0.999),
            max_ms: ms(self.0.max()),
        }
    }
}

/// The count, rate and percentiles of some latencies.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) per_second: f64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

/// The results of one client, or of several merged ones.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    pub(crate) by_action: BTreeMap<Action, Latencies>,
    /// Failures by action and kind, such as `create: status 503`.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { by_action: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// Adds a result. Only successes have a latency: a fast rejection must not make the others look better.
    pub(crate) fn add(&mut self, action: Action, latency: Duration, outcome: &Result<Response, RequestError>) {
        let error = match outcome {
            Ok(response) if response.status.is_success() => {
                self.by_action.entry(action).or_insert_with(Latencies::new).add(latency);
                return;
            }
            Ok(response) => format!("{}: status {}", action.name(), response.status.as_u16()),
            Err(error) => format!("{}: {error}", action.name()),
        };
        self.add_errors(error, 1);
    }

    pub(crate) fn add_errors(&mut self, error: String, count: u64) {
        *self.errors.entry(error).or_default() += count;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (action, latencies) in other.by_action {
            self.by_action.entry(action).or_insert_with(Latencies::new).merge(&latencies);
        }
        for (error, count) in other.errors {
            self.add_errors(error, count);
        }
    }

    /// The latencies of all actions together.
    pub(crate) fn all(&self) -> Latencies {
        let mut all = Latencies::new();
        self.by_action.values().for_each(|latencies| all.merge(latencies));
        all
    }

    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::StatusCode;

    use super::*;

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let mut latencies = Latencies::new();
        (1..=10_000).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        let Summary { count, per_second, p50_ms, p99_ms, p999_ms, max_ms, .. } =
            latencies.summary(Duration::from_secs(10));
        assert_eq!((count, per_second), (10_000, 1000.0));
        for (measured, right) in [(p50_ms, 5000.0), (p99_ms, 9900.0), (p999_ms, 9990.0), (max_ms, 10_000.0)] {
            assert!((measured / right - 1.0).abs() < 0.001, "{measured} is not {right}");
        }
    }

    #[test]
    fn failures_are_counted_by_kind_and_have_no_latency() {
        let response = |status| Ok(Response { status, link: None, body: Bytes::new() });
        let mut one = Recorder::new();
        one.add(Action::Create, Duration::from_millis(5), &response(StatusCode::CREATED));
        one.add(Action::Create, Duration::from_millis(1), &response(StatusCode::SERVICE_UNAVAILABLE));
        let mut two = Recorder::new();
        two.add(Action::Create, Duration::from_millis(1), &response(StatusCode::SERVICE_UNAVAILABLE));
        two.add(Action::Read, Duration::from_secs(10), &Err(RequestError::Timeout));
        one.merge(two);
        assert_eq!(one.all().summary(Duration::from_secs(1)).count, 1);
        assert_eq!(one.errors["create: status 503"], 2);
        assert_eq!(one.errors["read: no response in time"], 1);
        assert_eq!(one.failed(), 3);
    }
}
