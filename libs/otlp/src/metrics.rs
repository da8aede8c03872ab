//! Converts the Prometheus metrics of the process to OTLP messages, which the SDK cannot do.

use std::{collections::BTreeMap, time::SystemTime};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
};
use telemetry::metrics::{MetricFamily, MetricType, Sample};

/// Resource attributes, by name.
pub(crate) type Attributes = BTreeMap<String, String>;

/// The metrics of one process as they are `now`, counted since `started`, under the names of its `/metrics`.
pub(crate) fn metrics(
    attributes: &Attributes,
    families: &[MetricFamily],
    started: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = Times { started: nanoseconds(started), now: nanoseconds(now) };
    let metrics = families.iter().filter_map(|family| times.metric(family)).collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: resource(attributes),
            scope_metrics: vec![ScopeMetrics { scope: scope(), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn resource(attributes: &Attributes) -> Option<Resource> {
    let attributes = attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: env!("CARGO_PKG_NAME").to_owned(), ..InstrumentationScope::default() })
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}

fn nanoseconds(time: SystemTime) -> u64 {
    // No clock is set before 1970.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The times of every data point of one export, in nanoseconds since 1970.
struct Times {
    started: u64,
    now: u64,
}

impl Times {
    /// None for types that no metric here has.
    fn metric(&self, family: &MetricFamily) -> Option<Metric> {
        let samples = family.get_metric();
        let temporality = AggregationTemporality::Cumulative.into();
        let data = match family.get_field_type() {
            MetricType::COUNTER => metric::Data::Sum(Sum {
                data_points: samples.iter().map(|one| self.number(one, one.get_counter().get_value())).collect(),
                aggregation_temporality: temporality,
                is_monotonic: true,
            }),
            MetricType::GAUGE => metric::Data::Gauge(Gauge {
                data_points: samples.iter().map(|one| self.number(one, one.get_gauge().get_value())).collect(),
            }),
            MetricType::HISTOGRAM => metric::Data::Histogram(Histogram {
                data_points: samples.iter().map(|one| self.histogram(one)).collect(),
                aggregation_temporality: temporality,
            }),
            _ => return None,
        };
        let (name, description) = (family.name().to_owned(), family.help().to_owned());
        Some(Metric { name, description, data: Some(data), ..Metric::default() })
    }

    fn number(&self, sample: &Sample, value: f64) -> NumberDataPoint {
        NumberDataPoint {
            attributes: labels(sample),
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        }
    }

    fn histogram(&self, sample: &Sample) -> HistogramDataPoint {
        let histogram = sample.get_histogram();
        let (count, buckets) = (histogram.get_sample_count(), histogram.get_bucket());
        // Prometheus counts all up to a bound, OpenTelemetry those between two; and last those beyond every bound.
        let up_to: Vec<_> = buckets.iter().map(|bucket| bucket.cumulative_count()).chain([count]).collect();
        let below = [0].into_iter().chain(up_to.iter().copied());
        HistogramDataPoint {
            attributes: labels(sample),
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            count,
            sum: Some(histogram.get_sample_sum()),
            bucket_counts: up_to.iter().zip(below).map(|(count, below)| count.saturating_sub(below)).collect(),
            explicit_bounds: buckets.iter().map(|bucket| bucket.upper_bound()).collect(),
            ..HistogramDataPoint::default()
        }
    }
}

fn labels(sample: &Sample) -> Vec<KeyValue> {
    sample.get_label().iter().map(|label| attribute(label.name(), label.value())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use telemetry::metrics;

    use super::*;

    #[test]
    fn data_points_have_the_values_of_the_metrics_page() {
        metrics::counters("tests_sent_total", "Of this test.", &["kind"]).with_label_values(&["good"]).inc_by(2);
        metrics::gauge("tests_waiting", "Of this test.").set(-3);
        let times = metrics::latencies("tests_duration_seconds", "Of this test.", &["kind"]);
        for seconds in [0.0004, 0.002, 0.0021, 60.0] {
            times.with_label_values(&["good"]).observe(seconds);
        }
        let (started, now) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let mut request = super::metrics(&Attributes::new(), &metrics::gather(), started, now);
        let metrics = request.resource_metrics.remove(0).scope_metrics.remove(0).metrics;
        let of = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().data.clone().unwrap();

        let metric::Data::Sum(sum) = of("tests_sent_total") else { panic!("a counter is a sum") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].attributes, [attribute("kind", "good")]);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(2.0)));
        assert_eq!((sum.data_points[0].start_time_unix_nano, sum.data_points[0].time_unix_nano), (0, 1_000_000_000));
        let metric::Data::Gauge(gauge) = of("tests_waiting") else { panic!("a gauge is a gauge") };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(-3.0)));
        let metric::Data::Histogram(histogram) = of("tests_duration_seconds") else {
            panic!("latencies are a histogram")
        };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (4, Some(60.0045)));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!((&point.bucket_counts[..4], point.bucket_counts.last()), (&[1, 0, 2, 0][..], Some(&1)));
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 4);
    }
}
