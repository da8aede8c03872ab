//! Bodies of `/patients/{id}/billing`.

use billing_api::{Money, Transaction, TransactionType};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de::IntoDeserializer as _};
use utoipa::ToSchema;

use crate::billing::Account;

/// The billing account of a patient. PENDING and without an id until the billing service has opened it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingAccount)]
pub(crate) struct AccountBody<'a> {
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

/// The billing account of a patient with its balances.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BillingStatement)]
pub(crate) struct StatementBody<'a> {
    #[serde(flatten)]
    pub(crate) account: AccountBody<'a>,
    /// The balance in each currency in use: what the patient owes.
    pub(crate) balances: Vec<MoneyBody>,
}

/// An amount of money.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Money)]
pub(crate) struct MoneyBody {
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

/// A CHARGE increases what the patient owes, a PAYMENT reduces it, a REFUND returns a payment.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = TransactionType)]
pub(crate) enum TransactionTypeBody {
    Charge,
    Payment,
    Refund,
}

impl From<TransactionTypeBody> for TransactionType {
    fn from(r#type: TransactionTypeBody) -> Self {
        match r#type {
            TransactionTypeBody::Charge => Self::Charge,
            TransactionTypeBody::Payment => Self::Payment,
            TransactionTypeBody::Refund => Self::Refund,
        }
    }
}

/// Only a string is a type: an enum that derives `Deserialize` also takes `{"CHARGE": null}`.
fn of_string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TransactionTypeBody, D::Error> {
    TransactionTypeBody::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// A transaction as a client sends it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TransactionInput)]
pub(crate) struct TransactionInput {
    /// Chosen by the client, unique within the account. A repeated transaction is entered once.
    #[schema(example = "visit-2024-02-29", min_length = 1, max_length = 64, pattern = "^[!-~]+$")]
    pub(crate) transaction_id: String,
    #[serde(deserialize_with = "of_string")]
    pub(crate) r#type: TransactionTypeBody,
    /// In minor units of the currency, such as cents.
    #[schema(example = 2500, minimum = 1, maximum = 1_000_000_000_000_i64)]
    pub(crate) amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR", format = "iso-4217", pattern = "^[A-Z]{3}$")]
    pub(crate) currency: String,
}

/// A transaction in the ledger.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Transaction)]
pub(crate) struct TransactionBody {
    #[schema(example = "visit-2024-02-29")]
    transaction_id: String,
    r#type: TransactionTypeBody,
    #[serde(flatten)]
    amount: MoneyBody,
    recorded_at: DateTime<Utc>,
}

/// Billing's answer has a transaction that cannot be shown, because a field of it is missing, or is one that only a newer version
/// knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {0} is missing or unknown")]
pub(crate) struct InvalidTransaction(&'static str);

impl TryFrom<Transaction> for TransactionBody {
    type Error = InvalidTransaction;

    fn try_from(transaction: Transaction) -> Result<Self, InvalidTransaction> {
        let r#type = match transaction.r#type() {
            TransactionType::Charge => TransactionTypeBody::Charge,
            TransactionType::Payment => TransactionTypeBody::Payment,
            TransactionType::Refund => TransactionTypeBody::Refund,
            // Also a number that is not in the contract.
            TransactionType::Unspecified => return Err(InvalidTransaction("type")),
        };
        let recorded_at = transaction.recorded_at.and_then(|time| {
            let nanos = u32::try_from(time.nanos).ok()?;
            DateTime::from_timestamp(time.seconds, nanos)
        });
        Ok(Self {
            transaction_id: transaction.transaction_id,
            r#type,
            amount: transaction.amount.ok_or(InvalidTransaction("amount"))?.into(),
            recorded_at: recorded_at.ok_or(InvalidTransaction("time"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_with_a_field_that_is_missing_or_unknown_is_not_shown() {
        let valid = Transaction {
            transaction_id: "t-1".to_owned(),
            r#type: TransactionType::Refund.into(),
            amount: Some(Money { amount: 1, currency: "EUR".to_owned() }),
            recorded_at: Some(std::time::SystemTime::UNIX_EPOCH.into()),
            position: 1,
        };
        let error = |transaction: Transaction| TransactionBody::try_from(transaction).err();
        assert_eq!(error(valid.clone()), None);
        for number in [-1, 0, 7] {
            let of_type = Transaction { r#type: number, ..valid.clone() };
            assert_eq!(error(of_type), Some(InvalidTransaction("type")), "{number}");
        }
        assert_eq!(error(Transaction { amount: None, ..valid.clone() }), Some(InvalidTransaction("amount")));
        let (mut late, mut negative) = (valid.recorded_at.unwrap(), valid.recorded_at.unwrap());
        (late.seconds, negative.nanos) = (i64::MAX, -1);
        for recorded_at in [None, Some(late), Some(negative)] {
            assert_eq!(error(Transaction { recorded_at, ..valid.clone() }), Some(InvalidTransaction("time")));
        }
    }
}
