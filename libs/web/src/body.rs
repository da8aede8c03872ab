use std::{sync::Arc, time::Duration};

use futures_lite::{AsyncBufReadExt as _, AsyncReadExt as _};
use runtime::timeout;
use serde::de::DeserializeOwned;
use tide::{Body, Request, StatusCode};

use crate::{
    Limits, Problem,
    connections::Client,
    pieces::{Pieces, Region},
    router::{Place, overloaded},
};

/// Bytes of a body too large that are read and thrown away, and for how long.
const DISCARD: u64 = 4 * 1024 * 1024;
const DISCARD_WAIT: Duration = Duration::from_secs(2);
/// The UTF-8 byte order mark, which editors put before a text. RFC 8259 lets a reader ignore it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a JSON body of the media type `application/json`, perhaps with a byte order mark before it.
///
/// # Errors
/// 415 for another media type or a content coding, 413 for too many bytes (by `Content-Length`, or as they come), 408
/// when they do not come in time, 400 for what is not JSON or not a `T`.
pub async fn read_json<T: DeserializeOwned, S>(request: &mut Request<S>, limits: &Limits) -> Result<T, Problem> {
    let mut media_types = request.header("content-type").into_iter().flatten().map(|value| value.as_str());
    let essence = |media_type: &str| media_type.split(';').next().unwrap_or_default().trim().to_owned();
    // Of two, neither is surely that of the body.
    let essence = media_types.next().map(essence).filter(|_| media_types.next().is_none());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be application/json.");
        return Err(problem.header("accept", "application/json"));
    }
    let bytes = read_body(request, limits).await?;
    serde_json::from_slice(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes)).map_err(|error| {
        // serde_json's own message can quote the body, and bodies are personal data.
        let (line, column) = (error.line(), error.column());
        let what = if error.is_data() { "does not have the expected form" } else { "is not valid JSON" };
        Problem::bad_request(format!("The body {what}, at line {line}, column {column}.")).kind("malformed-body")
    })
}

/// Reads the whole body. Only then the request is one of those in flight.
///
/// # Errors
/// 415 for a content coding, 413 for too many bytes, 408 when they do not come in time, 400 when the client breaks off, 503
/// when there is no room for it or for the request.
pub async fn read_body<S>(request: &mut Request<S>, limits: &Limits) -> Result<Vec<u8>, Problem> {
    refuse_codings(request)?;
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
    let client = request.ext::<Client>().cloned();
    let place = request.ext::<Arc<Place>>().cloned();
    let mut body = request.take_body();
    let read = {
        let _awaiting = client.as_ref().map(Client::awaiting_body);
        timeout(limits.body_wait, gather(&mut body, limits.body, client.as_ref())).await
    };
    let bytes = match read {
        Err(_) => return Err(late(limits.body_wait)),
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) if client.is_some_and(|client| client.gave_way()) => return Err(overloaded()),
        Ok(Err(Broken::NoRoom)) => return Err(overloaded()),
        Ok(Err(Broken::Off)) => return Err(Problem::bad_request("The body ended before it was complete.")),
        Ok(Err(Broken::TooLarge)) => {
            discard(body).await;
            return Err(too_large());
        }
    };
    if let Some(place) = place {
        place.take()?;
    }
    Ok(bytes)
}

/// Why a body could not be read.
enum Broken {
    /// The client or the connection.
    Off,
    TooLarge,
    NoRoom,
}

/// Reads up to `limit` bytes. Memory is taken as they come, whatever has been announced.
async fn gather(body: &mut Body, limit: usize, client: Option<&Client>) -> Result<Vec<u8>, Broken> {
    // A request that no server has received is one of a test; it shares nothing with others.
    let mut bytes =
        client.map_or_else(|| Pieces::new(&Region::new(limit), Vec::new()), |client| client.pieces(Vec::new()));
    loop {
        let chunk = body.fill_buf().await.map_err(|_| Broken::Off)?;
        let length = chunk.len();
        if length == 0 {
            return Ok(bytes.take());
        }
        if bytes.len() + length > limit {
            return Err(Broken::TooLarge);
        }
        let size = bytes.size();
        bytes.push(chunk);
        // As much again is in hyper's buffer, and again in the buffer that holds the whole at the end.
        let more = 3 * bytes.size().saturating_sub(size);
        // One that has to give way may have sent more than has been read.
        if client.is_some_and(|client| client.gave_way() || (more > 0 && !client.charge(more))) {
            return Err(Broken::NoRoom);
        }
        body.consume(length);
    }
}

/// Refuses a body in a content coding such as gzip: read as it comes it would be taken for what it is not.
fn refuse_codings<S>(request: &Request<S>) -> Result<(), Problem> {
    let values = request.header("content-encoding").into_iter().flatten();
    let mut codings = values.flat_map(|value| value.as_str().split(',')).map(str::trim);
    if codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be sent without a content coding.");
    Err(problem.kind("unsupported-content-coding").header("accept-encoding", "identity"))
}

/// Reads some of what nobody wants: many clients read no answer before they have sent all, and a connection closed in the
/// middle of it would cost them the answer.
async fn discard(body: Body) {
    let rest = futures_lite::io::copy(body.take(DISCARD), futures_lite::io::sink());
    // Whatever comes of it, the answer is the same.
    let _ = timeout(DISCARD_WAIT, rest).await;
}

fn late(limit: Duration) -> Problem {
    Problem::new(StatusCode::RequestTimeout, format!("The body did not come within {} seconds.", limit.as_secs()))
}
