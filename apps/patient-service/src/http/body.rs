//! JSON to the domain's types and back.

use std::fmt;

use billing_api::{Money, Transaction, TransactionType};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::Problem;

use super::problem::{json_name, of_fields};
use crate::{
    billing::Account,
    patient::{Details, Field, Input, Patient},
};

/// A patient.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Patient)]
pub(super) struct PatientBody<'a> {
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

/// A patient just registered, with the billing account.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RegisteredPatient)]
pub(super) struct RegisteredBody<'a> {
    #[serde(flatten)]
    pub(super) patient: PatientBody<'a>,
    pub(super) billing: AccountBody<'a>,
}

/// The billing account of a patient. PENDING, without an id, while the billing service has not answered; it is opened
/// as soon as it does.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingAccount)]
pub(super) struct AccountBody<'a> {
    #[schema(required, nullable)]
    account_id: Option<&'a str>,
    /// PENDING, ACTIVE or CLOSED.
    #[schema(example = "ACTIVE")]
    status: &'a str,
}

impl<'a> From<Option<&'a Account>> for AccountBody<'a> {
    fn from(account: Option<&'a Account>) -> Self {
        match account {
            Some(Account { id, status }) => Self { account_id: Some(id), status },
            None => Self { account_id: None, status: "PENDING" },
        }
    }
}

/// A patient's data as a client sends them. Fields besides these are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PatientInput)]
pub struct PatientInput {
    /// Not blank.
    #[serde(default)]
    #[schema(value_type = String, required, max_length = 100, pattern = "^[^\\x00]*[^\\s\\x00][^\\x00]*$", example = "Jane Doe")]
    name: Text,
    /// Unique among all patients, whatever its case.
    #[serde(default)]
    #[schema(value_type = String, required, format = Email, example = "jane.doe@example.org")]
    email: Text,
    /// Not blank.
    #[serde(default)]
    #[schema(value_type = String, required, max_length = 255, pattern = "^[^\\x00]*[^\\s\\x00][^\\x00]*$", example = "1 Main Street, Springfield")]
    address: Text,
    /// Not in the future: somewhere on earth it is that day already.
    #[serde(default)]
    #[schema(value_type = String, required, format = Date, example = "1990-12-31")]
    date_of_birth: Text,
    /// Not in the future. Today for a new patient without one; unchanged for an existing one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Date, example = "2024-02-29")]
    registered_date: Text,
}

impl PatientInput {
    /// The domain's form of the data.
    ///
    /// # Errors
    /// 400 with every field that is wrong.
    pub fn parse(self, latest_day: NaiveDate) -> Result<Details, Problem> {
        let mut no_text = Vec::new();
        let mut take = |field, text| match text {
            Text::Missing => None,
            Text::Is(text) => Some(text),
            Text::IsNot => {
                no_text.push((field, format!("{} must be a string", json_name(field))));
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
        if no_text.is_empty() {
            return details.map_err(of_fields);
        }
        // A field that is no string is not missing.
        let is_string = |field| no_text.iter().all(|(other, _)| *other != field);
        let mut errors: Vec<_> =
            details.err().unwrap_or_default().into_iter().filter(|(field, _)| is_string(*field)).collect();
        errors.extend(no_text);
        errors.sort_by_key(|(field, _)| *field);
        Err(of_fields(errors))
    }
}

/// A JSON value that should be a string. Reading it never fails, so that one answer can name every field that is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Text {
    #[default]
    Missing,
    Is(String),
    IsNot,
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
                Ok(Text::Is(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Text, E> {
                Ok(Text::Is(text))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::Missing)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Text::IsNot)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Text::IsNot)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Text::IsNot)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Text::IsNot)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Text, A::Error> {
                while values.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text::IsNot)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Text, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text::IsNot)
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

/// A page of patients with the size of the whole.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PatientPage)]
pub(super) struct PageBody<'a> {
    pub(super) patients: Vec<PatientBody<'a>>,
    /// Counted from 1.
    pub(super) page: i64,
    pub(super) size: i64,
    pub(super) total_pages: i64,
    /// What a search finds is counted up to 10000.
    pub(super) total_elements: i64,
}

