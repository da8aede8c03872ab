//! Patient events: encoding, and tolerant decoding of those that the original services publish on the same topic.

mod fields;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use prost::Message as _;
use prost_types::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use self::fields::Fields;

#[expect(unreachable_pub, reason = "generated, and used in this module alone")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/patient.events.rs"));
}

/// Stands for a year of birth that is not known: protobuf has no null.
const UNKNOWN_YEAR: i32 = 0;

/// The kind of change of a patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The patient was registered.
    Created,
    /// The patient's data were replaced.
    Updated,
    /// The patient was removed from the registry.
    Deleted,
}

impl EventKind {
    /// `event_type` of the message and `ce_type` of the headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "PATIENT_CREATED",
            Self::Updated => "PATIENT_UPDATED",
            Self::Deleted => "PATIENT_DELETED",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An event type that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the event type is unknown")]
pub struct UnknownEventKind;

impl FromStr for EventKind {
    type Err = UnknownEventKind;

    fn from_str(name: &str) -> Result<Self, UnknownEventKind> {
        [Self::Created, Self::Updated, Self::Deleted]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or(UnknownEventKind)
    }
}

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Identifies the event; the same in every delivery.
    pub id: Uuid,
    /// The patient.
    pub patient_id: Uuid,
    /// The kind of change.
    pub kind: EventKind,
    /// The patient's version after the change.
    pub version: i64,
    /// Time of the change by the clock of patient-service, taken before the commit. Versions give the order.
    pub time: DateTime<Utc>,
    /// The patient's name; empty for a deletion.
    pub name: &'a str,
    /// The patient's email; empty for a deletion.
    pub email: &'a str,
    /// When the patient was registered.
    pub registered_date: NaiveDate,
    /// When the patient was born. The year is published while the patient is registered.
    pub date_of_birth: NaiveDate,
}

impl Event<'_> {
    /// The event as the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        let message = wire::PatientEvent {
            patient_id: self.patient_id.to_string(),
            name: self.name.to_owned(),
            email: self.email.to_owned(),
            event_type: self.kind.name().to_owned(),
            event_id: self.id.to_string(),
            version: self.version,
            event_time: Some(timestamp(self.time)),
            registered_date: self.registered_date.to_string(),
            // The last event of a deleted patient stays on a compacted topic for ever.
            birth_year: if self.kind == EventKind::Deleted { UNKNOWN_YEAR } else { self.date_of_birth.year() },
        };
        message.encode_to_vec()
    }
}

/// A decoded event, ours or an original's, without the personal data that a consumer must not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// The patient.
    pub patient_id: Uuid,
    /// The kind of change; none if it is missing or unknown.
    pub kind: Option<EventKind>,
    /// The patient's version after the change; none in events of the originals.
    pub version: Option<i64>,
    /// Time of the change by the clock of patient-service, taken before the commit. Versions give the order.
    pub time: Option<DateTime<Utc>>,
    /// When the patient was registered.
    pub registered_date: Option<NaiveDate>,
    /// The patient's year of birth.
    pub birth_year: Option<i32>,
}

impl ReceivedEvent {
    /// Decodes the value of a record. Only the patient id is required.
    ///
    /// # Errors
    /// If the value is no `PatientEvent` or has no valid patient id.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        if value.is_empty() {
            return Err(DecodeError::Empty);
        }
        let fields = Fields::decode(value).ok_or_else(|| DecodeError::Malformed(protobuf_error(value)))?;
        Ok(Self {
            patient_id: fields.patient_id.parse().map_err(|_| DecodeError::InvalidPatientId)?,
            kind: fields.event_type.parse().ok(),
            version: (fields.version > 0).then_some(fields.version),
            time: fields.event_time.and_then(date_time),
            registered_date: date(fields.registered_date),
            birth_year: (fields.birth_year != UNKNOWN_YEAR).then_some(fields.birth_year),
        })
    }
}

/// Why a record's value cannot be decoded as a patient event. The message holds nothing of the value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// There is no value.
    #[error("the record has no value")]
    Empty,
    /// The value is no `PatientEvent`; with protobuf's reason.
    #[error("the value is no PatientEvent: {0}")]
    Malformed(String),
    /// The patient's id is missing or no UUID.
    #[error("the event's patientId is no UUID")]
    InvalidPatientId,
}

/// The error of the generated message, which [`Fields`] does not have.
fn protobuf_error(value: &[u8]) -> String {
    wire::PatientEvent::decode(value).err().map_or_else(String::new, |error| error.to_string())
}

/// A time as a protobuf `Timestamp`.
fn timestamp(time: DateTime<Utc>) -> Timestamp {
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).expect("less than two billion");
    Timestamp { seconds: time.timestamp(), nanos }
}

/// Parses an ISO 8601 date. chrono's parser takes as long as the rest of an event, so it gets only unusual forms.
fn date(text: &str) -> Option<NaiveDate> {
    common_date(text.as_bytes()).or_else(|| text.parse().ok())
}

/// Parses a date of the form 2024-02-29.
fn common_date(text: &[u8]) -> Option<NaiveDate> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return None };
    let number = |digits: &[&u8]| {
        digits
            .iter()
            .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(**digit - b'0')))
    };
    let year = i32::try_from(number(&[y1, y2, y3, y4])?).ok()?;
    NaiveDate::from_ymd_opt(year, number(&[m1, m2])?, number(&[d1, d2])?)
}

