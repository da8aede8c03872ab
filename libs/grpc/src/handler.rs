//! One call of a server: reads the request, runs the service within the deadline, and sends the response.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_compat::Compat;
use auth::Caller;
use bytes::{Bytes, BytesMut};
use futures_lite::future::or;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smol::{Timer, future::poll_fn};
use tonic::{
    Status,
    codegen::http::{HeaderMap, Request, Response},
    service::Routes,
};
use tower::Service as _;

use crate::{
    Access, Limits,
    calls::{Call, Calls, PendingRequest, PendingResponse, exhausted},
    connections::Connection,
};

/// Bytes before a message: the compressed flag and the length.
const MESSAGE_PREFIX: usize = 5;
/// Services with bidirectional streams. Every other method has one request message, which is complete when the client has
/// ended its side of the stream.
const BIDIRECTIONAL: &str = "/grpc.reflection.";
/// Time of a stream that begins with a token after its end, within the leeway of clocks.
const LATE_TOKEN: Duration = Duration::from_secs(auth::LEEWAY);

/// When a call ends at the latest: an extension of its request.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

/// Handles the calls of a server.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) routes: Routes,
    pub(crate) limits: Arc<Limits>,
    pub(crate) access: Arc<Access>,
    /// The methods that there are, as `Service/Method`.
    pub(crate) methods: Arc<HashSet<String>>,
    pub(crate) calls: Arc<Calls>,
}

impl Handler {
    /// Registers a call as soon as its head has arrived. hyper polls a call after all heads that have arrived with it, so
    /// without it their memory would have no bound. The head of a call that there is no room for is freed at once.
    pub(crate) fn begin(&self, request: &mut Request<Incoming>, call: &Arc<Call>) -> Result<PendingRequest, Status> {
        let values = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let bytes = values.sum::<usize>() + request.uri().path().len();
        // h2 decodes a string into a buffer of twice its length.
        let pending = self.calls.begin_request(call.clone(), 2 * bytes);
        if pending.is_err() {
            // Copied, because the path keeps the buffer of the whole head.
            let method = self.methods.get(request.uri().path().trim_start_matches('/'));
            let uri = method.and_then(|method| format!("/{method}").try_into().ok()).unwrap_or_default();
            *request.headers_mut() = HeaderMap::new();
            *request.uri_mut() = uri;
        }
        pending
    }

    /// The response to a call. It always has a status.
    pub(crate) async fn respond(
        self,
        mut request: Request<Incoming>,
        call: Arc<Call>,
        pending: PendingRequest,
        connection: Arc<Connection>,
    ) -> Response<tonic::body::Body> {
        let (now, timeout) = (Instant::now(), grpc_timeout(request.headers()));
        let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
        let limit = timeout.map_or(self.limits.call, |timeout| timeout.min(self.limits.call));
        if let Some(end) = now.checked_add(limit) {
            request.extensions_mut().insert(Deadline(end));
        }
        let work = runtime::timeout(limit, self.handle(request, &call, pending, &connection));
        match work.await.unwrap_or_else(|_| Err(deadline_exceeded())) {
            Ok((response, token_end)) => response.map(|body| {
                let response = self.calls.begin_response(call);
                tonic::body::Body::new(ResponseBody {
                    body,
                    response,
                    connection,
                    deadline,
                    token_end,
                    timer: None,
                    has_begun: false,
                    is_over: false,
                })
            }),
            Err(status) => status.into_http(),
        }
    }

    /// The service's response, and when the caller's token expires.
    async fn handle(
        &self,
        mut request: Request<Incoming>,
        call: &Arc<Call>,
        mut pending: PendingRequest,
        connection: &Arc<Connection>,
    ) -> Result<(Response<tonic::body::Body>, Option<Instant>), Status> {
        // Before the message is read and before the call takes a permit.
        self.access.admit(&mut request).await?;
        let remaining = request.extensions().get().and_then(Caller::remaining);
        let remaining = remaining.map(|remaining| if remaining.is_zero() { LATE_TOKEN } else { remaining });
        let token_end = remaining.and_then(|remaining| Instant::now().checked_add(remaining));
        let is_bidirectional = request.uri().path().starts_with(BIDIRECTIONAL);
        let (head, body) = request.into_parts();
        let evicted = async {
            call.evicted.wait().await;
            Err(exhausted())
        };
        let body = or(evicted, self.read(body, &mut pending, is_bidirectional)).await?;
        pending.complete();
        let _permit = self.calls.acquire_permit().await?;
        let _active = connection.begin_call();
        let mut routes = self.routes.clone();
        // tonic-reflection spawns on the tokio runtime that it finds around it.
        let handler = Compat::new(async move {
            let _ = poll_fn(|context| tower::Service::<Request<RequestBody>>::poll_ready(&mut routes, context)).await;
            routes.call(Request::from_parts(head, body)).await
        });
        let Ok(response) = handler.await;
        Ok((response, token_end))
    }

