//! One attempt at a delivery.

use std::{fmt, time::Duration};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use runtime::within;
use surf::{Client, StatusCode, http::headers::CONTENT_TYPE};

use crate::{connection::OneConnection, settings::Destination};

/// The media type of OTLP in protobuf.
const PROTOBUF: &str = "application/x-protobuf";
/// The longest pause that a collector can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A collector, spoken to over one connection.
#[derive(Debug)]
pub(crate) struct Collector {
    client: Client,
    destination: Destination,
}

/// Why something was not delivered.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The collector is away or overloaded; it may take them later.
    Passing { why: String, pause: Option<Duration> },
    /// It will never take them.
    Final { why: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Passing { why, .. } | Self::Final { why }) = self;
        f.write_str(why)
    }
}

impl Collector {
    pub(crate) fn new(destination: Destination) -> Self {
        Self { client: Client::with_http_client(OneConnection::default()), destination }
    }

    /// Delivers a message; gives how much of it the collector refused.
    pub(crate) async fn deliver(&self, message: &[u8]) -> Result<i64, Failure> {
        let passing = |why: String| Failure::Passing { why, pause: None };
        match within(self.destination.timeout, Box::pin(self.post(message))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(passing(error.to_string())),
            Err(elapsed) => Err(passing(elapsed.to_string())),
        }
    }

    async fn post(&self, message: &[u8]) -> Result<Result<i64, Failure>, surf::Error> {
        let mut request = self.client.post(&self.destination.url).header(CONTENT_TYPE, PROTOBUF);
        for (name, value) in &self.destination.headers.expose().0 {
            request = request.header(name, value.clone());
        }
        let mut response = request.body(message).await?;
        let status = response.status();
        let pause = response.header("retry-after").and_then(|value| value.as_str().parse().ok());
        let body = response.body_bytes().await?;
        if status.is_success() {
            // What was refused is part of an answer that is a success otherwise. The answers about metrics and logs are
            // the same on the wire.
            let answer = ExportTraceServiceResponse::decode(&*body).unwrap_or_default();
            return Ok(Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans)));
        }
        let why = format!("it answered {}", u16::from(status));
        let passing = matches!(
            status,
            StatusCode::TooManyRequests
                | StatusCode::BadGateway
                | StatusCode::ServiceUnavailable
                | StatusCode::GatewayTimeout
        );
        let pause = pause.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
        Ok(Err(if passing { Failure::Passing { why, pause } } else { Failure::Final { why } }))
    }
}
