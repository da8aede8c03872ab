//! One request to a collector.

use runtime::timeout;
use surf::{Client, StatusCode, http::headers::CONTENT_TYPE};
use web_client::SingleConnectionClient;

use crate::settings::Destination;

/// The media type of OTLP in protobuf.
const PROTOBUF: &str = "application/x-protobuf";
/// Longest response body that is read; a valid one has a few bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// A client for one collector.
#[derive(Debug)]
pub(crate) struct Collector {
    client: Client,
    destination: Destination,
}

/// The response of a collector.
#[derive(Debug)]
pub(crate) struct CollectorResponse {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Collector {
    pub(crate) fn new(destination: Destination) -> Self {
        let mut backend = SingleConnectionClient::new(MAX_RESPONSE_BYTES);
        if let Some(connector) = &destination.tls {
            backend = backend.with_connector(connector.clone());
        }
        Self { client: Client::with_http_client(backend), destination }
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Sends a message, within the timeout of the destination.
    ///
    /// # Errors
    /// Why there is no response.
    pub(crate) async fn post(&self, message: &[u8]) -> Result<CollectorResponse, String> {
        match timeout(self.destination.timeout, Box::pin(self.post_without_limit(message))).await {
            Ok(response) => response.map_err(|error| error.to_string()),
            Err(elapsed) => Err(elapsed.to_string()),
        }
    }

    async fn post_without_limit(&self, message: &[u8]) -> Result<CollectorResponse, surf::Error> {
        let mut request = self.client.post(&self.destination.url).header(CONTENT_TYPE, PROTOBUF);
        for (name, value) in &self.destination.headers.expose().0 {
            request = request.header(name, value.clone());
        }
        let mut response = request.body(message).await?;
        let retry_after = response.header("retry-after").map(|value| value.as_str().to_owned());
        Ok(CollectorResponse { status: response.status(), retry_after, body: response.body_bytes().await? })
    }
}
