//! gRPC on smol: a server and a client for the code that tonic generates.
//!
//! tonic's client and reflection need tokio's reactor and timers. Their futures can be awaited on smol, because they run
//! inside async-compat; only this library and libs/kafka know that. tonic's own server is not used: it bounds neither
//! connections, calls nor send buffers, and answers CANCELLED when a deadline passes. [`Server`] serves tonic's services with
//! hyper's `http2` on smol, as libs/web does with `http1`.
//!
//! It knows no service and no message, and has no name resolver of its own. With TLS, a client checks the server's name, and a
//! server the names in the certificates of its clients.

mod access;
mod breaker;
mod call_error;
mod calls;
mod client;
mod code;
mod connections;
mod handler;
mod health;
mod limits;
mod observe;
mod response;
mod retry_budget;
mod server;
mod target;
mod transport;

pub use access::Access;
pub use breaker::{Admission, Breaker};
pub use call_error::{CallError, FailureKind};
pub use client::{Attempt, Client, ClientError, ClientSettings, ClientTls};
pub use health::Health;
pub use limits::Limits;
pub use response::Channel;
pub use server::{BindError, ClientNames, Server, ServerSettings, ServerTls};
pub use target::Target;
pub use tonic::{Code, Request, Response, Status, async_trait, service::Routes};

/// When the caller of a call gives up, or the server does, whichever is sooner. None for a call that has not come through a server.
pub fn deadline<T>(request: &Request<T>) -> Option<std::time::Instant> {
    request.extensions().get().map(|handler::Deadline(deadline)| *deadline)
}

/// The trace of a call.
pub fn trace<T>(request: &Request<T>) -> telemetry::TraceContext {
    // `observe` sets it on every call that comes through a server.
    request.extensions().get().copied().unwrap_or_else(telemetry::TraceContext::root)
}
