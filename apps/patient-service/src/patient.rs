//! Patients and their validation. No HTTP, no JSON, no SQL.

use chrono::{Datelike as _, NaiveDate};
use email_address::{EmailAddress, Options};
use uuid::Uuid;

/// The longest name, in characters.
const MAX_NAME_LENGTH: usize = 100;
/// The longest address, in characters.
const MAX_ADDRESS_LENGTH: usize = 255;

/// A registered patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patient {
    /// UUID v7, chosen by the registry.
    pub id: Uuid,
    /// Verbatim, never blank.
    pub name: String,
    /// Verbatim; unique among all patients, case-insensitively.
    pub email: String,
    /// Verbatim, never blank.
    pub address: String,
    /// Not in the future when it was set.
    pub date_of_birth: NaiveDate,
    /// Not in the future when it was set.
    pub registered_date: NaiveDate,
    /// 1 at the creation, one more with each change.
    pub version: i64,
}

/// A patient's data, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// 1 to 100 characters, not blank.
    pub name: String,
    /// A valid email address.
    pub email: String,
    /// 1 to 255 characters, not blank.
    pub address: String,
    /// Not in the future.
    pub date_of_birth: NaiveDate,
    /// Not in the future; if there is none, the registry chooses it.
    pub registered_date: Option<NaiveDate>,
}

/// A patient's data as a client sends them, not validated yet.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// See [`Details::name`].
    pub name: Option<String>,
    /// See [`Details::email`].
    pub email: Option<String>,
    /// See [`Details::address`].
    pub address: Option<String>,
    /// See [`Details::date_of_birth`]; an ISO 8601 date.
    pub date_of_birth: Option<String>,
    /// See [`Details::registered_date`]; an ISO 8601 date.
    pub registered_date: Option<String>,
}

/// A field of a patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The name.
    Name,
    /// The email.
    Email,
    /// The address.
    Address,
    /// The date of birth.
    DateOfBirth,
    /// The date of the registration.
    RegisteredDate,
}

impl Field {
    /// Its name at the beginning of a message.
    const fn title(self) -> &'static str {
        match self {
            Self::Name => "Name",
            Self::Email => "Email",
            Self::Address => "Address",
            Self::DateOfBirth => "Date of birth",
            Self::RegisteredDate => "Registered date",
        }
    }
}

/// Every wrong field with a message. Messages never contain the value.
pub type FieldErrors = Vec<(Field, String)>;

impl Details {
    /// Validates a client's data. `latest_day` is the latest date that is not in the future.
    ///
    /// # Errors
    /// All wrong fields.
    pub fn parse(input: Input, latest_day: NaiveDate) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::new();
        let name = text(Field::Name, input.name, MAX_NAME_LENGTH, &mut errors);
        let email = email(input.email, &mut errors);
        let address = text(Field::Address, input.address, MAX_ADDRESS_LENGTH, &mut errors);
        let date_of_birth = input.date_of_birth.filter(|text| !is_blank(text));
        if date_of_birth.is_none() {
            errors.push((Field::DateOfBirth, "Date of birth is required".to_owned()));
        }
        let date_of_birth = date(Field::DateOfBirth, date_of_birth, latest_day, &mut errors);
        let registered_date = date(Field::RegisteredDate, input.registered_date, latest_day, &mut errors);
        match (name, email, address, date_of_birth) {
            (Some(name), Some(email), Some(address), Some(date_of_birth)) if errors.is_empty() => {
                Ok(Self { name, email, address, date_of_birth, registered_date })
            }
            _ => Err(errors),
        }
    }
}

fn text(field: Field, value: Option<String>, max_length: usize, errors: &mut FieldErrors) -> Option<String> {
    let title = field.title();
    let Some(value) = value.filter(|value| !is_blank(value)) else {
        errors.push((field, format!("{title} is required")));
        return None;
    };
    if value.chars().count() > max_length {
        errors.push((field, format!("{title} cannot exceed {max_length} characters")));
        return None;
    }
    if value.contains('\0') {
        errors.push((field, format!("{title} must not contain the NUL character")));
        return None;
    }
    Some(value)
}

fn email(value: Option<String>, errors: &mut FieldErrors) -> Option<String> {
    let Some(value) = value.filter(|value| !is_blank(value)) else {
        errors.push((Field::Email, "Email is required".to_owned()));
        return None;
    };
    let options = Options::default().without_display_text().without_domain_literal();
    if value.contains('\0') || EmailAddress::parse_with_options(&value, options).is_err() {
        errors.push((Field::Email, "Email should be valid".to_owned()));
        return None;
    }
    Some(value)
}

