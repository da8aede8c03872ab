//! Converts hyper's types to tide's and back. Bodies are streamed; a short response of known length is sent as a whole.

use std::{
    borrow::Cow,
    io,
    pin::Pin,
    str::FromStr as _,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_lite::AsyncBufRead;
use http_types::headers::{HeaderName, HeaderValue};
use hyper::{
    HeaderMap,
    body::{Body as _, Frame, SizeHint},
    header,
    http::{request::Parts, uri::Authority},
};
use telemetry::TraceContext;
use tide::{
    StatusCode,
    http::{self, Method, Url},
};

use crate::{Problem, connections::RequestBody};

/// Responses up to this many bytes are written together with their head.
const MAX_INLINE_BODY: usize = 64 * 1024;
/// Largest frame of a streamed response in bytes.
const MAX_FRAME: usize = 16 * 1024;
/// Replaces each non-ASCII byte of a header value, which tide does not support. hyper accepts no value with this byte,
/// so it cannot be confused with a byte that a client sent.
const OPAQUE: u8 = 0x7f;

/// Converts hyper's request to tide's. `None` for `OPTIONS *`, which is about the server and has no route: a ping (RFC 9110,
/// section 9.3.7).
///
/// # Errors
/// 400 for a well-formed but invalid request, such as two Host headers.
pub(crate) fn request(parts: &Parts, body: Option<RequestBody>) -> Result<Option<http::Request>, Problem> {
    check_host(parts)?;
    match parts.uri.path() {
        "*" if parts.method == hyper::Method::OPTIONS => return Ok(None),
        // The target of CONNECT alone has no path (RFC 9112, section 3.2).
        "" if parts.method == hyper::Method::CONNECT => {}
        "*" | "" => return Err(Problem::bad_request("The request target is not a valid path.")),
        _ => {}
    }
    let method = Method::from_str(parts.method.as_str()).ok().filter(|method| method.as_ref() == parts.method.as_str());
    // tide supports no other methods. No route answers TRACE, so the request gets 404, or 405 with `Allow`.
    let method = method.unwrap_or(Method::Trace);
    let path = decode_unreserved(parts.uri.path());
    let (mark, query) = parts.uri.query().map_or(("", ""), |query| ("?", query));
    // tide routes by path alone, so the host is not needed.
    let url = Url::parse(&format!("http://localhost{path}{mark}{query}"))
        .map_err(|_| Problem::bad_request("The request target is not a valid path."))?;
    let mut request = http::Request::new(method, url);
    copy_headers(&parts.headers, &mut request);
    if let Some(body) = body {
        let length = body.length();
        request.set_body(http::Body::from_reader(body, length));
    }
    Ok(Some(request))
}

/// Decodes letters, digits and the other unreserved characters, with which a path is the same as with their encodings (RFC 3986,
/// section 6.2.2.2). tide does not decode any. A path with a malformed encoding stays as it is: what is decoded could complete
/// another one, as in `%%32e`.
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    let mut parts = path.split('%');
    let mut decoded = Cow::Borrowed(parts.next().unwrap_or_default());
    for part in parts {
        let octet = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let Some(octet) = octet.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return Cow::Borrowed(path);
        };
        let decoded = decoded.to_mut();
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            decoded.push(octet.into());
            decoded.push_str(&part[2..]);
        } else {
            decoded.push('%');
            decoded.push_str(part);
        }
    }
    decoded
}

/// Approximate size of a head in bytes.
pub(crate) fn head_size(parts: &Parts) -> usize {
    // Each header has a map entry in hyper and in tide.
    const ENTRY: usize = 64;
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY);
    target + headers.sum::<usize>()
}

/// RFC 9112, section 3.2: exactly one valid Host, which only HTTP/1.0 clients may omit.
fn check_host(parts: &Parts) -> Result<(), Problem> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let is_valid = |host: &header::HeaderValue| host.is_empty() || Authority::try_from(host.as_bytes()).is_ok();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_valid(host) => Ok(()),
        (Some(_), None) => Err(Problem::bad_request("The Host header is not valid.")),
        (None, _) if parts.version != hyper::Version::HTTP_11 => Ok(()),
        _ => Err(Problem::bad_request("A request must have exactly one Host header.")),
    }
}

