use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
};
use serde_json::Value as Json;
use telemetry::log::{Level, Line};

use super::{Attributes, SAMPLED, attribute, nanoseconds, resource, scope};

/// Log lines of one process.
pub(crate) fn logs(attributes: &Attributes, lines: Vec<Line>) -> ExportLogsServiceRequest {
    let log_records = lines.into_iter().map(record).collect();
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: resource(attributes),
            scope_logs: vec![ScopeLogs { scope: scope(), log_records, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn record(line: Line) -> LogRecord {
    let Line { time, level, target, mut fields, span } = line;
    let trace = fields.shift_remove("trace_id");
    let trace = trace.as_ref().and_then(Json::as_str);
    let body = fields.shift_remove("message").map(any);
    let mut attributes: Vec<_> = fields
        .into_iter()
        .map(|(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() })
        .collect();
    attributes.push(attribute("target", target.into()));
    // A line can be about another trace than the one that its work belongs to.
    let span = span.filter(|span| trace == Some(&span.trace_id()));
    let trace = trace.and_then(|digits| u128::from_str_radix(digits, 16).ok());
    LogRecord {
        time_unix_nano: nanoseconds(time),
        observed_time_unix_nano: nanoseconds(time),
        severity_number: severity(level).into(),
        severity_text: level.as_str().to_owned(),
        body,
        attributes,
        flags: if span.is_some_and(|span| span.sampled()) { SAMPLED } else { 0 },
        trace_id: trace.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        span_id: span.map(|span| span.ids().1.to_vec()).unwrap_or_default(),
        ..LogRecord::default()
    }
}

fn severity(level: Level) -> SeverityNumber {
    match level {
        Level::ERROR => SeverityNumber::Error,
        Level::WARN => SeverityNumber::Warn,
        Level::INFO => SeverityNumber::Info,
        Level::DEBUG => SeverityNumber::Debug,
        Level::TRACE => SeverityNumber::Trace,
    }
}

fn any(json: Json) -> AnyValue {
    let value = match json {
        Json::Bool(value) => any_value::Value::BoolValue(value),
        Json::String(text) => any_value::Value::StringValue(text),
        json => match (json.as_i64(), json.as_f64()) {
            (Some(number), _) => any_value::Value::IntValue(number),
            (None, Some(number)) => any_value::Value::DoubleValue(number),
            (None, None) => any_value::Value::StringValue(json.to_string()),
        },
    };
    AnyValue { value: Some(value) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;
    use telemetry::TraceContext;

    use super::*;

    #[test]
    fn a_line_is_a_record_with_its_place_in_the_trace() {
        let work = TraceContext::root();
        let fields = json!({"trace_id": work.trace_id(), "message": "stored", "version": 2, "late": true, "part": 0.5});
        let line = Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1),
            level: Level::WARN,
            target: "patient_service::relay",
            fields: fields.as_object().unwrap().clone(),
            span: Some(work),
        };
        let found = record(line.clone());
        assert_eq!(
            (found.time_unix_nano, found.severity_number, found.severity_text.as_str()),
            (1_000_000, 13, "WARN")
        );
        assert_eq!(found.body, Some(any("stored".into())));
        let attributes: Vec<_> = found.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        assert_eq!(attributes, ["version", "late", "part", "target"]);
        assert_eq!((&found.trace_id[..], &found.span_id[..]), (&work.ids().0[..], &work.ids().1[..]));

        let other = record(Line { span: Some(TraceContext::root()), ..line });
        assert_eq!((&other.trace_id[..], &other.span_id[..]), (&work.ids().0[..], &[][..]));
    }
}
