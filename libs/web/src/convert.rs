//! hyper's types to tide's and back. Bodies are streamed; only a short answer of known length is sent in one piece.

use std::{
    io,
    pin::Pin,
    str::FromStr as _,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use futures_lite::{AsyncBufRead, AsyncRead};
use http_types::headers::{HeaderName, HeaderValue};
use hyper::{
    HeaderMap,
    body::{Body as _, Frame, Incoming, SizeHint},
    header,
    http::{request::Parts, uri::Authority},
};
use telemetry::TraceContext;
use tide::{
    StatusCode,
    http::{self, Method, Url},
};

use crate::Problem;

/// Answers of at most this many bytes leave in one write together with their head.
const ONE_PIECE: usize = 64 * 1024;
/// Bytes that one frame of a streamed answer holds at most.
const FRAME: usize = 16 * 1024;
/// Stands for each byte of a header's value that is not ASCII, which tide cannot hold. hyper takes no value with it, so
/// that it is never mistaken for what a client sent.
const OPAQUE: u8 = 0x7f;

/// A tide request of a hyper one.
///
/// # Errors
/// 400 for a well-formed but invalid request, such as two Host headers.
pub(crate) fn request(parts: &Parts, body: Incoming) -> Result<http::Request, Problem> {
    check_host(parts)?;
    let method = Method::from_str(parts.method.as_str()).ok().filter(|method| method.as_ref() == parts.method.as_str());
    // tide cannot hold any other method. No route answers TRACE, so that the request gets its 404, or 405 with `Allow`.
    let method = method.unwrap_or(Method::Trace);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    // tide routes by path alone; who the client thinks we are does not matter and is not worth parsing.
    let url = Url::parse(&format!("http://localhost{target}"))
        .map_err(|_| Problem::bad_request("The request target is not a valid path."))?;
    let mut request = http::Request::new(method, url);
    copy_headers(&parts.headers, &mut request);
    if !body.is_end_stream() {
        let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        request.set_body(http::Body::from_reader(RequestBody { incoming: body, chunk: Bytes::new() }, length));
    }
    Ok(request)
}

/// The bytes of a head, about.
pub(crate) fn head_size(parts: &Parts) -> usize {
    // Each header has an entry of a map in either form.
    const ENTRY: usize = 64;
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY);
    target + headers.sum::<usize>()
}

/// RFC 9112, section 3.2: one Host with a valid value, and none only from clients older than it.
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

/// Copies every header. A value may hold any bytes (RFC 9110, section 5.5): those of a header that nobody reads mean
/// nothing, and who reads one finds [`OPAQUE`] in it, which no valid value has.
fn copy_headers(from: &HeaderMap, to: &mut http::Request) {
    for (name, value) in from {
        let mut bytes = value.as_bytes().to_vec();
        bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = OPAQUE);
        // Both are ASCII now.
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name.as_str()), HeaderValue::from_bytes(bytes)) {
            to.append_header(name, value);
        }
    }
}

/// The value of a header that must not come twice; none if it does, or is not visible ASCII.
pub(crate) fn only_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The values of a header, without those that are not visible ASCII.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// A problem as hyper's answer, without the way through tide's.
pub(crate) fn problem(problem: &Problem, path: &str, trace: TraceContext) -> hyper::Response<ResponseBody> {
    let mut answer = hyper::Response::new(ResponseBody::Whole(Some(problem.body(path, trace).into())));
    *answer.status_mut() = status(problem.status());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(Problem::CONTENT_TYPE));
    let trace = trace.to_string();
    let others = problem.headers().iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in others.chain([(TraceContext::HEADER, trace.as_str())]) {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            headers.insert(header::HeaderName::from_static(name), value);
        }
    }
    answer
}

fn status(status: StatusCode) -> hyper::StatusCode {
    hyper::StatusCode::from_u16(status.into()).expect("tide's status codes are valid ones")
}

/// A hyper answer of a tide one.
pub(crate) async fn response(mut response: http::Response) -> hyper::Response<ResponseBody> {
    let body = response.take_body();
    let body = match body.len() {
        Some(length) if length <= ONE_PIECE => match body.into_bytes().await {
            Ok(bytes) => ResponseBody::Whole(Some(bytes.into())),
            Err(error) => {
                tracing::error!(%error, "the body of an answer could not be read");
                response.set_status(StatusCode::InternalServerError);
                ResponseBody::Whole(None)
            }
        },
        length => ResponseBody::Stream { reader: body.into_reader(), left: length.map(|length| length as u64) },
    };
    let is_empty = body.is_end_stream();
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = status(response.status());
    let headers = answer.headers_mut();
    for (name, values) in &response {
        let Ok(name) = header::HeaderName::from_bytes(name.as_str().as_bytes()) else { continue };
        // tide gives every answer a media type, one without a body too.
        if is_empty && name == header::CONTENT_TYPE {
            continue;
        }
        for value in values {
            // A value with a line break would be a hole; http-types lets only ASCII in, this lets only valid ones out.
            if let Ok(value) = header::HeaderValue::from_str(value.as_str()) {
                headers.append(&name, value);
            }
        }
    }
    answer
}

/// hyper's body as the reader that tide wants.
struct RequestBody {
    incoming: Incoming,
    chunk: Bytes,
}

impl AsyncBufRead for RequestBody {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match ready!(Pin::new(&mut this.incoming).poll_frame(context)) {
                None => break,
                Some(Ok(frame)) => this.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        Poll::Ready(Ok(&this.chunk))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.chunk.advance(amount);
    }
}

impl AsyncRead for RequestBody {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let available = ready!(self.as_mut().poll_fill_buf(context))?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Poll::Ready(Ok(length))
    }
}

/// tide's body as hyper wants it.
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
                let most = left.map_or(FRAME, |left| FRAME.min(usize::try_from(left).unwrap_or(FRAME)));
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
