//! Converts spans and log lines to the SDK's types.

use std::{borrow::Cow, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    logs::{AnyValue, LogRecord, Severity},
    trace::{Event, Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::{
    logs::SdkLogRecord,
    trace::{SpanData, SpanEvents, SpanLinks},
};
use serde_json::Value as Json;
use telemetry::{
    TraceContext,
    log::{Level, Line},
    span::{self, FinishedSpan, Value},
};

pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(env!("CARGO_PKG_NAME")).build()
}

pub(crate) fn span(finished: FinishedSpan, scope: InstrumentationScope) -> SpanData {
    let FinishedSpan { context, kind, name, started, duration, attributes, events, link, error } = finished;
    let (trace_id, span_id, parent) = context.ids();
    let ids = (TraceId::from_bytes(trace_id), SpanId::from_bytes(span_id));
    let mut attributes: Vec<_> = attributes.into_iter().map(|(name, value)| attribute(name, value)).collect();
    let status = error.map_or(Status::Unset, |error| {
        attributes.push(attribute("error.type", Value::Text(error)));
        Status::error("")
    });
    let event = |(after, name): (Duration, Cow<'static, str>)| Event::new(name, started + after, Vec::new(), 0);
    let mut kept = SpanEvents::default();
    kept.events = events.into_iter().map(event).collect();
    let mut links = SpanLinks::default();
    links.links = link.into_iter().map(linked).collect();
    SpanData {
        span_context: SpanContext::new(ids.0, ids.1, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: false,
        span_kind: kind_of(kind),
        name,
        start_time: started,
        end_time: started + duration,
        attributes,
        dropped_attributes_count: 0,
        events: kept,
        links,
        status,
        instrumentation_scope: scope,
    }
}

/// A link to a span of another program.
fn linked(other: TraceContext) -> Link {
    let (trace_id, span_id, _) = other.ids();
    let flags = if other.sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let ids = (TraceId::from_bytes(trace_id), SpanId::from_bytes(span_id));
    Link::new(SpanContext::new(ids.0, ids.1, flags, true, TraceState::NONE), Vec::new(), 0)
}

fn kind_of(kind: span::SpanKind) -> SpanKind {
    match kind {
        span::SpanKind::Internal => SpanKind::Internal,
        span::SpanKind::Server => SpanKind::Server,
        span::SpanKind::Client => SpanKind::Client,
        span::SpanKind::Producer => SpanKind::Producer,
        span::SpanKind::Consumer => SpanKind::Consumer,
    }
}

fn attribute(name: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    }
}

pub(crate) fn line(line: Line, record: &mut SdkLogRecord) {
    let Line { time, level, target, mut fields, span } = line;
    let trace = fields.shift_remove("trace_id");
    let trace = trace.as_ref().and_then(Json::as_str);
    record.set_timestamp(time);
    record.set_observed_timestamp(time);
    record.set_severity_number(severity(level));
    record.set_severity_text(level.as_str());
    if let Some(message) = fields.shift_remove("message") {
        record.set_body(any(message));
    }
    record.add_attributes(fields.into_iter().map(|(name, value)| (name, any(value))));
    record.add_attribute("target", target);
    // A line can name another trace than that of the current span.
    let span = span.filter(|span| trace == Some(&span.trace_id()));
    if let Some(trace) = trace.and_then(|digits| u128::from_str_radix(digits, 16).ok()) {
        let span_id = span.map_or(SpanId::INVALID, |span| SpanId::from_bytes(span.ids().1));
        let flags = span.is_some_and(|span| span.sampled()).then_some(TraceFlags::SAMPLED);
        record.set_trace_context(TraceId::from(trace), span_id, flags);
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warn,
        Level::INFO => Severity::Info,
        Level::DEBUG => Severity::Debug,
        Level::TRACE => Severity::Trace,
    }
}

fn any(json: Json) -> AnyValue {
    match json {
        Json::Bool(value) => AnyValue::Boolean(value),
        Json::String(text) => text.into(),
        json => match (json.as_i64(), json.as_f64()) {
            (Some(number), _) => AnyValue::Int(number),
            (None, Some(number)) => AnyValue::Double(number),
            (None, None) => json.to_string().into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::logs::{Logger as _, LoggerProvider as _};
    use opentelemetry_proto::{
        tonic::{common::v1::any_value, logs::v1::LogRecord as Message},
        transform::{common::tonic::ResourceAttributesWithSchema, logs::tonic::group_logs_by_resource_and_scope},
    };
    use opentelemetry_sdk::logs::{LogBatch, SdkLoggerProvider};
    use serde_json::json;

    use super::*;

    /// A line as the exporter sends it.
    fn message(line: Line) -> Message {
        let mut record = SdkLoggerProvider::builder().build().logger("").create_log_record();
        super::line(line, &mut record);
        let scope = scope();
        let batch = [(&record, &scope)];
        let resource = ResourceAttributesWithSchema::default();
        let mut sent = group_logs_by_resource_and_scope(&LogBatch::new(&batch), &resource);
        sent.remove(0).scope_logs.remove(0).log_records.remove(0)
    }

    #[test]
    fn a_link_has_the_ids_of_the_other_span() {
        let (own, other) = (TraceContext::root(), TraceContext::root());
        let finished = FinishedSpan {
            context: own,
            kind: span::SpanKind::Server,
            name: "GET /patients".into(),
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            attributes: Vec::new(),
            events: Vec::new(),
            link: Some(other),
            error: None,
        };
        let converted = span(finished, scope());
        let [link] = &*converted.links.links else { panic!("{:?}", converted.links) };
        assert_eq!(link.span_context.trace_id().to_bytes(), other.ids().0);
        assert_eq!(link.span_context.span_id().to_bytes(), other.ids().1);
        assert_eq!(converted.span_context.trace_id().to_bytes(), own.ids().0);
    }

    #[test]
    fn a_log_record_has_the_ids_of_its_trace_and_span() {
        let work = TraceContext::root();
        let fields = json!({"trace_id": work.trace_id(), "message": "stored", "version": 2, "late": true, "part": 0.5});
        let line = Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1),
            level: Level::WARN,
            target: "patient_service::relay",
            fields: fields.as_object().unwrap().clone(),
            span: Some(work),
        };
        let found = message(line.clone());
        assert_eq!(
            (found.time_unix_nano, found.severity_number, found.severity_text.as_str()),
            (1_000_000, 13, "WARN")
        );
        assert_eq!(found.body.unwrap().value, Some(any_value::Value::StringValue("stored".to_owned())));
        let attributes: Vec<_> = found.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        assert_eq!(attributes, ["version", "late", "part", "target"]);
        assert_eq!((&found.trace_id[..], &found.span_id[..]), (&work.ids().0[..], &work.ids().1[..]));

        // Zeros say that there is no span.
        let other = message(Line { span: Some(TraceContext::root()), ..line });
        assert_eq!((&other.trace_id[..], &other.span_id[..]), (&work.ids().0[..], &[0; 8][..]));
    }
}
