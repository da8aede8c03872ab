//! Billing accounts of patients and their ledgers, over gRPC.
//!
//! Data flow one way: [`grpc`](mod@grpc) reads a message into the types of [`account`] and [`ledger`], [`store`] does
//! one statement, [`status`] turns what went wrong into a gRPC status.

pub mod account;
mod grpc;
pub mod ledger;
mod service;
mod settings;
mod status;
pub mod store;

pub use service::Service;
pub use settings::Settings;
