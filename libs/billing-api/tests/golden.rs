//! The bytes on the wire, as files that another implementation of protobuf reads too (`tests/wire`).
//!
//! `BLESS=1 cargo test -p billing-api --test golden` rewrites the files after an intended change.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{env, fs, path::PathBuf};

use billing_api::{BillingRequest, BillingResponse, Money, RecordTransactionRequest, Transaction, TransactionType};
use prost::Message as _;
use prost_types::Timestamp;

const PATIENT: &str = "0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f";

fn check(name: &str, bytes: &[u8]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("binpb");
    if env::var_os("BLESS").is_some() {
        fs::write(&file, bytes).unwrap();
    }
    assert_eq!(fs::read(&file).unwrap(), bytes, "{name}: the bytes on the wire have changed");
}

#[test]
fn billing_messages() {
    let patient_id = PATIENT.to_owned();
    let (name, email) = ("Zoë Müller 🩺".to_owned(), "zoe@example.org".to_owned());
    check("billing_request", &BillingRequest { patient_id: patient_id.clone(), name, email }.encode_to_vec());
    let response = BillingResponse { account_id: "account-1".to_owned(), status: "ACTIVE".to_owned() };
    check("billing_response", &response.encode_to_vec());
    let amount = Some(Money { amount: 1_000_000_000_000, currency: "EUR".to_owned() });
    let (transaction_id, r#type) = ("visit-1".to_owned(), TransactionType::Refund.into());
    let record =
        RecordTransactionRequest { patient_id, transaction_id: transaction_id.clone(), r#type, amount: amount.clone() };
    check("record_transaction_request", &record.encode_to_vec());
    let recorded_at = Some(Timestamp { seconds: 1_720_000_000, nanos: 5 });
    check("transaction", &Transaction { transaction_id, r#type, amount, recorded_at, position: 7 }.encode_to_vec());
}
