//! Headers of records: the Kafka binding of CloudEvents 1.0 in binary mode, and `traceparent`.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::event::EventKind;

/// `ce_source` of our events: the service that publishes them.
pub const SOURCE: &str = "/patient-service";
/// `content-type` of our events.
pub const CONTENT_TYPE: &str = "application/protobuf";
/// The header with the trace context, as W3C Trace Context has it.
pub const TRACEPARENT: &str = "traceparent";
/// The name and the value of a header; none is null.
pub type Header = (Vec<u8>, Option<Vec<u8>>);
/// The headers of a record, in order. Names may repeat and need not be UTF-8.
pub type Headers = Vec<Header>;

/// A header with a UTF-8 value.
pub fn header(name: impl Into<String>, value: impl Into<String>) -> Header {
    (name.into().into_bytes(), Some(value.into().into_bytes()))
}

/// The headers of an event: the required attributes of CloudEvents, and the trace context if there is one.
pub fn event_headers(id: Uuid, kind: EventKind, time: DateTime<Utc>, traceparent: Option<&str>) -> Headers {
    let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
    let id = id.to_string();
    let mut headers = Headers::new();
    for (name, value) in [
        ("ce_id", id.as_str()),
        ("ce_type", kind.name()),
        ("ce_source", SOURCE),
        ("ce_time", &time),
        ("ce_specversion", "1.0"),
        ("content-type", CONTENT_TYPE),
    ] {
        headers.push(header(name, value));
    }
    headers.extend(traceparent.map(|traceparent| header(TRACEPARENT, traceparent)));
    headers
}

/// The value of the last header with this name, if it is UTF-8.
pub fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().rfind(|(found, _)| found == name.as_bytes())?;
    std::str::from_utf8(value.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_headers_have_every_required_attribute() {
        let time = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let headers = event_headers(Uuid::nil(), EventKind::Created, time, Some("00-1-2-01"));
        assert_eq!(text(&headers, "ce_id"), Some("00000000-0000-0000-0000-000000000000"));
        assert_eq!(text(&headers, "ce_type"), Some("PATIENT_CREATED"));
        assert_eq!(text(&headers, "ce_source"), Some("/patient-service"));
        assert_eq!(text(&headers, "ce_time"), Some("2023-11-14T22:13:20.000000Z"));
        assert_eq!(text(&headers, "ce_specversion"), Some("1.0"));
        assert_eq!(text(&headers, "content-type"), Some("application/protobuf"));
        assert_eq!(text(&headers, TRACEPARENT), Some("00-1-2-01"));
        assert_eq!(text(&headers, "missing"), None);
    }
}
