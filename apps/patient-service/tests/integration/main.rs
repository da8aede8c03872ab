//! The service over HTTP, on a real PostgreSQL, each test in a database of its own. Billing is a server of the test, so that it
//! can be slow, unavailable or wrong; `tests/e2e` has the real one.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod billing;
mod billing_tasks;
mod create;
mod dead_letters;
mod delete;
mod docs;
mod errors;
mod harness;
mod hostile;
mod idempotency;
mod list;
mod locks;
mod outages;
mod pages;
mod read;
mod relay;
mod requirements;
mod test_billing;
mod update;
