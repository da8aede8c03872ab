//! Spans of records, each in the trace of its record.

use codec::headers::TRACEPARENT;
use kafka::{RecordRef, Records};
use telemetry::{
    Span, TraceContext,
    span::{self, SpanKind},
};

use crate::state::StateError;

/// Stands for the consumer group, which this service does not use.
const GROUP: &str = "analytics-service";

/// Starts a span for each traced record; none if spans are not collected.
pub(super) fn start(topic: &str, partition: i32, records: &Records) -> Vec<Span> {
    if !span::is_collected() {
        return Vec::new();
    }
    let start = |record: RecordRef<'_>| {
        let mut span =
            Span::start(TraceContext::continue_from(record.header(TRACEPARENT)), SpanKind::Consumer, "process");
        if span.is_recorded() {
            span.rename(|| format!("process {topic}"));
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "process");
            span.set("messaging.destination.name", topic.to_owned());
            span.set("messaging.destination.partition.id", partition.to_string());
            span.set("messaging.consumer.group.name", GROUP);
            span.set("messaging.kafka.offset", record.offset);
        }
        span
    };
    records.iter().map(start).filter(Span::is_recorded).collect()
}

/// Ends the spans with the commit.
pub(super) fn end(spans: Vec<Span>, result: &Result<(), StateError>) {
    for span in spans {
        match result {
            Ok(()) => span.end(),
            Err(_) => span.fail("state"),
        }
    }
}
