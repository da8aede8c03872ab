//! HTTP for services: tide's routes, requests and responses, served by our own accept loop over hyper's http1 on smol.
//!
//! tide's own server is not used. It stalls keep-alive clients by about 40 ms, has no limits and cannot drain; see
//! docs/decisions. What this library adds:
//! - [`Server`]: bind, learn the port, serve until the shutdown, drain;
//! - [`Limits`]: of connections, requests in flight, heads, bodies and the time that a client may take;
//! - [`Router`]: a route table with 404, 405 with `Allow`, 500 after a panic and 503 under overload as problem+json,
//!   with metrics and traces;
//! - [`Edge`]: who may call which route ([`Access`]), and under which names;
//! - [`Problem`]: RFC 9457; [`Preconditions`]: RFC 9110, section 13;
//! - [`Health`], [`metrics_page`], [`events`](mod@events): what each service serves besides its own routes.

mod body;
mod buffered_read;
mod chunks;
mod connections;
mod convert;
mod edge;
mod events;
mod forwarded;
mod head;
mod health;
mod healthcheck;
mod hosts;
mod in_flight;
mod limits;
mod origins;
mod preconditions;
mod problem;
mod query;
mod response;
mod route;
mod router;
mod server;
mod settings;
mod stream_slots;

pub use body::{read_body, read_json};
pub use edge::{Access, Edge, caller, client_address, rejected};
pub use events::{EventSender, events};
pub use forwarded::TrustedProxies;
pub use health::{Component, Health, Status};
pub use healthcheck::healthcheck;
pub use hosts::Hosts;
pub use limits::Limits;
pub use origins::Origins;
pub use preconditions::{EntityTag, EntityTags, Preconditions};
pub use problem::Problem;
pub use query::Query;
pub use response::{json, no_content, text};
pub use route::Handler;
pub use router::{App, Router, metrics_page, operations};
pub use server::{BindError, Server};
pub use settings::Settings;
pub use stream_slots::{StreamSlot, StreamSlots};

/// The trace that a request belongs to.
pub fn trace<S>(request: &tide::Request<S>) -> telemetry::TraceContext {
    // The server sets it on every request; a request of a unit test starts its own trace.
    request.ext::<telemetry::TraceContext>().copied().unwrap_or_else(telemetry::TraceContext::root)
}
