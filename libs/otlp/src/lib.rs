//! Sends spans, metrics and log lines to an OpenTelemetry collector: OTLP over HTTP, in protobuf, without tokio.
//!
//! Nothing is started and nothing is recorded unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A collector that is away
//! costs spans and lines, never a request: bounded queues take them, and drop and count what finds no room.
//!
//! Queues, batches, attempts and OTLP's messages are those of OpenTelemetry's SDK and exporter; what is ours is the HTTP
//! client, which brings no tokio, the counting, and the way from our spans, lines and metrics to theirs.
//!
//! What it does not do: TLS (a collector beside the service speaks it), gRPC, JSON, compression.

mod collector;
mod connection;
mod convert;
mod delivery;
mod export;
mod metrics;
mod pipeline;
mod settings;

pub use export::exporting;
pub use settings::Settings;