fn date_time(timestamp: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(timestamp.seconds, u32::try_from(timestamp.nanos).ok()?)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    fn event() -> Event<'static> {
        Event {
            id: Uuid::from_u128(7),
            patient_id: Uuid::from_u128(42),
            kind: EventKind::Updated,
            version: 3,
            time: DateTime::from_timestamp(1_700_000_000, 5_000_000).unwrap(),
            name: "Jane Doe",
            email: "jane@example.org",
            registered_date: NaiveDate::from_ymd_opt(2024, 2, 29).unwrap(),
            date_of_birth: NaiveDate::from_ymd_opt(1990, 12, 31).unwrap(),
        }
    }

    #[test]
    fn an_event_survives_a_round_trip() {
        let event = event();
        let received = ReceivedEvent::decode(&event.encode()).unwrap();
        assert_eq!(
            received,
            ReceivedEvent {
                patient_id: event.patient_id,
                kind: Some(EventKind::Updated),
                version: Some(3),
                time: Some(event.time),
                registered_date: Some(event.registered_date),
                birth_year: Some(1990),
            }
        );
    }

    #[test]
    fn a_deletion_has_what_is_counted_and_no_birth_year() {
        let deleted = Event { kind: EventKind::Deleted, name: "", email: "", ..event() };
        let received = ReceivedEvent::decode(&deleted.encode()).unwrap();
        assert_eq!((received.registered_date, received.birth_year), (Some(deleted.registered_date), None));
    }

    #[test]
    fn events_of_the_original_services_are_decoded() {
        let original = wire::PatientEvent {
            patient_id: Uuid::nil().to_string(),
            event_type: "PATIENT_MOVED".to_owned(),
            ..Default::default()
        };
        let received = ReceivedEvent::decode(&original.encode_to_vec()).unwrap();
        assert_eq!((received.kind, received.version, received.time), (None, None, None));
        assert_eq!((received.registered_date, received.birth_year), (None, None));
    }

    #[test]
    fn decode_errors_do_not_quote_the_value() {
        assert_eq!(ReceivedEvent::decode(b""), Err(DecodeError::Empty));
        assert!(matches!(ReceivedEvent::decode(b"{\"patientId\": 1}"), Err(DecodeError::Malformed(_))));
        let anonymous = wire::PatientEvent { name: "Secret".to_owned(), ..Default::default() };
        let error = ReceivedEvent::decode(&anonymous.encode_to_vec()).unwrap_err();
        assert_eq!(error, DecodeError::InvalidPatientId);
        assert!(!error.to_string().contains("Secret"));
    }

    #[test]
    fn dates_are_parsed_as_chrono_parses_them() {
        let dates =
            ["2024-02-29", "2023-02-29", "0000-01-01", "2024-13-01", "2024-1-1", "+12024-01-01", "-001-01-01", ""];
        for text in dates.into_iter().chain(["2024/01/01", "20240-1-01", "2024-01-0x", "2024-01-01 "]) {
            assert_eq!(date(text), text.parse().ok(), "{text:?}");
        }
    }

    /// Both decoders agree.
    fn assert_decoded_alike(value: &[u8]) {
        let message = wire::PatientEvent::decode(value).ok();
        let generated = message.as_ref().map(|message| Fields {
            patient_id: &message.patient_id,
            event_type: &message.event_type,
            version: message.version,
            event_time: message.event_time,
            registered_date: &message.registered_date,
            birth_year: message.birth_year,
        });
        assert_eq!(Fields::decode(value), generated, "{value:?}");
    }

    proptest! {
        #[test]
        fn fields_match_the_generated_message(
            damage in vec((any::<Index>(), any::<u8>()), 0..3), more in vec(any::<u8>(), 0..8), cut in any::<Index>(),
        ) {
            // Twice, because of fields that come again the last one counts, and the parts of a message together.
            let mut bytes = [event().encode(), more, event().encode()].concat();
            for (at, byte) in damage {
                *at.get_mut(&mut bytes) = byte;
            }
            assert_decoded_alike(&bytes);
            assert_decoded_alike(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_rejected(bytes in vec(any::<u8>(), 0..200)) {
            let _ = ReceivedEvent::decode(&bytes);
        }

        #[test]
        fn a_damaged_event_is_decoded_or_rejected(at in any::<Index>(), byte: u8, cut in any::<Index>()) {
            let mut bytes = event().encode();
            *at.get_mut(&mut bytes) = byte;
            let _ = ReceivedEvent::decode(&bytes);
            let _ = ReceivedEvent::decode(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn any_event_survives_a_round_trip(
            id: u128, version in 1..=i64::MAX, name: String, email: String,
            days in -700_000..2_900_000_i64,
            seconds in -62_000_000_000..253_000_000_000_i64,
        ) {
            let date = NaiveDate::default() + TimeDelta::days(days);
            let event = Event {
                patient_id: Uuid::from_u128(id),
                version,
                name: &name,
                email: &email,
                registered_date: date,
                time: DateTime::from_timestamp(seconds, 0).unwrap(),
                ..event()
            };
            let received = ReceivedEvent::decode(&event.encode()).unwrap();
            prop_assert_eq!(received.patient_id, event.patient_id);
            prop_assert_eq!(received.version, Some(version));
            prop_assert_eq!(received.time, Some(event.time));
            prop_assert_eq!(received.registered_date, Some(date));
        }
    }
}
