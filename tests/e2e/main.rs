//! The running system, from outside: the real binaries on a real PostgreSQL and a real broker, spoken to over HTTP.
//!
//! It runs on ports of its own, beside a `just up`.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod collector;
mod command_line;
mod commands;
mod console;
mod contract;
mod journey;
mod lab;
mod operations;
mod outside;
mod own;
mod privacy;
mod spans;
mod stack;
mod stopping;
mod support;
mod traces;
mod up;
