//! Logs, metrics and trace context.
//!
//! - [`log`]: one JSON object a line on stdout, each with the trace id of the work it belongs to; readable text on a
//!   terminal. Never a name, an email, an address or a birth date: log ids, versions and counts.
//! - [`metrics`]: counters, gauges and histograms in one registry, rendered as Prometheus text.
//! - [`Outage`]: has the beginning and the end of an outage logged once each.
//! - [`TraceContext`]: the W3C `traceparent` that travels with a request through every hop.
//! - [`Propagated`]: the headers `tracestate` and `baggage`, which are propagated with it.
//! - [`sampler`]: which traces are recorded.
//! - [`Span`]: one piece of work in a trace, recorded if somebody [`collect`](span::collect)s spans.

pub mod log;
pub mod metrics;
mod outage;
mod propagated;
pub mod sampler;
pub mod span;
mod trace;

pub use outage::Outage;
pub use propagated::Propagated;
pub use span::{Span, SpanKind};
pub use trace::TraceContext;
