//! gRPC for services: tonic behind the tokio compat bridge.
//!
//! tonic's client and its reflection need tokio's reactor and timers. Only this library (and libs/kafka) knows that: its
//! futures can be awaited on smol, because they run whole inside the bridge. tonic's server is left out: it has no bound on
//! connections, on calls and on what waits to be sent, and CANCELLED for a deadline that has passed. [`Server`] gives tonic's
//! services to hyper's `http2`, on smol, as libs/web does with `http1`.
//!
//! What it does not do: TLS, name resolution beyond the system's, anything that tonic does by itself.

mod answer;
mod breaker;
mod budget;
mod calls;
mod client;
mod connections;
mod failure;
mod limits;
mod observe;
mod server;
mod target;

pub use breaker::{Admission, Breaker};
pub use client::{Client, ClientSettings, Outgoing};
pub use failure::{CallError, FailureKind};
pub use limits::Limits;
pub use server::{Health, Server, ServerSettings};
pub use target::Target;
pub use tonic::{Code, Request, Response, Status, async_trait, service::Routes, transport::Channel};

/// The trace that a call belongs to.
pub fn trace<T>(request: &Request<T>) -> telemetry::TraceContext {
    // `observe` sets it on every call; a call made by a test without a server begins its own trace.
    request.extensions().get().copied().unwrap_or_else(telemetry::TraceContext::root)
}
