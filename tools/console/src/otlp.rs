//! Converts OTLP messages to the records of the store.

mod size;

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{span::SpanKind as OtlpSpanKind, status::StatusCode},
};
use prost::Message as _;

pub(crate) use self::size::Error;
use self::size::Kind;
use crate::store::{AttributeValue, Attributes, Line, SpanKind, SpanRecord, TraceId};

/// The spans of a message. Those without an id are left out.
///
/// # Errors
/// If the bytes are no such message, or one with too many parts.
pub(crate) fn spans(bytes: &[u8]) -> Result<Vec<(TraceId, SpanRecord)>, Error> {
    size::check(Kind::TraceRequest, bytes)?;
    let message = ExportTraceServiceRequest::decode(bytes)?;
    let mut spans = Vec::new();
    for resource in message.resource_spans {
        let service = service(resource.resource);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let (Ok(trace), Ok(id)) = (TraceId::try_from(&*span.trace_id), span.span_id.as_slice().try_into()) else {
                continue;
            };
            let kind = match OtlpSpanKind::try_from(span.kind) {
                Ok(OtlpSpanKind::Server) => SpanKind::Server,
                Ok(OtlpSpanKind::Client) => SpanKind::Client,
                Ok(OtlpSpanKind::Producer) => SpanKind::Producer,
                Ok(OtlpSpanKind::Consumer) => SpanKind::Consumer,
                _ => SpanKind::Internal,
            };
            let status = span.status.unwrap_or_default();
            let failed = status.code == StatusCode::Error as i32;
            let error = failed.then(|| if status.message.is_empty() { "error".into() } else { status.message.into() });
            let record = SpanRecord {
                id,
                parent: span.parent_span_id.as_slice().try_into().ok(),
                service: service.clone(),
                name: span.name.into(),
                kind,
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                error,
                attributes: attributes(span.attributes),
                events: span.events.into_iter().map(|event| (event.time_unix_nano, event.name.into())).collect(),
            };
            spans.push((trace, record));
        }
    }
    Ok(spans)
}

/// The log lines of a message.
///
/// # Errors
/// If the bytes are no such message, or one with too many parts.
pub(crate) fn lines(bytes: &[u8]) -> Result<Vec<Line>, Error> {
    size::check(Kind::LogsRequest, bytes)?;
    let message = ExportLogsServiceRequest::decode(bytes)?;
    let mut lines = Vec::new();
    for resource in message.resource_logs {
        let service = service(resource.resource);
        for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            let time = if record.time_unix_nano == 0 { record.observed_time_unix_nano } else { record.time_unix_nano };
            lines.push(Line {
                id: 0,
                time,
                service: service.clone(),
                severity: record.severity_text.into(),
                message: record.body.and_then(text).unwrap_or_else(|| "".into()),
                trace: record.trace_id.as_slice().try_into().ok(),
                span: record.span_id.as_slice().try_into().ok(),
                attributes: attributes(record.attributes),
            });
        }
    }
    Ok(lines)
}

fn service(resource: Option<Resource>) -> Arc<str> {
    let attributes = resource.unwrap_or_default().attributes;
    let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
    name.and_then(|attribute| text(attribute.value?)).unwrap_or_else(|| "unknown".into())
}

fn attributes(all: Vec<KeyValue>) -> Attributes {
    let value = |value: AnyValue| match value.value? {
        any_value::Value::StringValue(text) => Some(AttributeValue::Text(text.into())),
        any_value::Value::IntValue(number) => Some(AttributeValue::Integer(number)),
        any_value::Value::DoubleValue(number) => Some(AttributeValue::Number(number)),
        any_value::Value::BoolValue(flag) => Some(AttributeValue::Flag(flag)),
        // Lists, maps and bytes: nothing of ours has them.
        _ => None,
    };
    all.into_iter().filter_map(|attribute| Some((attribute.key.into(), value(attribute.value?)?))).collect()
}

fn text(value: AnyValue) -> Option<Arc<str>> {
    match value.value? {
        any_value::Value::StringValue(text) => Some(text.into()),
        _ => None,
    }
}
