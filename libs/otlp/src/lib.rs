//! Sends spans, metrics and log lines to an OpenTelemetry collector: OTLP over HTTP, in protobuf, without tokio.
//!
//! Nothing is started and nothing is recorded unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A collector that is away
//! costs spans and lines, never a request: bounded queues take them, and drop and count what finds no room.
//!
//! What it does not do: TLS (a collector beside the service speaks it), gRPC, JSON, compression.

mod collector;
mod connection;
mod delivery;
mod export;
mod messages;
mod queue;
mod settings;

pub use export::exporting;
pub use settings::Settings;
