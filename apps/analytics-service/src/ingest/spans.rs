//! Spans of records, each in the trace of its record.

use codec::headers::TRACEPARENT;
use kafka::{RecordRef, Records};
use telemetry::{
    Span, TraceContext,
    span::{self, SpanKind},
};

use crate::{Settings, state::StateError};

/// Spans of one fetch at most. The exporter's queue has room for four times as many, of all that the service does.
const MAX_SPANS: usize = 1024;

/// Starts a span for each traced record before the offset `end`, up to [`MAX_SPANS`]; none if spans are not collected.
pub(super) fn start(settings: &Settings, partition: i32, records: &Records, end: i64) -> Vec<Span> {
    if !span::is_collected() {
        return Vec::new();
    }
    let (topic, group) = (&settings.topic, &settings.group.0);
    let start = |record: RecordRef<'_>| {
        let mut span =
            Span::start(TraceContext::continue_from(record.header(TRACEPARENT)), SpanKind::Consumer, "process");
        if span.is_recorded() {
            span.rename(|| format!("process {topic}"));
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "process");
            span.set("messaging.destination.name", topic.clone());
            span.set("messaging.destination.partition.id", partition.to_string());
            if let Some(group) = group {
                span.set("messaging.consumer.group.name", group.clone());
            }
            span.set("messaging.kafka.offset", record.offset);
        }
        span
    };
    let records = records.iter().take_while(|record| record.offset < end);
    records.map(start).filter(Span::is_recorded).take(MAX_SPANS).collect()
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
