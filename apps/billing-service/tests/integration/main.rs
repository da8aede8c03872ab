//! The service over gRPC, on a real PostgreSQL, each test in a database of its own.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod accounts;
mod harness;
mod health;
mod ledger;
mod outage;
