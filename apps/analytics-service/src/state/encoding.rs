//! Encoding of values in the file.

use std::{collections::BTreeMap, fmt::Write as _};

use chrono::{DateTime, NaiveDate, Utc};
use codec::headers::Headers;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::counts::{PatientState, valid_date, valid_year};

/// Stands for an unknown year, as every year that is out of range.
const UNKNOWN_YEAR: i32 = 0;
/// Stands for an unknown date, as every date that is out of range: 0001-01-01.
const UNKNOWN_DAY: i32 = -719_162;

pub(super) fn encode_year(year: Option<i32>) -> i32 {
    year.unwrap_or(UNKNOWN_YEAR)
}

/// Several rows may have an unknown year or date: those that an older version of the service took for valid.
pub(super) fn decode_year(number: i32) -> Option<i32> {
    valid_year(number)
}

/// Days after 1970-01-01.
pub(super) fn encode_date(date: Option<NaiveDate>) -> i32 {
    date.map_or(UNKNOWN_DAY, |date| date.to_epoch_days())
}

pub(super) fn decode_date(number: i32) -> Option<NaiveDate> {
    NaiveDate::from_epoch_days(number).and_then(valid_date)
}

/// Stands for an unknown time.
const UNKNOWN_TIME: i64 = i64::MIN;

/// Stands for no partition.
const NO_PARTITION: i32 = -1;

pub(super) fn encode_partition(partition: Option<i32>) -> i32 {
    partition.unwrap_or(NO_PARTITION)
}

pub(super) fn decode_partition(number: i32) -> Option<i32> {
    (number != NO_PARTITION).then_some(number)
}

/// Milliseconds since 1970.
pub(super) fn encode_time(time: Option<DateTime<Utc>>) -> i64 {
    time.map_or(UNKNOWN_TIME, |time| time.timestamp_millis())
}

pub(super) fn decode_time(number: i64) -> Option<DateTime<Utc>> {
    (number != UNKNOWN_TIME).then(|| DateTime::from_timestamp_millis(number)).flatten()
}

/// Bytes of an encoded patient state.
pub(super) const PATIENT_STATE_BYTES: usize = 29;

/// Encodes a patient state in the format that the migrations of the table describe.
pub(super) fn encode_patient_state(patient: &PatientState) -> [u8; PATIENT_STATE_BYTES] {
    let mut bytes = [0; PATIENT_STATE_BYTES];
    bytes[..8].copy_from_slice(&patient.version.to_be_bytes());
    bytes[8] = patient.active.into();
    bytes[9..13].copy_from_slice(&encode_year(patient.birth_year).to_be_bytes());
    bytes[13..17].copy_from_slice(&encode_date(patient.registered).to_be_bytes());
    bytes[17..25].copy_from_slice(&patient.changed.unwrap_or(UNKNOWN_TIME).to_be_bytes());
    bytes[25..].copy_from_slice(&encode_partition(patient.partition).to_be_bytes());
    bytes
}

/// Decodes a patient state; none if the bytes are invalid. Older versions of the service wrote no partition, and the first of
/// them no time.
pub(super) fn decode_patient_state(bytes: &[u8]) -> Option<PatientState> {
    let (version, bytes) = bytes.split_first_chunk()?;
    let ([active], bytes) = bytes.split_first_chunk()?;
    let (birth_year, bytes) = bytes.split_first_chunk()?;
    let (registered, bytes) = bytes.split_first_chunk()?;
    let (changed, bytes) = match bytes.split_first_chunk() {
        Some((changed, bytes)) => (i64::from_be_bytes(*changed), bytes),
        None => (UNKNOWN_TIME, bytes),
    };
    let partition = if bytes.is_empty() { NO_PARTITION } else { i32::from_be_bytes(bytes.try_into().ok()?) };
    Some(PatientState {
        version: i64::from_be_bytes(*version),
        active: *active != 0,
        birth_year: decode_year(i32::from_be_bytes(*birth_year)),
        registered: decode_date(i32::from_be_bytes(*registered)),
        changed: (changed != UNKNOWN_TIME).then_some(changed),
        partition: decode_partition(partition),
    })
}

/// Encodes headers as a JSON array of pairs: name and value as hexadecimal bytes, null for a null value.
pub(super) fn encode_headers(headers: &Headers) -> String {
    let hex = |bytes: &Vec<u8>| {
        bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    Json::from_iter(headers.iter().map(|(name, value)| serde_json::json!([hex(name), value.as_ref().map(hex)])))
        .to_string()
}

/// Decodes headers. An older version of the service wrote an object of names as text and values as hexadecimal bytes.
pub(super) fn decode_headers(json: &str) -> Headers {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Pairs(Vec<(String, Option<String>)>),
        Object(BTreeMap<String, String>),
    }
    let unhex = |text: &str| -> Vec<u8> {
        let pairs = text.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
        pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
    };
    match serde_json::from_str(json) {
        Ok(Stored::Pairs(pairs)) => {
            pairs.into_iter().map(|(name, value)| (unhex(&name), value.as_deref().map(unhex))).collect()
        }
        Ok(Stored::Object(object)) => {
            object.into_iter().map(|(name, value)| (name.into_bytes(), Some(unhex(&value)))).collect()
        }
        Err(_) => Headers::new(),
    }
}

