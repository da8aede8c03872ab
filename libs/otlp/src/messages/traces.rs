use std::{borrow::Cow, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status},
};
use telemetry::span::{Finished, Kind, Value};

use super::{Attributes, SAMPLED, attribute, nanoseconds, resource, scope};

/// Spans of one process.
pub(crate) fn traces(attributes: &Attributes, spans: Vec<Finished>) -> ExportTraceServiceRequest {
    let spans = spans.into_iter().map(message).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: resource(attributes),
            scope_spans: vec![ScopeSpans { scope: scope(), spans, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn message(finished: Finished) -> Span {
    let Finished { context, kind, name, started, lasted, attributes, events, error } = finished;
    let (trace_id, span_id, parent) = context.ids();
    let mut attributes: Vec<_> = attributes.into_iter().map(|(name, value)| attribute(name, value)).collect();
    let status = error.map(|error| {
        attributes.push(attribute("error.type", Value::Text(error)));
        Status { message: String::new(), code: status::StatusCode::Error.into() }
    });
    let event = |(after, name): (Duration, Cow<'static, str>)| span::Event {
        time_unix_nano: nanoseconds(started + after),
        name: name.into_owned(),
        ..span::Event::default()
    };
    Span {
        trace_id: trace_id.to_vec(),
        span_id: span_id.to_vec(),
        parent_span_id: parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: name.into_owned(),
        kind: kind_of(kind).into(),
        start_time_unix_nano: nanoseconds(started),
        end_time_unix_nano: nanoseconds(started + lasted),
        attributes,
        events: events.into_iter().map(event).collect(),
        status,
        ..Span::default()
    }
}

fn kind_of(kind: Kind) -> span::SpanKind {
    match kind {
        Kind::Internal => span::SpanKind::Internal,
        Kind::Server => span::SpanKind::Server,
        Kind::Client => span::SpanKind::Client,
        Kind::Producer => span::SpanKind::Producer,
        Kind::Consumer => span::SpanKind::Consumer,
    }
}
