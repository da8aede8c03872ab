//! The service as clients see it: logins, tokens that other services take, and limits.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harness;
mod login;
mod memory;
