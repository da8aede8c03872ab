//! gRPC for services: tonic behind the tokio compat bridge.
//!
//! tonic's transport needs tokio's reactor and timers. Only this library (and libs/kafka) knows that: its futures can be
//! awaited on smol, because [`Server::serve`] and [`Client::call`] run whole inside the bridge.
//!
//! What it does not do: TLS, name resolution beyond the system's, anything that tonic does by itself.

pub mod billing {
    //! Client and server of `protos/billing_service.proto`; the messages are in [`codec::billing`].

    tonic::include_proto!("_");
}

mod breaker;
mod budget;
mod client;
mod failure;
mod observe;
mod server;
mod target;

pub use breaker::{Admission, Breaker};
pub use client::{Client, ClientSettings, Outgoing};
pub use failure::{CallError, FailureKind};
pub use server::{Health, Server, ServerSettings};
pub use target::Target;
pub use tonic::{Code, Request, Response, Status, async_trait, service::Routes, transport::Channel};

/// The trace that a call belongs to.
pub fn trace<T>(request: &Request<T>) -> telemetry::TraceContext {
    // `observe` sets it on every call; a call made by a test without a server begins its own trace.
    request.extensions().get().copied().unwrap_or_else(telemetry::TraceContext::root)
}
