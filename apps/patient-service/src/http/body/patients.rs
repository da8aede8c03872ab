//! Bodies of `/patients`.

use std::fmt;

use chrono::NaiveDate;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::Problem;

use super::billing::AccountBody;
use crate::{
    http::problem::{json_name, of_fields},
    patient::{Details, Field, Input, Patient},
};

/// A patient.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Patient)]
pub(crate) struct PatientBody<'a> {
    id: Uuid,
    #[schema(example = "Jane Doe", max_length = 100)]
    name: &'a str,
    #[schema(example = "jane.doe@example.org", format = Email)]
    email: &'a str,
    #[schema(example = "1 Main Street, Springfield", max_length = 255)]
    address: &'a str,
    #[schema(example = "1990-12-31")]
    date_of_birth: NaiveDate,
    #[schema(example = "2024-02-29")]
    registered_date: NaiveDate,
}

impl<'a> From<&'a Patient> for PatientBody<'a> {
    fn from(patient: &'a Patient) -> Self {
        let Patient { id, name, email, address, date_of_birth, registered_date, version: _ } = patient;
        Self { id: *id, name, email, address, date_of_birth: *date_of_birth, registered_date: *registered_date }
    }
}

/// A registered patient with the billing account.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RegisteredPatient)]
pub(crate) struct RegisteredBody<'a> {
    #[serde(flatten)]
    pub(crate) patient: PatientBody<'a>,
    pub(crate) billing: AccountBody<'a>,
}

/// A patient's data as a client sends them. Unknown fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PatientInput)]
pub struct PatientInput {
    /// Not blank.
    #[serde(default)]
    #[schema(value_type = String, required, max_length = 100, pattern = "^[^\\x00]*[^\\s\\x00][^\\x00]*$", example = "Jane Doe")]
    name: Text,
    /// Unique among all patients, case-insensitively.
    #[serde(default)]
    #[schema(value_type = String, required, format = Email, example = "jane.doe@example.org")]
    email: Text,
    /// Not blank.
    #[serde(default)]
    #[schema(value_type = String, required, max_length = 255, pattern = "^[^\\x00]*[^\\s\\x00][^\\x00]*$", example = "1 Main Street, Springfield")]
    address: Text,
    /// Not in the future, in the time zone that is furthest ahead (UTC+14).
    #[serde(default)]
    #[schema(value_type = String, required, format = Date, example = "1990-12-31")]
    date_of_birth: Text,
    /// Not in the future. Defaults to today for a new patient, and to the current value for an existing one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Date, example = "2024-02-29")]
    registered_date: Text,
}

impl PatientInput {
    /// Validates the data.
    ///
    /// # Errors
    /// 400 with every field that is wrong.
    pub fn parse(self, latest_day: NaiveDate) -> Result<Details, Problem> {
        let mut wrong_types = Vec::new();
        let mut take = |field, text| match text {
            Text::Missing => None,
            Text::String(text) => Some(text),
            Text::OtherType => {
                wrong_types.push((field, format!("{} must be a string", json_name(field))));
                None
            }
        };
        let input = Input {
            name: take(Field::Name, self.name),
            email: take(Field::Email, self.email),
            address: take(Field::Address, self.address),
            date_of_birth: take(Field::DateOfBirth, self.date_of_birth),
            registered_date: take(Field::RegisteredDate, self.registered_date),
        };
        let details = Details::parse(input, latest_day);
        if wrong_types.is_empty() {
            return details.map_err(of_fields);
        }
        // A field of another type is present, so it is not also reported as missing.
        let is_string = |field| wrong_types.iter().all(|(other, _)| *other != field);
        let mut errors: Vec<_> =
            details.err().unwrap_or_default().into_iter().filter(|(field, _)| is_string(*field)).collect();
        errors.extend(wrong_types);
        errors.sort_by_key(|(field, _)| *field);
        Err(of_fields(errors))
    }
}

/// A JSON value that should be a string. Deserializing it never fails, so that one response can name every wrong field.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Text {
    #[default]
    Missing,
    String(String),
    OtherType,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text::String(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Text, E> {
                Ok(Text::String(text))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::Missing)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Text::OtherType)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Text::OtherType)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Text::OtherType)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Text::OtherType)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Text, A::Error> {
                while values.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text::OtherType)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Text, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text::OtherType)
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

/// A page of patients with the total number.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PatientPage)]
pub(crate) struct PageBody<'a> {
    pub(crate) patients: Vec<PatientBody<'a>>,
    /// Counted from 1.
    pub(crate) page: i64,
    pub(crate) size: i64,
    pub(crate) total_pages: i64,
    /// Results of a search are counted up to 10000.
    pub(crate) total_elements: i64,
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::{Value as Json, json};

    use super::*;

    fn parse(json: &str) -> Result<Details, Problem> {
        let input: PatientInput = serde_json::from_str(json).unwrap();
        input.parse(NaiveDate::from_ymd_opt(2026, 7, 1).unwrap())
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let json = r#"{"id": 7, "name": "Jane", "email": "j@example.org", "address": "x", "dateOfBirth": "1990-01-01", "more": [{}]}"#;
        assert_eq!(parse(json).unwrap().name, "Jane");
    }

    #[test]
    fn fields_of_another_type_are_reported_with_the_missing_ones() {
        let problem =
            parse(r#"{"name": 7, "email": null, "address": ["x"], "dateOfBirth": {"year": 1990}}"#).unwrap_err();
        let expected = Problem::bad_request("The patient is not valid.")
            .kind("invalid-patient")
            .field("name", "name must be a string")
            .field("email", "Email is required")
            .field("address", "address must be a string")
            .field("dateOfBirth", "dateOfBirth must be a string");
        assert_eq!(problem, expected);
    }

    #[test]
    fn a_duplicate_field_is_rejected() {
        assert!(serde_json::from_str::<PatientInput>(r#"{"name": "a", "name": "b"}"#).is_err());
    }

    /// JSON of any shape, some levels deep.
    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            any::<String>().prop_map(Json::from),
            "[a-z]{1,5}@[a-z]{1,5}[.]org".prop_map(Json::from),
            "[12][0-9]{3}-[01][0-9]-[0-2][0-9]".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Json::from),
                vec((any::<String>(), inner), 0..4).prop_map(|entries| Json::Object(entries.into_iter().collect())),
            ]
        })
    }

    /// Mostly such a text, so that a good part of the bodies is accepted; else JSON of any shape.
    fn mostly(text: &'static str) -> impl Strategy<Value = Json> {
        prop_oneof![9 => text.prop_map(Json::from), 1 => any_json()]
    }

    proptest! {
        #[test]
        fn any_values_are_accepted_unchanged_or_rejected(
            name in mostly("[a-zé \\x00]{1,6}"),
            email in mostly("[a-z]{1,5}@[a-z]{1,5}[.]org"),
            address in mostly("[a-z0-9 \\x00]{1,6}"),
            date in mostly("19[0-9]{2}-0[1-9]-[0-2][1-9]"),
        ) {
            let (name, email, address, date) = (&name, &email, &address, &date);
            let body = json!({ "name": name, "email": email, "address": address, "dateOfBirth": date });
            if let Ok(details) = parse(&body.to_string()) {
                for (accepted, given) in [(&details.name, name), (&details.email, email), (&details.address, address)] {
                    prop_assert_eq!(given, accepted.as_str());
                    prop_assert!(!accepted.contains('\0') && !accepted.trim().is_empty());
                }
            }
        }
    }
}
