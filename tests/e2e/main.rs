//! End-to-end tests over HTTP: the real binaries with a real PostgreSQL and a real broker.
//!
//! The systems use their own ports, so they can run beside `just up`.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod collector;
mod command_line;
mod commands;
mod console;
mod containers;
mod contract;
mod fresh_system;
mod journey;
mod lab;
mod operations;
mod privacy;
mod recipes;
mod running_system;
mod secure;
mod spans;
mod stack;
mod stopping;
mod support;
mod traces;
mod up;
