//! The ledger's entries: charges, payments and refunds.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use iso_currency::Currency;
use uuid::Uuid;

use crate::account::InvalidField;

/// The largest amount of one entry, in minor units. An `i64`, as a balance is, has room for nine million such entries.
pub const MAX_AMOUNT: i64 = 1_000_000_000_000;
/// The longest transaction id, in characters.
const MAX_ID_LENGTH: usize = 64;

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryType {
    /// The patient owes more.
    Charge,
    /// The patient paid.
    Payment,
    /// A payment was returned.
    Refund,
}

impl EntryType {
    /// Its name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Charge => "CHARGE",
            Self::Payment => "PAYMENT",
            Self::Refund => "REFUND",
        }
    }

    /// 1 if it increases what the patient owes, -1 if it reduces it.
    pub const fn sign(self) -> i64 {
        match self {
            Self::Charge | Self::Refund => 1,
            Self::Payment => -1,
        }
    }
}

impl FromStr for EntryType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known =
            [Self::Charge, Self::Payment, Self::Refund].into_iter().find(|entry_type| entry_type.name() == name);
        known.ok_or_else(|| format!("{name:?} is not a type of transaction"))
    }
}

/// An amount in minor units of a currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Money {
    /// In minor units, such as cents.
    pub amount: i64,
    /// An ISO 4217 code.
    pub currency: String,
}

/// An entry to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The account's patient.
    pub patient_id: Uuid,
    /// Chosen by the client; makes the entry idempotent.
    pub transaction_id: String,
    /// Its type.
    pub entry_type: EntryType,
    /// Greater than zero, at most [`MAX_AMOUNT`].
    pub amount: Money,
}

impl NewEntry {
    /// Validates the fields of a request.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn parse(
        patient_id: Uuid,
        transaction_id: String,
        entry_type: EntryType,
        amount: Money,
    ) -> Result<Self, InvalidField> {
        let visible = transaction_id.bytes().all(|byte| byte.is_ascii_graphic());
        if transaction_id.is_empty() || transaction_id.len() > MAX_ID_LENGTH || !visible {
            return Err(InvalidField { field: "transaction id", why: "must be 1 to 64 visible ASCII characters" });
        }
        if !(1..=MAX_AMOUNT).contains(&amount.amount) {
            return Err(InvalidField { field: "amount", why: "must be from 1 to 1000000000000 minor units" });
        }
        if Currency::from_code(&amount.currency).is_none() {
            return Err(InvalidField { field: "currency", why: "must be a code of ISO 4217, such as EUR" });
        }
        Ok(Self { patient_id, transaction_id, entry_type, amount })
    }
}

/// A recorded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Its position, which gives the order of the list.
    pub position: i64,
    /// Chosen by the client.
    pub transaction_id: String,
    /// Its type.
    pub entry_type: EntryType,
    /// The amount.
    pub amount: Money,
    /// When it was recorded.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(transaction_id: &str, amount: i64, currency: &str) -> Result<NewEntry, &'static str> {
        let amount = Money { amount, currency: currency.to_owned() };
        NewEntry::parse(Uuid::nil(), transaction_id.to_owned(), EntryType::Charge, amount).map_err(|error| error.field)
    }

    #[test]
    fn every_field_of_an_entry_is_validated() {
        assert!(parse("t-1", 1, "EUR").is_ok());
        assert!(parse(&"t".repeat(64), MAX_AMOUNT, "JPY").is_ok());
        for wrong in ["", "t 1", "t\n", "naïve", &"t".repeat(65)] {
            assert_eq!(parse(wrong, 1, "EUR"), Err("transaction id"), "{wrong:?}");
        }
        for wrong in [0, -1, MAX_AMOUNT + 1, i64::MIN] {
            assert_eq!(parse("t-1", wrong, "EUR"), Err("amount"), "{wrong}");
        }
        for wrong in ["", "eur", "EURO", "ZZZ"] {
            assert_eq!(parse("t-1", 1, wrong), Err("currency"), "{wrong:?}");
        }
    }
}
