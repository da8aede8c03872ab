//! The spans of records that are being applied, each in the trace that its record carries.

use codec::headers::TRACEPARENT;
use kafka::{RecordRef, Records};
use telemetry::{
    Span, TraceContext,
    span::{self, SpanKind},
};

use crate::state::StateError;

/// Who reads, where messaging has consumer groups; we are given our partitions.
const GROUP: &str = "analytics-service";

/// Begins to apply records of a partition; none if spans are not collected.
pub(super) fn begin(topic: &str, partition: i32, records: &Records) -> Vec<Span> {
    if !span::is_collected() {
        return Vec::new();
    }
    let begin = |record: RecordRef<'_>| {
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
    records.iter().map(begin).filter(Span::is_recorded).collect()
}

/// Ends with the commit of what the records add up to.
pub(super) fn end(spans: Vec<Span>, result: &Result<(), StateError>) {
    for span in spans {
        match result {
            Ok(()) => span.end(),
            Err(_) => span.fail("state"),
        }
    }
}