/// The billing account of a patient with what the patient owes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BillingStatement)]
pub(super) struct StatementBody<'a> {
    #[serde(flatten)]
    pub(super) account: AccountBody<'a>,
    /// One a currency in use.
    pub(super) balances: Vec<MoneyBody>,
}

/// An amount of money.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Money)]
pub(super) struct MoneyBody {
    /// In minor units of the currency, such as cents.
    #[schema(example = 2500)]
    amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    currency: String,
}

impl From<Money> for MoneyBody {
    fn from(Money { amount, currency }: Money) -> Self {
        Self { amount, currency }
    }
}

/// The kind of a transaction: a CHARGE makes what the patient owes more, a PAYMENT less, a REFUND gives a payment back.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = TransactionType)]
pub(super) enum TransactionKind {
    Charge,
    Payment,
    Refund,
}

impl From<TransactionKind> for TransactionType {
    fn from(kind: TransactionKind) -> Self {
        match kind {
            TransactionKind::Charge => Self::Charge,
            TransactionKind::Payment => Self::Payment,
            TransactionKind::Refund => Self::Refund,
        }
    }
}

/// A transaction as a client sends it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TransactionInput)]
pub(super) struct TransactionInput {
    /// Chosen by the client, unique within the account: the same transaction sent again is entered once.
    #[schema(example = "visit-2024-02-29", min_length = 1, max_length = 64, pattern = "^[!-~]+$")]
    pub(super) transaction_id: String,
    pub(super) r#type: TransactionKind,
    /// In minor units of the currency, such as cents.
    #[schema(example = 2500, minimum = 1, maximum = 1_000_000_000_000_i64)]
    pub(super) amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR", format = "iso-4217", pattern = "^[A-Z]{3}$")]
    pub(super) currency: String,
}

/// A transaction in the ledger.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Transaction)]
pub(super) struct TransactionBody {
    #[schema(example = "visit-2024-02-29")]
    transaction_id: String,
    r#type: TransactionKind,
    #[serde(flatten)]
    amount: MoneyBody,
    recorded_at: DateTime<Utc>,
}

impl From<Transaction> for TransactionBody {
    fn from(transaction: Transaction) -> Self {
        let kind = match transaction.r#type() {
            TransactionType::Payment => TransactionKind::Payment,
            TransactionType::Refund => TransactionKind::Refund,
            // Billing enters no transaction without a type.
            TransactionType::Charge | TransactionType::Unspecified => TransactionKind::Charge,
        };
        let recorded_at = transaction.recorded_at.unwrap_or_default();
        let nanos = u32::try_from(recorded_at.nanos).unwrap_or_default();
        Self {
            transaction_id: transaction.transaction_id,
            r#type: kind,
            amount: transaction.amount.unwrap_or_default().into(),
            recorded_at: DateTime::from_timestamp(recorded_at.seconds, nanos).unwrap_or_default(),
        }
    }
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
    fn fields_of_another_type_are_told_with_the_missing_ones() {
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
    fn a_field_given_twice_is_no_patient() {
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

    /// Mostly such a text, so that a good part of the bodies is taken; else JSON of any shape.
    fn mostly(text: &'static str) -> impl Strategy<Value = Json> {
        prop_oneof![9 => text.prop_map(Json::from), 1 => any_json()]
    }

    proptest! {
        #[test]
        fn any_values_are_taken_as_they_are_or_refused(
            name in mostly("[a-zé \\x00]{1,6}"),
            email in mostly("[a-z]{1,5}@[a-z]{1,5}[.]org"),
            address in mostly("[a-z0-9 \\x00]{1,6}"),
            date in mostly("19[0-9]{2}-0[1-9]-[0-2][1-9]"),
        ) {
            let (name, email, address, date) = (&name, &email, &address, &date);
            let body = json!({ "name": name, "email": email, "address": address, "dateOfBirth": date });
            if let Ok(details) = parse(&body.to_string()) {
                for (taken, given) in [(&details.name, name), (&details.email, email), (&details.address, address)] {
                    prop_assert_eq!(given, taken.as_str());
                    prop_assert!(!taken.contains('\0') && !taken.trim().is_empty());
                }
            }
        }
    }
}
