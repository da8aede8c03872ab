//! How values are written in the file.

use std::{collections::BTreeMap, fmt::Write as _};

use chrono::NaiveDate;
use codec::headers::Headers;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::counts::PatientState;

/// Stands for a year that is not known: there was no year 0.
const NO_YEAR: i32 = 0;
/// Stands for a date that is not known: 0001-01-01.
const NO_DAY: i32 = -719_162;

pub(super) fn year_number(year: Option<i32>) -> i32 {
    year.unwrap_or(NO_YEAR)
}

pub(super) fn year_of(number: i32) -> Option<i32> {
    (number != NO_YEAR).then_some(number)
}

/// Days after 1970-01-01.
pub(super) fn day_number(date: Option<NaiveDate>) -> i32 {
    date.map_or(NO_DAY, |date| date.to_epoch_days())
}

pub(super) fn date_of(number: i32) -> Option<NaiveDate> {
    (number != NO_DAY).then(|| NaiveDate::from_epoch_days(number)).flatten()
}

/// Stands for a time that is not known.
const NO_TIME: i64 = i64::MIN;

/// Bytes of what is known of a patient.
pub(super) const KNOWN_BYTES: usize = 25;

/// What is known of a patient as one value, in the order that the table tells.
pub(super) fn known_bytes(known: &PatientState) -> [u8; KNOWN_BYTES] {
    let mut bytes = [0; KNOWN_BYTES];
    bytes[..8].copy_from_slice(&known.version.to_be_bytes());
    bytes[8] = known.active.into();
    bytes[9..13].copy_from_slice(&year_number(known.birth_year).to_be_bytes());
    bytes[13..17].copy_from_slice(&day_number(known.registered).to_be_bytes());
    bytes[17..].copy_from_slice(&known.changed.unwrap_or(NO_TIME).to_be_bytes());
    bytes
}

/// None if these are no such bytes. The time is missing from those of an earlier version of the service.
pub(super) fn known_of(bytes: &[u8]) -> Option<PatientState> {
    let (version, bytes) = bytes.split_first_chunk()?;
    let ([active], bytes) = bytes.split_first_chunk()?;
    let (birth_year, bytes) = bytes.split_first_chunk()?;
    let (registered, bytes) = bytes.split_first_chunk()?;
    let changed = if bytes.is_empty() { NO_TIME } else { i64::from_be_bytes(bytes.try_into().ok()?) };
    Some(PatientState {
        version: i64::from_be_bytes(*version),
        active: *active != 0,
        birth_year: year_of(i32::from_be_bytes(*birth_year)),
        registered: date_of(i32::from_be_bytes(*registered)),
        changed: (changed != NO_TIME).then_some(changed),
    })
}

/// A JSON array of pairs: names and values, both as hexadecimal bytes, or null for no value.
pub(super) fn headers_json(headers: &Headers) -> String {
    let hex = |bytes: &Vec<u8>| {
        bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    Json::from_iter(headers.iter().map(|(name, value)| serde_json::json!([hex(name), value.as_ref().map(hex)])))
        .to_string()
}

/// Rows of before have an object of names, as text, and hexadecimal bytes.
pub(super) fn headers_of(json: &str) -> Headers {
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
    use super::*;

    #[test]
    fn dates_are_days() {
        for text in ["1970-01-01", "2024-02-29", "1900-12-31", "9999-12-31"] {
            let date = text.parse().unwrap();
            assert_eq!(date_of(day_number(Some(date))), Some(date));
        }
        assert_eq!(NaiveDate::from_epoch_days(NO_DAY), NaiveDate::from_ymd_opt(1, 1, 1));
    }

    #[test]
    fn what_is_known_comes_out_as_it_went_in() {
        let registered = [None, NaiveDate::from_ymd_opt(1969, 12, 31), Some(NaiveDate::MIN), Some(NaiveDate::MAX)];
        let years = [None, Some(1969), Some(i32::MIN), Some(i32::MAX)];
        for (version, (birth_year, registered)) in
            [0, 1, -1, i64::MAX].into_iter().zip(years.into_iter().zip(registered))
        {
            for active in [false, true] {
                for changed in [None, Some(0), Some(-1), Some(i64::MAX)] {
                    let known = PatientState { version, active, birth_year, registered, changed };
                    assert_eq!(known_of(&known_bytes(&known)), Some(known));
                    let earlier = PatientState { changed: None, ..known };
                    assert_eq!(known_of(&known_bytes(&known)[..17]), Some(earlier));
                }
            }
        }
        assert_eq!(known_of(&[0; 16]), None);
        assert_eq!(known_of(&[0; KNOWN_BYTES - 1]), None);
        assert_eq!(known_of(&[0; KNOWN_BYTES + 1]), None);
    }

    #[test]
    fn headers_survive_whatever_their_bytes() {
        let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
        let headers = vec![
            header(b"b", Some(&[0, 255, 16])),
            header(b"a", Some(&[])),
            header(b"b", Some(b"again")),
            header(b"a", None),
            header(b"\xff", Some(b"no text")),
        ];
        assert_eq!(headers_of(&headers_json(&headers)), headers);
        assert_eq!(headers_of(&headers_json(&Headers::new())), Headers::new());
    }

    #[test]
    fn headers_of_letters_that_were_parked_before_are_read() {
        let header = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), Some(value.to_vec()));
        assert_eq!(headers_of(r#"{"a":"00ff10","b":""}"#), [header("a", &[0, 255, 16]), header("b", &[])]);
        assert_eq!(headers_of("{}"), Headers::new());
    }
}
