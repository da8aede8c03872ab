//! Spans as OpenTelemetry's messages.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use telemetry::span::{Finished, Kind, Value};

use crate::proto::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status},
};

/// The flag of W3C Trace Context that says that a trace is sampled; others are not recorded.
const SAMPLED: u32 = 1;

/// Spans of one process.
pub(crate) fn request(resource: &BTreeMap<String, String>, spans: Vec<Finished>) -> ExportTraceServiceRequest {
    let attributes = resource.iter().map(|(name, value)| attribute(name, Value::from(value.clone()))).collect();
    let scope = InstrumentationScope { name: env!("CARGO_PKG_NAME").to_owned(), ..InstrumentationScope::default() };
    let spans = spans.into_iter().map(message).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
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
    let event = |(after, name): (Duration, std::borrow::Cow<'static, str>)| span::Event {
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

fn attribute(name: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn nanoseconds(time: SystemTime) -> u64 {
    // A clock before 1970 is nobody's.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
