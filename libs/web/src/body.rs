use std::time::Duration;

use futures_lite::AsyncReadExt as _;
use runtime::within;
use serde::de::DeserializeOwned;
use tide::{Body, Request, StatusCode};

use crate::{Limits, Problem};

/// Bytes of a body too large that are read and thrown away, and for how long.
const DISCARD: u64 = 4 * 1024 * 1024;
const DISCARD_WAIT: Duration = Duration::from_secs(2);

/// Reads a JSON body of the media type `application/json`.
///
/// # Errors
/// 415 for another media type, 413 for too many bytes (by `Content-Length`, or as they come), 408 when they do not come
/// in time, 400 for what is not JSON or not a `T`.
pub async fn read_json<T: DeserializeOwned, S>(request: &mut Request<S>, limits: &Limits) -> Result<T, Problem> {
    let media_type = request.header("content-type").map_or("", |values| values.last().as_str());
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be application/json.");
        return Err(problem.header("accept", "application/json"));
    }
    let bytes = read_body(request, limits).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // serde_json's own message can quote the body, and bodies are personal data.
        let (line, column) = (error.line(), error.column());
        let what = if error.is_data() { "does not have the expected form" } else { "is not valid JSON" };
        Problem::bad_request(format!("The body {what}, at line {line}, column {column}.")).kind("malformed-body")
    })
}

/// Reads the whole body.
///
/// # Errors
/// 413 for too many bytes, 408 when they do not come in time, 400 when the client breaks off.
pub async fn read_body<S>(request: &mut Request<S>, limits: &Limits) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        let detail = format!("The body must not be longer than {} bytes.", limits.body);
        Problem::new(StatusCode::PayloadTooLarge, detail)
    };
    let announced = request.len();
    if announced.is_some_and(|length| length > limits.body) {
        // A client that waits for our consent has sent nothing yet, and need not.
        if request.header("expect").is_none() {
            discard(request.take_body()).await;
        }
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    // One byte more than allowed tells a body that is too long from one that just fits.
    let mut body = request.take_body().take(limits.body as u64 + 1);
    match within(limits.body_wait, body.read_to_end(&mut bytes)).await {
        Err(_) => Err(late(limits.body_wait)),
        Ok(Err(_)) => Err(Problem::bad_request("The body ended before it was complete.")),
        Ok(Ok(length)) if length > limits.body => {
            discard(body.into_inner()).await;
            Err(too_large())
        }
        Ok(Ok(_)) => Ok(bytes),
    }
}

/// Reads some of what nobody wants: many clients read no answer before they have sent all, and a connection closed in the
/// middle of it would cost them the answer.
async fn discard(body: Body) {
    let rest = futures_lite::io::copy(body.take(DISCARD), futures_lite::io::sink());
    // Whatever comes of it, the answer is the same.
    let _ = within(DISCARD_WAIT, rest).await;
}

fn late(limit: Duration) -> Problem {
    Problem::new(StatusCode::RequestTimeout, format!("The body did not come within {} seconds.", limit.as_secs()))
}
