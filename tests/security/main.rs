//! Who may do what, on the real binaries with `AUTH=jwt`, and over which wire (`transport`): each check has its expected answer
//! in one line.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod callers;
mod grpc_calls;
mod interoperability;
mod keys;
mod network;
mod privileges;
mod scopes;
mod support;
mod tokens;
mod transport;
