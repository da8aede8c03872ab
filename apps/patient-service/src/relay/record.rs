//! Events as Kafka records, and the producer spans of sending them.

use chrono::Utc;
use codec::{
    event::EventKind,
    headers::{self, Headers},
};
use kafka::{Error, Record};
use telemetry::{Span, SpanKind, TraceContext, span};

use crate::outbox::OutboxRow;

/// The record of an event. Consumers continue the trace of `traceparent`.
pub(super) fn record(event: &OutboxRow, traceparent: Option<&str>) -> Record {
    Record {
        key: Some(event.patient_id.to_string().into_bytes()),
        value: Some(event.value.clone()),
        headers: headers_of(event, traceparent),
        timestamp: Utc::now(),
    }
}

fn headers_of(event: &OutboxRow, traceparent: Option<&str>) -> Headers {
    match event.event_type.parse::<EventKind>() {
        Ok(kind) => headers::event_headers(event.event_id, kind, event.created_at, traceparent),
        // A newer version of this service wrote a type that this one does not know. The value is complete.
        Err(_) => Headers::new(),
    }
}

/// The producer spans of a batch, each in the trace of its event.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// One for each event; empty if spans are not collected.
    spans: Vec<Option<Span>>,
}

impl Sending {
    /// Starts the spans of events for a partition; returns their records, which propagate the traces.
    pub(super) fn begin(topic: &str, partition: i32, events: &[OutboxRow]) -> (Self, Vec<Record>) {
        if !span::is_collected() {
            let records = events.iter().map(|event| record(event, event.traceparent.as_deref())).collect();
            return (Self::default(), records);
        }
        let start = |event: &OutboxRow| {
            let stored = event.traceparent.as_deref();
            let Some(context) = stored.and_then(TraceContext::parse).map(TraceContext::child) else {
                return (None, record(event, stored));
            };
            let mut span = Span::start(context, SpanKind::Producer, "send");
            if !span.is_recorded() {
                return (None, record(event, stored));
            }
            span.rename(|| format!("send {topic}"));
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "send");
            span.set("messaging.destination.name", topic.to_owned());
            span.set("messaging.destination.partition.id", partition.to_string());
            (Some(span), record(event, Some(&context.to_string())))
        };
        let (spans, records) = events.iter().map(start).unzip();
        (Self { spans }, records)
    }

    /// Ends the spans with the offsets of the records, or with the error.
    pub(super) fn end(self, result: &Result<Vec<i64>, Error>) {
        for (number, span) in self.spans.into_iter().enumerate() {
            let Some(mut span) = span else { continue };
            match result {
                Ok(offsets) => {
                    if let Some(offset) = offsets.get(number) {
                        span.set("messaging.kafka.offset", *offset);
                    }
                    span.end();
                }
                Err(error) => span.fail(error.outcome()),
            }
        }
    }
}
