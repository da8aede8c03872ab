//! Patient events: the typed form, its bytes, and the tolerant reading of what others publish on the same topic.

mod fields;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use prost::Message as _;
use prost_types::Timestamp;
use uuid::Uuid;

use self::fields::Fields;

#[expect(unreachable_pub, reason = "generated, and used in this module alone")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/patient.events.rs"));
}

/// What happened to a patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The patient was registered.
    Created,
    /// The patient's data were replaced.
    Updated,
    /// The patient was removed from the registry.
    Deleted,
}

impl Kind {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "PATIENT_CREATED",
            Self::Updated => "PATIENT_UPDATED",
            Self::Deleted => "PATIENT_DELETED",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        [Self::Created, Self::Updated, Self::Deleted].into_iter().find(|kind| kind.name() == name).ok_or(UnknownKind)
    }
}

/// An event of ours, about to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Names this event in every delivery of it.
    pub id: Uuid,
    /// Whom it happened to.
    pub patient_id: Uuid,
    /// What happened.
    pub kind: Kind,
    /// The version of the patient that it made.
    pub version: i64,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// The patient's name; empty for a deletion.
    pub name: &'a str,
    /// The patient's email; empty for a deletion.
    pub email: &'a str,
    /// When the patient was registered.
    pub registered_date: NaiveDate,
    /// When the patient was born.
    pub date_of_birth: NaiveDate,
}

impl Event<'_> {
    /// The value of the record.
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
            birth_year: self.date_of_birth.year(),
        };
        message.encode_to_vec()
    }
}

/// What a consumer learns from an event, be it ours or an original's. It leaves out what a consumer must not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Whom it happened to.
    pub patient_id: Uuid,
    /// What happened; none if the publisher did not say, or said something that we do not know.
    pub kind: Option<Kind>,
    /// The version of the patient that it made; none in the originals' events.
    pub version: Option<i64>,
    /// When it happened.
    pub time: Option<DateTime<Utc>>,
    /// When the patient was registered.
    pub registered_date: Option<NaiveDate>,
    /// When the patient was born.
    pub birth_year: Option<i32>,
}

impl Received {
    /// Reads the value of a record.
    ///
    /// # Errors
    /// If it cannot be told to which patient something happened. Anything else that is missing is left out.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        if value.is_empty() {
            return Err(DecodeError::Empty);
        }
        let fields = Fields::read(value).ok_or_else(|| DecodeError::Malformed(why_malformed(value)))?;
        Ok(Self {
            patient_id: fields.patient_id.parse().map_err(|_| DecodeError::NoPatient)?,
            kind: fields.event_type.parse().ok(),
            version: (fields.version > 0).then_some(fields.version),
            time: fields.event_time.and_then(date_time),
            registered_date: date(fields.registered_date),
            birth_year: (fields.birth_year != 0).then_some(fields.birth_year),
        })
    }
}

/// Why a record's value is no patient event. The text holds nothing of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// There is no value.
    Empty,
    /// It is not the message's encoding; the reason is protobuf's.
    Malformed(String),
    /// The patient's id is missing or no UUID.
    NoPatient,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the record has no value"),
            Self::Malformed(why) => write!(f, "the value is no PatientEvent: {why}"),
            Self::NoPatient => f.write_str("the event's patientId is no UUID"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The reason, in the words of the generated message.
fn why_malformed(value: &[u8]) -> String {
    wire::PatientEvent::decode(value).err().map_or_else(String::new, |error| error.to_string())
}

/// A point in time as protobuf has it.
fn timestamp(time: DateTime<Utc>) -> Timestamp {
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).expect("less than two billion");
    Timestamp { seconds: time.timestamp(), nanos }
}

/// An ISO 8601 date. The general parser takes as long as the rest of an event, so it is left what is unusual.
fn date(text: &str) -> Option<NaiveDate> {
    usual_date(text.as_bytes()).or_else(|| text.parse().ok())
}

