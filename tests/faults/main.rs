//! The running system under faults: the real binaries, a real PostgreSQL and real brokers, killed, frozen, cut off, full.
//!
//! After each fault the system heals by itself, and an audit compares what clients were told with what PostgreSQL, the
//! topic, billing and analytics hold. `docs/failures.md` lists the faults with what clients and operators see of each.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod analytics;
mod billing;
mod broker;
mod clients;
mod clocks;
mod disk;
mod leaders;
mod logs;
mod memory;
mod patient_service;
mod postgres;
mod replicas;
mod retention;
mod settings;
mod settings_page;
mod support;
