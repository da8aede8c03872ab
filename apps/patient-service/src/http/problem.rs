//! The one place where errors become HTTP statuses.

use std::time::Duration;

use grpc::{CallError, Code, FailureKind};
use tide::StatusCode;
use web::Problem;

use crate::{
    http::body::InvalidTransaction,
    patient::{Field, FieldErrors},
    registry::Error,
};

/// `Retry-After` while a dependency is unavailable.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            // The messages are those of the original service, which its clients may compare.
            Error::NotFound => Self::not_found("There is no patient with this id.")
                .kind("patient-not-found")
                .message("Patient not found"),
            Error::EmailTaken => Self::new(StatusCode::Conflict, "Another patient has this email.")
                .kind("email-taken")
                .message("Email address already exists")
                .field("email", "A patient with this email already exists"),
            Error::VersionMismatch => {
                let detail = "The patient is not in the state that If-Match or If-None-Match requires. Read it again and \
                              repeat the request with its new ETag.";
                Self::new(StatusCode::PreconditionFailed, detail).kind("version-mismatch")
            }
            Error::KeyReused => {
                let detail = "The Idempotency-Key was used for another request. Use a new key for each new request.";
                Self::new(StatusCode::UnprocessableEntity, detail).kind("idempotency-key-reused")
            }
            Error::PatientOfKeyDeleted => {
                let detail = "The patient that this Idempotency-Key registered has been deleted since.";
                Self::new(StatusCode::Conflict, detail).kind("idempotency-key-spent")
            }
            Error::KeyExpired => {
                let detail = "The Idempotency-Key expired during the request. Repeat it.";
                Self::unavailable(detail, RETRY_AFTER).kind("idempotency-key-expired")
            }
            // `Database` has logged the outage, or the privilege, the table or the resource that is missing.
            Error::Database(
                postgres::Error::Unavailable(_)
                | postgres::Error::ReadOnly
                | postgres::Error::Denied(_)
                | postgres::Error::Resources(_),
            ) => Self::unavailable("The database cannot serve now.", RETRY_AFTER).kind("database-unavailable"),
            // The database is up.
            Error::Database(postgres::Error::Locked | postgres::Error::Timeout | postgres::Error::QueueFull) => {
                let detail = "The database was too busy with other requests, and nothing was done. Repeat it.";
                Self::unavailable(detail, RETRY_AFTER).kind("database-busy")
            }
            Error::Database(error) => {
                tracing::error!(%error, "a query failed");
                Self::internal()
            }
        }
    }
}

/// The problem for a failed call to billing. The meaning of a status code is decided by `grpc::FailureKind`; here only those
/// are distinguished that a client can act on.
pub(super) fn of_call(error: &CallError) -> Problem {
    match (error.kind(), error) {
        // Billing's message names the field and never its value.
        (FailureKind::Invalid, CallError::Status(status)) => {
            Problem::bad_request(status.message()).kind("invalid-transaction")
        }
        (FailureKind::Unsupported, _) => {
            let detail = "The billing service has no such method: it only opens accounts.";
            Problem::new(StatusCode::NotImplemented, detail).kind("billing-not-supported")
        }
        (FailureKind::Unavailable, _) => {
            Problem::unavailable("The billing service does not answer.", RETRY_AFTER).kind("billing-unavailable")
        }
        (_, error) => match error.code() {
            Some(Code::NotFound) => {
                let detail = "The patient's billing account is not open yet.";
                Problem::unavailable(detail, RETRY_AFTER).kind("billing-account-pending")
            }
            Some(Code::FailedPrecondition) => {
                Problem::new(StatusCode::Conflict, "The billing account is closed and takes no charges.")
                    .kind("billing-account-closed")
            }
            Some(Code::AlreadyExists) => {
                Problem::new(StatusCode::Conflict, "The transaction id was used for another transaction.")
                    .kind("transaction-id-reused")
            }
            Some(Code::OutOfRange) => {
                let detail = "The balance of the billing account would leave its range. Nothing was entered.";
                Problem::new(StatusCode::Conflict, detail).kind("balance-out-of-range")
            }
            _ => Problem::unavailable("The billing service failed to answer.", RETRY_AFTER).kind("billing-unavailable"),
        },
    }
}

impl From<InvalidTransaction> for Problem {
    fn from(error: InvalidTransaction) -> Self {
        tracing::error!(%error, "billing answered with a transaction that cannot be shown");
        Self::unavailable("The billing service failed to answer.", RETRY_AFTER).kind("billing-unavailable")
    }
}

/// The problem for invalid data of a patient.
pub(super) fn of_fields(errors: FieldErrors) -> Problem {
    let problem = Problem::bad_request("The patient is not valid.").kind("invalid-patient");
    errors.into_iter().fold(problem, |problem, (field, message)| problem.field(json_name(field), message))
}

/// The name of a field in JSON.
pub(super) const fn json_name(field: Field) -> &'static str {
    match field {
        Field::Name => "name",
        Field::Email => "email",
        Field::Address => "address",
        Field::DateOfBirth => "dateOfBirth",
        Field::RegisteredDate => "registeredDate",
    }
}
