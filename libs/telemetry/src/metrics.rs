//! Counters, gauges and histograms, kept in one registry for the process.
//!
//! A metric is declared in the module that changes it, as a `static` in a [`LazyLock`](std::sync::LazyLock).
//! Names follow the Prometheus conventions: base units, `_total` for counters.

use prometheus::{Encoder, HistogramOpts, Opts, Registry, TextEncoder, core::Collector};
pub use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    proto::{Metric as Sample, MetricFamily, MetricType},
};

/// Upper bounds, in seconds, of the buckets of a latency histogram: from a cached read to an unreachable database.
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

/// Declares a family of counters with these labels.
pub fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(IntCounterVec::new(Opts::new(name, help), labels))
}

/// Declares a gauge.
pub fn gauge(name: &str, help: &str) -> IntGauge {
    register(IntGauge::new(name, help))
}

/// Declares a family of gauges with these labels.
pub fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(IntGaugeVec::new(Opts::new(name, help), labels))
}

/// Declares a family of latency histograms in seconds with these labels.
pub fn latencies(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    register(HistogramVec::new(HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec()), labels))
}

/// Increments `gauge` until the guard is dropped.
pub fn track(gauge: &IntGauge) -> GaugeGuard {
    gauge.inc();
    GaugeGuard(gauge.clone())
}

/// Decrements its gauge when it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl Drop for GaugeGuard {
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
    fn counters_are_rendered_with_their_labels() {
        counters("tests_counted_total", "Of this test.", &["kind"]).with_label_values(&["good"]).inc_by(2);
        let text = String::from_utf8(render()).unwrap();
        assert!(text.contains("# TYPE tests_counted_total counter\ntests_counted_total{kind=\"good\"} 2\n"), "{text}");
    }
}