    /// Reads a request: the first message of a bidirectional stream, else all that the client sends.
    async fn read(
        &self,
        mut body: Incoming,
        pending: &mut PendingRequest,
        is_bidirectional: bool,
    ) -> Result<RequestBody, Status> {
        // Copied, because a frame keeps the whole buffer that it was received in.
        let mut read = BytesMut::new();
        while !(is_bidirectional && has_message(&read)) {
            let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await else { break };
            // The client has reset the stream: nobody reads the response.
            let frame = frame.map_err(|_| Status::cancelled("the client has reset the stream"))?;
            // A client's trailers have no meaning in gRPC, and no frame follows them.
            let Ok(data) = frame.into_data() else { break };
            if read.len() + data.len() > self.limits.request + MESSAGE_PREFIX {
                let limit = self.limits.request;
                return Err(Status::out_of_range(format!("a request may have {limit} bytes")));
            }
            pending.grow(data.len())?;
            read.extend_from_slice(&data);
        }
        Ok(RequestBody { read: (!read.is_empty()).then(|| read.freeze()), rest: is_bidirectional.then_some(body) })
    }
}

/// Whether these bytes begin with a complete message.
fn has_message(bytes: &[u8]) -> bool {
    let length = bytes.get(1..MESSAGE_PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    length.is_some_and(|length| bytes.len() - MESSAGE_PREFIX >= length as usize)
}

/// A request as the service reads it.
struct RequestBody {
    read: Option<Bytes>,
    rest: Option<Incoming>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(read) = self.read.take() {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

/// A response, which hyper polls for a frame whenever the client's flow-control window has room.
struct ResponseBody {
    body: tonic::body::Body,
    response: PendingResponse,
    connection: Arc<Connection>,
    /// The client's deadline.
    deadline: Option<Instant>,
    /// When the caller's token expires.
    token_end: Option<Instant>,
    timer: Option<Timer>,
    /// Its first frame was sent.
    has_begun: bool,
    is_over: bool,
}

impl ResponseBody {
    /// The status with which it ends now, because the client's deadline has passed or the token has expired. `is_waiting`: the
    /// service has no frame yet; then the task is woken at that time.
    fn end(&mut self, is_waiting: bool, context: &mut Context<'_>) -> Option<Status> {
        // A single message is the answer to a call that was admitted, perhaps with a token that had just expired.
        let token_end = self.token_end.filter(|_| is_waiting || self.has_begun);
        let end = self.deadline.into_iter().chain(token_end).min()?;
        if Instant::now() < end {
            if !is_waiting {
                return None;
            }
            let timer = self.timer.get_or_insert_with(|| Timer::at(end));
            if futures_lite::FutureExt::poll(timer, context).is_pending() {
                return None;
            }
        }
        Some(if self.deadline == Some(end) { deadline_exceeded() } else { token_expired() })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.response.polled();
        self.connection.touch();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Trailers have the status of a call that has ended; a deadline that passes now does not change it.
        let is_end = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        let end = if is_end { None } else { self.end(frame.is_pending(), context) };
        if let Some(status) = end {
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if frame.is_ready() {
            self.has_begun = true;
            self.response.frame_sent();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline has passed")
}

fn token_expired() -> Status {
    Status::unauthenticated("the token has expired")
}

/// The client's time-out, if it sends one: at most eight digits and a unit.
fn grpc_timeout(head: &HeaderMap) -> Option<Duration> {
    let text = head.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_is_read_in_every_unit() {
        let read = |text: &str| {
            let mut head = HeaderMap::new();
            head.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&head)
        };
        for (text, time) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("0u", Duration::ZERO),
            ("5n", Duration::from_nanos(5)),
        ] {
            assert_eq!(read(text), Some(time), "{text}");
        }
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "S1"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_message_is_complete_with_its_last_byte() {
        assert!(!has_message(&[]) && !has_message(&[0, 0, 0, 0]) && !has_message(&[0, 0, 0, 0, 1]));
        assert!(has_message(&[0, 0, 0, 0, 0]) && has_message(&[0, 0, 0, 0, 1, 7]) && has_message(&[0, 0, 0, 0, 0, 0]));
        assert!(!has_message(&[0, 255, 255, 255, 255, 7]));
    }
}
