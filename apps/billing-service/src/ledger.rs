//! The ledger's entries: what a patient is charged, pays and gets back.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use iso_currency::Currency;
use uuid::Uuid;

use crate::account::InvalidField;

/// The largest amount of one entry, in minor units. An `i64`, as a balance is, has room for nine million such entries.
pub const MAX_AMOUNT: i64 = 1_000_000_000_000;
/// The longest id of a transaction, in characters.
const ID_LENGTH: usize = 64;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The patient owes more.
    Charge,
    /// The patient has paid.
    Payment,
    /// A payment was given back.
    Refund,
}

impl Kind {
    /// Its name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Charge => "CHARGE",
            Self::Payment => "PAYMENT",
            Self::Refund => "REFUND",
        }
    }

    /// Whether it makes what the patient owes more (1) or less (-1).
    pub const fn sign(self) -> i64 {
        match self {
            Self::Charge | Self::Refund => 1,
            Self::Payment => -1,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::Charge, Self::Payment, Self::Refund].into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| format!("{name:?} is no kind of transaction"))
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

/// An entry about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose account it belongs to.
    pub patient_id: Uuid,
    /// Chosen by the client; makes the entry idempotent.
    pub transaction_id: String,
    /// Its kind.
    pub kind: Kind,
    /// Greater than zero, at most [`MAX_AMOUNT`].
    pub amount: Money,
}

impl Entry {
    /// Checks the fields of a request.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(patient_id: Uuid, transaction_id: String, kind: Kind, amount: Money) -> Result<Self, InvalidField> {
        let visible = transaction_id.bytes().all(|byte| byte.is_ascii_graphic());
        if transaction_id.is_empty() || transaction_id.len() > ID_LENGTH || !visible {
            return Err(InvalidField { field: "transaction id", why: "must be 1 to 64 visible ASCII characters" });
        }
        if !(1..=MAX_AMOUNT).contains(&amount.amount) {
            return Err(InvalidField { field: "amount", why: "must be from 1 to 1000000000000 minor units" });
        }
        if Currency::from_code(&amount.currency).is_none() {
            return Err(InvalidField { field: "currency", why: "must be a code of ISO 4217, such as EUR" });
        }
        Ok(Self { patient_id, transaction_id, kind, amount })
    }
}

/// An entry in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its place: entries are listed in the order of it.
    pub position: i64,
    /// Chosen by the client.
    pub transaction_id: String,
    /// Its kind.
    pub kind: Kind,
    /// How much.
    pub amount: Money,
    /// When it was made.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(transaction_id: &str, amount: i64, currency: &str) -> Result<Entry, &'static str> {
        let amount = Money { amount, currency: currency.to_owned() };
        Entry::parse(Uuid::nil(), transaction_id.to_owned(), Kind::Charge, amount).map_err(|error| error.field)
    }

    #[test]
    fn an_entry_is_checked_field_by_field() {
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
