use std::{sync::Arc, time::Duration};

use futures_lite::AsyncBufReadExt as _;
use runtime::timeout;
use serde::de::DeserializeOwned;
use tide::{Body, Request, StatusCode};

use crate::{
    Limits, Problem,
    chunks::{BlockPool, ChunkedBuffer},
    connections::Client,
    in_flight::{InFlightSlot, overloaded},
};

/// The UTF-8 byte order mark, which editors put before a text. RFC 8259 lets a reader ignore it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a JSON object of the media type `application/json`, perhaps with a byte order mark before it.
///
/// # Errors
/// 415 for another media type or a content coding, 413 for too many bytes (by `Content-Length`, or as they come), 408
/// when they do not come in time, 400 for what is not a JSON object or not a `T`.
pub async fn read_json<T: DeserializeOwned, S>(request: &mut Request<S>, limits: &Limits) -> Result<T, Problem> {
    let mut media_types = request.header("content-type").into_iter().flatten().map(|value| value.as_str());
    let essence = |media_type: &str| media_type.split(';').next().unwrap_or_default().trim().to_owned();
    // Two values would be ambiguous.
    let essence = media_types.next().map(essence).filter(|_| media_types.next().is_none());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be application/json.");
        return Err(problem.header("accept", "application/json"));
    }
    let bytes = read_body(request, limits).await?;
    let json = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    // A struct that derives `Deserialize` also takes an array, whose items it reads as its fields.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(Problem::bad_request("The body is not a JSON object.").kind("malformed-body"));
    }
    serde_json::from_slice(json).map_err(|error| {
        // serde_json's own message can quote the body, and bodies are personal data.
        let (line, column) = (error.line(), error.column());
        let what = if error.is_data() { "does not have the expected form" } else { "is not valid JSON" };
        Problem::bad_request(format!("The body {what}, at line {line}, column {column}.")).kind("malformed-body")
    })
}

/// Reads the whole body. Only then does the request count as in flight.
///
/// # Errors
/// 415 for a content coding, 413 for too many bytes, 408 when they do not come in time, 400 when the client
/// disconnects, 503 when there is no memory for it, or too many requests are in flight.
pub async fn read_body<S>(request: &mut Request<S>, limits: &Limits) -> Result<Vec<u8>, Problem> {
    reject_content_coding(request)?;
    let too_large = || {
        let detail = format!("The body must not be longer than {} bytes.", limits.body);
        Problem::new(StatusCode::PayloadTooLarge, detail)
    };
    let announced = request.len();
    if announced.is_some_and(|length| length > limits.body) {
        return Err(too_large());
    }
    let client = request.ext::<Client>().cloned();
    let slot = request.ext::<Arc<InFlightSlot>>().cloned();
    let mut body = request.take_body();
    let read = {
        let _awaiting = client.as_ref().map(Client::awaiting_body);
        timeout(limits.body_timeout, read_to_end(&mut body, limits.body, client.as_ref())).await
    };
    let bytes = match read {
        Err(_) => return Err(timed_out(limits.body_timeout)),
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) if client.is_some_and(|client| client.is_evicted()) => return Err(overloaded()),
        Ok(Err(BodyError::NoRoom)) => return Err(overloaded()),
        Ok(Err(BodyError::Incomplete)) => return Err(Problem::bad_request("The body ended before it was complete.")),
        Ok(Err(BodyError::TooLarge)) => return Err(too_large()),
    };
    if let Some(slot) = slot {
        slot.take()?;
    }
    Ok(bytes)
}

/// Why a body could not be read.
enum BodyError {
    /// The connection ended or failed.
    Incomplete,
    TooLarge,
    NoRoom,
}

/// Reads up to `limit` bytes. Memory is allocated as they arrive, whatever Content-Length says.
async fn read_to_end(body: &mut Body, limit: usize, client: Option<&Client>) -> Result<Vec<u8>, BodyError> {
    // A request without a connection comes from a unit test and has a pool of its own.
    let mut bytes = client
        .map_or_else(|| ChunkedBuffer::new(&BlockPool::new(limit), Vec::new()), |client| client.chunks(Vec::new()));
    loop {
        let chunk = body.fill_buf().await.map_err(|_| BodyError::Incomplete)?;
        let length = chunk.len();
        if length == 0 {
            return Ok(bytes.take());
        }
        if bytes.len() + length > limit {
            return Err(BodyError::TooLarge);
        }
        let size = bytes.size();
        bytes.push(chunk);
        // Three times: as much is in hyper's buffer, and again in the buffer for the whole body at the end.
        let more = 3 * bytes.size().saturating_sub(size);
        // An evicted connection may have sent more than has been read.
        if client.is_some_and(|client| client.is_evicted() || (more > 0 && !client.charge(more))) {
            return Err(BodyError::NoRoom);
        }
        body.consume(length);
    }
}

/// Rejects a body with a content coding such as gzip, which would be read as if it had none.
fn reject_content_coding<S>(request: &Request<S>) -> Result<(), Problem> {
    let values = request.header("content-encoding").into_iter().flatten();
    let mut codings = values.flat_map(|value| value.as_str().split(',')).map(str::trim);
    if codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be sent without a content coding.");
    Err(problem.kind("unsupported-content-coding").header("accept-encoding", "identity"))
}

fn timed_out(limit: Duration) -> Problem {
    Problem::new(StatusCode::RequestTimeout, format!("The body did not come within {} seconds.", limit.as_secs()))
}
