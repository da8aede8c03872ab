//! JSON bodies, to the domain's types and back.

mod billing;
mod patients;

pub(super) use billing::{AccountBody, InvalidTransaction, StatementBody, TransactionBody, TransactionInput};
pub use patients::PatientInput;
pub(super) use patients::{PageBody, PatientBody, RegisteredBody};
