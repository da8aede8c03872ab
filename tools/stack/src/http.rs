//! Checks the status of responses.

use anyhow::{Result, anyhow};
use serde_json::Value as Json;
use testbed::http::Response;

/// The body of a response; an error if it has another status.
pub(crate) fn expect(response: &Response, status: u16) -> Result<Json> {
    if response.status == status { Ok(response.json()) } else { Err(unexpected(response)) }
}

pub(crate) fn unexpected(response: &Response) -> anyhow::Error {
    anyhow!("unexpected response with status {}: {}", response.status, response.text())
}