/// A date of the form 2024-02-29.
fn usual_date(text: &[u8]) -> Option<NaiveDate> {
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
            kind: Kind::Updated,
            version: 3,
            time: DateTime::from_timestamp(1_700_000_000, 5_000_000).unwrap(),
            name: "Jane Doe",
            email: "jane@example.org",
            registered_date: NaiveDate::from_ymd_opt(2024, 2, 29).unwrap(),
            date_of_birth: NaiveDate::from_ymd_opt(1990, 12, 31).unwrap(),
        }
    }

    #[test]
    fn reads_what_it_writes() {
        let event = event();
        let received = Received::decode(&event.encode()).unwrap();
        assert_eq!(
            received,
            Received {
                patient_id: event.patient_id,
                kind: Some(Kind::Updated),
                version: Some(3),
                time: Some(event.time),
                registered_date: Some(event.registered_date),
                birth_year: Some(1990),
            }
        );
    }

    #[test]
    fn reads_the_originals() {
        let original = wire::PatientEvent {
            patient_id: Uuid::nil().to_string(),
            event_type: "PATIENT_MOVED".to_owned(),
            ..Default::default()
        };
        let received = Received::decode(&original.encode_to_vec()).unwrap();
        assert_eq!((received.kind, received.version, received.time), (None, None, None));
        assert_eq!((received.registered_date, received.birth_year), (None, None));
    }

    #[test]
    fn says_why_a_value_is_no_event_without_quoting_it() {
        assert_eq!(Received::decode(b""), Err(DecodeError::Empty));
        assert!(matches!(Received::decode(b"{\"patientId\": 1}"), Err(DecodeError::Malformed(_))));
        let nobody = wire::PatientEvent { name: "Secret".to_owned(), ..Default::default() };
        let error = Received::decode(&nobody.encode_to_vec()).unwrap_err();
        assert_eq!(error, DecodeError::NoPatient);
        assert!(!error.to_string().contains("Secret"));
    }

    #[test]
    fn dates_are_read_as_the_general_parser_reads_them() {
        let dates =
            ["2024-02-29", "2023-02-29", "0000-01-01", "2024-13-01", "2024-1-1", "+12024-01-01", "-001-01-01", ""];
        for text in dates.into_iter().chain(["2024/01/01", "20240-1-01", "2024-01-0x", "2024-01-01 "]) {
            assert_eq!(date(text), text.parse().ok(), "{text:?}");
        }
    }

    /// Both readings of the same bytes.
    fn assert_read_alike(value: &[u8]) {
        let message = wire::PatientEvent::decode(value).ok();
        let generated = message.as_ref().map(|message| Fields {
            patient_id: &message.patient_id,
            event_type: &message.event_type,
            version: message.version,
            event_time: message.event_time,
            registered_date: &message.registered_date,
            birth_year: message.birth_year,
        });
        assert_eq!(Fields::read(value), generated, "{value:?}");
    }

    proptest! {
        #[test]
        fn fields_are_those_of_the_generated_message(
            damage in vec((any::<Index>(), any::<u8>()), 0..3), more in vec(any::<u8>(), 0..8), cut in any::<Index>(),
        ) {
            // Twice, because of fields that come again the last one counts, and the parts of a message together.
            let mut bytes = [event().encode(), more, event().encode()].concat();
            for (at, byte) in damage {
                *at.get_mut(&mut bytes) = byte;
            }
            assert_read_alike(&bytes);
            assert_read_alike(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Received::decode(&bytes);
        }

        #[test]
        fn a_damaged_event_is_read_or_refused(at in any::<Index>(), byte: u8, cut in any::<Index>()) {
            let mut bytes = event().encode();
            *at.get_mut(&mut bytes) = byte;
            let _ = Received::decode(&bytes);
            let _ = Received::decode(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn any_event_is_read_as_it_was_written(
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
            let received = Received::decode(&event.encode()).unwrap();
            prop_assert_eq!(received.patient_id, event.patient_id);
            prop_assert_eq!(received.version, Some(version));
            prop_assert_eq!(received.time, Some(event.time));
            prop_assert_eq!(received.registered_date, Some(date));
        }
    }
}
