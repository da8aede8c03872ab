//! Counters, gauges and histograms, kept in one registry for the process.
//!
//! A metric is declared where it is counted, as a `static` in a [`LazyLock`](std::sync::LazyLock).
//! Names follow the Prometheus conventions: base units, `_total` for counters.

use prometheus::{Encoder, HistogramOpts, Opts, Registry, TextEncoder, core::Collector};
pub use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    proto::{Metric as Sample, MetricFamily, MetricType},
};

/// Upper bounds, in seconds, of the buckets of a latency histogram: from a cached read to a lost database.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Declares a counter.
///
/// # Panics
/// If the name is taken or malformed: a mistake in the program, as for each function here.
pub fn counter(name: &str, help: &str) -> IntCounter {
    register(IntCounter::new(name, help))
}

/// Declares a family of counters told apart by `labels`.
pub fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(IntCounterVec::new(Opts::new(name, help), labels))
}

/// Declares a gauge.
pub fn gauge(name: &str, help: &str) -> IntGauge {
    register(IntGauge::new(name, help))
}

/// Declares a family of gauges told apart by `labels`.
pub fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(IntGaugeVec::new(Opts::new(name, help), labels))
}

/// Declares a family of latency histograms, in seconds, told apart by `labels`.
pub fn latencies(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    register(HistogramVec::new(HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec()), labels))
}

/// Counts one thing more in `gauge` until the result is dropped.
pub fn count_in(gauge: &IntGauge) -> CountedIn {
    gauge.inc();
    CountedIn(gauge.clone())
}

/// One thing counted in a gauge.
#[derive(Debug)]
pub struct CountedIn(IntGauge);

impl Drop for CountedIn {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Every metric of the process, as it is now.
pub fn gather() -> Vec<MetricFamily> {
    registry().gather()
}

/// Every metric of the process in the Prometheus text format.
pub fn render() -> Vec<u8> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&gather(), &mut text).expect("writing to memory and to valid families");
    text
}

fn registry() -> &'static Registry {
    prometheus::default_registry()
}

fn register<M: Collector + Clone + 'static>(metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a metric's name and labels are constants of this program");
    registry().register(Box::new(metric.clone())).expect("each metric is declared once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        counters("tests_counted_total", "Of this test.", &["kind"]).with_label_values(&["good"]).inc_by(2);
        let text = String::from_utf8(render()).unwrap();
        assert!(text.contains("# TYPE tests_counted_total counter\ntests_counted_total{kind=\"good\"} 2\n"), "{text}");
    }
}