/// Parses an ISO 8601 date with a year from 0001 to 9999, which PostgreSQL can store.
pub fn parse_date(text: &str) -> Option<NaiveDate> {
    // chrono also accepts "2024-1-1" and longer years.
    let date = text.parse::<NaiveDate>().ok().filter(|date| date.to_string() == text)?;
    (1..=9999).contains(&date.year()).then_some(date)
}

fn date(field: Field, value: Option<String>, latest_day: NaiveDate, errors: &mut FieldErrors) -> Option<NaiveDate> {
    let value = value?;
    let title = field.title();
    match parse_date(&value) {
        None => errors.push((field, format!("{title} must be a date such as 2024-02-29"))),
        Some(date) if date > latest_day => errors.push((field, format!("{title} must not lie in the future"))),
        Some(date) => return Some(date),
    }
    None
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn today() -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 7, 1).unwrap()
    }

    fn input() -> Input {
        Input {
            name: Some("Jane Doe".to_owned()),
            email: Some("jane@example.org".to_owned()),
            address: Some("1 Main Street".to_owned()),
            date_of_birth: Some("1990-12-31".to_owned()),
            registered_date: None,
        }
    }

    fn messages(input: Input) -> Vec<String> {
        Details::parse(input, today()).unwrap_err().into_iter().map(|(_, message)| message).collect()
    }

    #[test]
    fn valid_data_are_kept_verbatim() {
        let input = Input {
            name: Some(" Zoë O'Neill-Ώ 🩺 ".to_owned()),
            registered_date: Some("2026-07-01".to_owned()),
            ..input()
        };
        let details = Details::parse(input, today()).unwrap();
        assert_eq!(details.name, " Zoë O'Neill-Ώ 🩺 ");
        assert_eq!(details.registered_date, Some(today()));
        assert_eq!(details.date_of_birth.to_string(), "1990-12-31");
    }

    #[test]
    fn every_missing_field_is_reported_at_once() {
        let expected = ["Name is required", "Email is required", "Address is required", "Date of birth is required"];
        assert_eq!(messages(Input::default()), expected);
        let blank = || Some(" \t".to_owned());
        let input =
            Input { name: blank(), email: blank(), address: blank(), date_of_birth: blank(), registered_date: None };
        assert_eq!(messages(input), expected);
    }

    #[test]
    fn lengths_count_characters() {
        assert!(Details::parse(Input { name: Some("ä".repeat(100)), ..input() }, today()).is_ok());
        let long = Input { name: Some("a".repeat(101)), address: Some("b".repeat(256)), ..input() };
        assert_eq!(messages(long), ["Name cannot exceed 100 characters", "Address cannot exceed 255 characters"]);
    }

    #[test]
    fn emails_must_be_valid() {
        for right in ["a@b", "jane.doe+tag@sub.example.org", "o'neill@example.org", "用户@例え.jp"] {
            assert!(Details::parse(Input { email: Some(right.to_owned()), ..input() }, today()).is_ok(), "{right}");
        }
        for wrong in ["jane", "@example.org", "jane@", "a b@example.org", "Jane <jane@example.org>", "a@b@c", "a\0@b.c"]
        {
            assert_eq!(
                messages(Input { email: Some(wrong.to_owned()), ..input() }),
                ["Email should be valid"],
                "{wrong}"
            );
        }
    }

    #[test]
    fn dates_must_be_valid_and_not_in_the_future() {
        for wrong in ["yesterday", "2024-02-30", "2024-2-3", "0000-01-01", "+2024-1-01", "20240101", "2024-01-01T00:00"]
        {
            let message = messages(Input { date_of_birth: Some(wrong.to_owned()), ..input() });
            assert_eq!(message, ["Date of birth must be a date such as 2024-02-29"], "{wrong}");
        }
        let tomorrow = || Some("2026-07-02".to_owned());
        let input = Input { date_of_birth: tomorrow(), registered_date: tomorrow(), ..input() };
        assert_eq!(
            messages(input),
            ["Date of birth must not lie in the future", "Registered date must not lie in the future"]
        );
    }

    #[test]
    fn the_nul_character_is_rejected() {
        let input = Input { name: Some("a\0b".to_owned()), ..input() };
        assert_eq!(messages(input), ["Name must not contain the NUL character"]);
    }
}
