//! Fault injection: the real binaries with a real PostgreSQL and real brokers, which are killed, stopped, disconnected or
//! filled up.
//!
//! After each fault the system recovers by itself, and an audit compares the acknowledged changes with PostgreSQL, the topic,
//! billing and analytics. `docs/failures.md` lists the faults with what clients and operators see of each.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod analytics;
mod billing;
mod broker;
mod clients;
mod clocks;
mod compaction;
mod disk;
mod leaders;
mod logs;
mod members;
mod memory;
mod patient_service;
mod postgres;
mod replicas;
mod retention;
mod settings;
mod settings_page;
mod support;
mod truncation;