#[cfg(test)]
mod tests {
    use codec::event::{EventKind, ReceivedEvent};
    use uuid::Uuid;

    use super::*;
    use crate::counts::Counts;

    #[test]
    fn dates_are_days() {
        for text in ["1970-01-01", "2024-02-29", "1900-01-01", "2100-12-31"] {
            let date = text.parse().unwrap();
            assert_eq!(decode_date(encode_date(Some(date))), Some(date));
        }
        assert_eq!((decode_date(encode_date(None)), decode_year(encode_year(None))), (None, None));
        assert_eq!(NaiveDate::from_epoch_days(UNKNOWN_DAY), NaiveDate::from_ymd_opt(1, 1, 1));
    }

    #[test]
    fn patient_states_survive_a_round_trip() {
        let date = |year, month, day| NaiveDate::from_ymd_opt(year, month, day);
        let registered = [None, date(1969, 12, 31), date(1900, 1, 1), date(2100, 12, 31)];
        let years = [None, Some(1969), Some(1900), Some(2100)];
        for (version, (birth_year, registered)) in
            [0, 1, -1, i64::MAX].into_iter().zip(years.into_iter().zip(registered))
        {
            for active in [false, true] {
                for changed in [None, Some(0), Some(-1), Some(i64::MAX)] {
                    for partition in [None, Some(0), Some(i32::MAX)] {
                        let patient = PatientState { version, active, birth_year, registered, changed, partition };
                        assert_eq!(decode_patient_state(&encode_patient_state(&patient)), Some(patient));
                        let earlier = PatientState { partition: None, ..patient };
                        assert_eq!(decode_patient_state(&encode_patient_state(&patient)[..25]), Some(earlier));
                        let first = PatientState { changed: None, ..earlier };
                        assert_eq!(decode_patient_state(&encode_patient_state(&patient)[..17]), Some(first));
                    }
                }
            }
        }
        assert_eq!(decode_patient_state(&[0; 16]), None);
        assert_eq!(decode_patient_state(&[0; PATIENT_STATE_BYTES - 1]), None);
        assert_eq!(decode_patient_state(&[0; PATIENT_STATE_BYTES + 1]), None);
    }

    #[test]
    fn dates_out_of_range_of_an_older_state_are_unknown() {
        for (year, date) in
            [(1, NaiveDate::from_ymd_opt(1, 1, 1)), (i32::MIN, Some(NaiveDate::MIN)), (9999, Some(NaiveDate::MAX))]
        {
            let older =
                PatientState { version: 1, birth_year: Some(year), registered: date, ..PatientState::default() };
            let unknown = PatientState { birth_year: None, registered: None, ..older };
            assert_eq!(decode_patient_state(&encode_patient_state(&older)), Some(unknown));
        }
    }

    #[test]
    fn a_date_that_stands_for_unknown_counts_no_registration_twice() {
        let (mut counts, mut patient) = (Counts::default(), PatientState::default());
        for version in 1..5 {
            let event = ReceivedEvent {
                patient_id: Uuid::nil(),
                kind: Some(if version == 1 { EventKind::Created } else { EventKind::Updated }),
                version: Some(version),
                time: None,
                registered_date: NaiveDate::from_epoch_days(UNKNOWN_DAY),
                birth_year: Some(UNKNOWN_YEAR),
            };
            counts.apply(&mut patient, &event);
            // Each event is in a transaction of its own.
            patient = decode_patient_state(&encode_patient_state(&patient)).unwrap();
        }
        assert_eq!((counts.registrations, counts.births), ([(None, 1)].into(), [(None, 1)].into()));
    }

    #[test]
    fn headers_survive_a_round_trip() {
        let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
        let headers = vec![
            header(b"b", Some(&[0, 255, 16])),
            header(b"a", Some(&[])),
            header(b"b", Some(b"again")),
            header(b"a", None),
            header(b"\xff", Some(b"no text")),
        ];
        assert_eq!(decode_headers(&encode_headers(&headers)), headers);
        assert_eq!(decode_headers(&encode_headers(&Headers::new())), Headers::new());
    }

    #[test]
    fn headers_of_older_dead_letters_are_decoded() {
        let header = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), Some(value.to_vec()));
        assert_eq!(decode_headers(r#"{"a":"00ff10","b":""}"#), [header("a", &[0, 255, 16]), header("b", &[])]);
        assert_eq!(decode_headers("{}"), Headers::new());
    }
}
