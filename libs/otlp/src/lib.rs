//! Sends spans, metrics and log lines to an OpenTelemetry collector: OTLP over HTTP, in protobuf, without tokio.
//!
//! Nothing is started and nothing is recorded unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A collector that is
//! unavailable costs spans and log lines, never a request: the queues are bounded, and what does not fit is dropped and
//! counted.
//!
//! Queues, batches, retries and messages are those of OpenTelemetry's SDK and exporter. This library adds an HTTP
//! client without tokio, the metrics about deliveries, and the conversion of spans, log lines and metrics.
//!
//! A URL with the scheme https is reached over TLS ([`Settings`]).
//!
//! Not supported: gRPC, JSON, compression.

mod collector;
mod convert;
mod delivery;
mod export;
mod metrics;
mod pipeline;
mod settings;

pub use export::export_while;
pub use settings::Settings;
