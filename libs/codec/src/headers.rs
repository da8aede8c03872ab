//! The headers of a record: the Kafka binding of CloudEvents 1.0 in binary mode, and the trace.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::event::Kind;

/// The source of our events, by the name of the service that publishes them.
pub const SOURCE: &str = "/patient-service";
/// The media type of a record's value.
pub const CONTENT_TYPE: &str = "application/protobuf";
/// The header that carries the trace.
pub const TRACEPARENT: &str = "traceparent";
/// Headers of a record as Kafka has them: names and values, in order. A name may come more than once, need not be text, and
/// may have no value.
pub type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A header of text.
pub fn header(name: impl Into<String>, text: impl Into<String>) -> (Vec<u8>, Option<Vec<u8>>) {
    (name.into().into_bytes(), Some(text.into().into_bytes()))
}

/// The headers of an event of ours.
pub fn of_event(id: Uuid, kind: Kind, time: DateTime<Utc>, traceparent: Option<&str>) -> Headers {
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

/// The text of the last header with this name, if it is there and is text.
pub fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().rfind(|(found, _)| found == name.as_bytes())?;
    std::str::from_utf8(value.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_every_required_attribute() {
        let time = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let headers = of_event(Uuid::nil(), Kind::Created, time, Some("00-1-2-01"));
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
