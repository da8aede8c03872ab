//! Sends finished spans to an OpenTelemetry collector: OTLP over HTTP, in protobuf, without tokio.
//!
//! Nothing is started and nothing is recorded unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A collector that is away
//! costs spans, never a request: a bounded queue takes what ends, and drops and counts what finds no room.
//!
//! What it does not do: TLS (a collector beside the service speaks it), gRPC, JSON, compression, the metrics and logs of
//! OpenTelemetry.

mod collector;
mod connection;
mod exporter;
mod messages;
mod settings;

#[expect(missing_docs, reason = "generated; the documentation is in the files below protos/")]
pub mod proto {
    //! OpenTelemetry's messages.

    include!(concat!(env!("OUT_DIR"), "/otlp.rs"));

    pub use opentelemetry::proto::*;
}

pub use exporter::exporting;
pub use settings::Settings;
