//! The one place where errors become gRPC statuses.

use ::grpc::Status;

use crate::account::InvalidField;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// A field of the request is invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// The patient has no account.
    #[error("the patient has no billing account")]
    NoAccount,
    /// A charge on a closed account.
    #[error("the account is closed and takes no charges")]
    Closed,
    /// The transaction's id belongs to another entry.
    #[error("the transaction id was used for another transaction")]
    OtherEntry,
    /// The account's balance would leave its range.
    #[error("the account's balance would leave the range of 64 bits; nothing was entered")]
    BalanceOutOfRange,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] postgres::Error),
}

impl From<CallFailure> for Status {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Invalid(_) => Self::invalid_argument(failure.to_string()),
            CallFailure::NoAccount => Self::not_found(failure.to_string()),
            CallFailure::Closed => Self::failed_precondition(failure.to_string()),
            CallFailure::OtherEntry => Self::already_exists(failure.to_string()),
            CallFailure::BalanceOutOfRange => Self::out_of_range(failure.to_string()),
            // `Database` has logged the outage, or the privilege or the table that is missing.
            CallFailure::Database(
                postgres::Error::Unavailable(_)
                | postgres::Error::ReadOnly
                | postgres::Error::Denied(_)
                | postgres::Error::Resources(_),
            ) => Self::unavailable("the database cannot serve now"),
            // The database is up, so the status must not be one that callers count as an outage.
            CallFailure::Database(postgres::Error::Locked | postgres::Error::Timeout) => {
                Self::aborted("the database was too busy with other calls, and nothing was done; repeat the call")
            }
            CallFailure::Database(postgres::Error::QueueFull) => {
                Self::resource_exhausted("too many calls wait for the database; repeat the call later")
            }
            CallFailure::Database(error) => {
                tracing::error!(%error, "a query failed");
                Self::internal("the service failed to answer; the trace id leads to the cause")
            }
        }
    }
}