/// Copies every header. A value may hold any bytes (RFC 9110, section 5.5). Non-ASCII bytes become [`OPAQUE`], which no
/// valid value of a header that is used contains.
fn copy_headers(from: &HeaderMap, to: &mut http::Request) {
    for (name, value) in from {
        let mut bytes = value.as_bytes().to_vec();
        bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = OPAQUE);
        // Both are ASCII now, so this does not fail.
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name.as_str()), HeaderValue::from_bytes(bytes)) {
            to.append_header(name, value);
        }
    }
}

/// The value of a header, if there is exactly one and it is visible ASCII.
pub(crate) fn single_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The values of a header that are visible ASCII.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Converts a problem to hyper's response directly.
pub(crate) fn problem(problem: &Problem, path: &str, trace: TraceContext) -> hyper::Response<ResponseBody> {
    let mut converted = hyper::Response::new(ResponseBody::Whole(Some(problem.body(path, trace).into())));
    *converted.status_mut() = status(problem.status());
    let headers = converted.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(Problem::CONTENT_TYPE));
    let trace = trace.to_string();
    let others = problem.headers().iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in others.chain([(TraceContext::HEADER, trace.as_str())]) {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            headers.insert(header::HeaderName::from_static(name), value);
        }
    }
    add_security_headers(headers);
    converted
}

/// What every response tells a browser: its media type is what it says, and its address is nobody else's business.
pub(crate) fn add_security_headers(headers: &mut HeaderMap) {
    for (name, value) in [(header::X_CONTENT_TYPE_OPTIONS, "nosniff"), (header::REFERRER_POLICY, "no-referrer")] {
        headers.entry(name).or_insert(header::HeaderValue::from_static(value));
    }
}

fn status(status: StatusCode) -> hyper::StatusCode {
    hyper::StatusCode::from_u16(status.into()).expect("tide's status codes are valid ones")
}

/// Converts tide's response to hyper's.
pub(crate) async fn response(mut response: http::Response) -> hyper::Response<ResponseBody> {
    let body = response.take_body();
    let body = match body.len() {
        Some(length) if length <= MAX_INLINE_BODY => match body.into_bytes().await {
            Ok(bytes) => ResponseBody::Whole(Some(bytes.into())),
            Err(error) => {
                tracing::error!(%error, "the body of a response could not be read");
                response.set_status(StatusCode::InternalServerError);
                ResponseBody::Whole(None)
            }
        },
        length => ResponseBody::Stream { reader: body.into_reader(), left: length.map(|length| length as u64) },
    };
    let is_empty = body.is_end_stream();
    let mut converted = hyper::Response::new(body);
    *converted.status_mut() = status(response.status());
    let headers = converted.headers_mut();
    for (name, values) in &response {
        let Ok(name) = header::HeaderName::from_bytes(name.as_str().as_bytes()) else { continue };
        // tide sets a media type also for an empty body.
        if is_empty && name == header::CONTENT_TYPE {
            continue;
        }
        for value in values {
            // http-types accepts any ASCII; a line break in a value would allow response splitting.
            if let Ok(value) = header::HeaderValue::from_str(value.as_str()) {
                headers.append(&name, value);
            }
        }
    }
    converted
}

/// tide's response body for hyper.
pub(crate) enum ResponseBody {
    Whole(Option<Bytes>),
    Stream { reader: Box<dyn AsyncBufRead + Send + Sync + Unpin>, left: Option<u64> },
}

impl hyper::body::Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Self::Stream { reader, left } => {
                let available = match ready!(Pin::new(&mut *reader).poll_fill_buf(context)) {
                    Ok(available) => available,
                    Err(error) => return Poll::Ready(Some(Err(error))),
                };
                let most = left.map_or(MAX_FRAME, |left| MAX_FRAME.min(usize::try_from(left).unwrap_or(MAX_FRAME)));
                let bytes = Bytes::copy_from_slice(&available[..available.len().min(most)]);
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                Pin::new(reader).consume(bytes.len());
                if let Some(left) = left {
                    *left -= bytes.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::decode_unreserved;

    #[test]
    fn a_path_is_decoded_once_and_only_as_a_whole() {
        for (path, decoded) in [
            ("/%68%65%6c%6C%6f", "/hello"),
            ("/a%2Fb%C3%B6", "/a%2Fb%C3%B6"),
            ("/%25%32%65", "/%252e"),
            ("/%%32e%%32e/hello", "/%%32e%%32e/hello"),
            ("/hell%6%66", "/hell%6%66"),
            ("/%68ell%6", "/%68ell%6"),
        ] {
            assert_eq!(decode_unreserved(path), decoded, "{path}");
        }
    }
}
