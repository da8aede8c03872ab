//! Billing accounts of patients and their ledgers, over gRPC.
//!
//! Data flow one way: [`grpc`](mod@grpc) converts a message into the types of [`account`] and [`ledger`], [`store`] executes
//! one statement, [`status`] converts an error into a gRPC status.

pub mod account;
mod grpc;
pub mod ledger;
mod service;
mod settings;
mod status;
pub mod store;

pub use service::Service;
pub use settings::Settings;
