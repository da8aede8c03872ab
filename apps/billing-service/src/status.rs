//! The one place where what went wrong becomes a gRPC status.

use ::grpc::Status;

use crate::account::InvalidField;

/// Why a call has no result.
#[derive(Debug)]
pub enum Failure {
    /// A field of the request is wrong.
    Invalid(InvalidField),
    /// The patient has no account.
    NoAccount,
    /// A charge on a closed account.
    Closed,
    /// The transaction's id belongs to another entry.
    OtherEntry,
    /// The account's balance would leave its range.
    BalanceOutOfRange,
    /// The database could not do it.
    Database(postgres::Error),
}

impl From<InvalidField> for Failure {
    fn from(invalid: InvalidField) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid(invalid) => Self::invalid_argument(invalid.to_string()),
            Failure::NoAccount => Self::not_found("the patient has no billing account"),
            Failure::Closed => Self::failed_precondition("the account is closed and takes no charges"),
            Failure::OtherEntry => Self::already_exists("the transaction id was used for another transaction"),
            Failure::BalanceOutOfRange => {
                Self::out_of_range("the account's balance would leave the range of 64 bits; nothing was entered")
            }
            // `Database` has logged the outage.
            Failure::Database(postgres::Error::Unavailable(_) | postgres::Error::ReadOnly) => {
                Self::unavailable("the database cannot serve now")
            }
            // The service and its database are well: no code that callers take for an outage.
            Failure::Database(postgres::Error::Locked | postgres::Error::Timeout) => {
                Self::aborted("the database was too busy with other calls, and nothing was done; repeat the call")
            }
            Failure::Database(postgres::Error::QueueFull) => {
                Self::resource_exhausted("too many calls wait for the database; repeat the call later")
            }
            Failure::Database(error) => {
                tracing::error!(%error, "a query failed");
                Self::internal("the service failed to answer; the trace id leads to the cause")
            }
        }
    }
}
