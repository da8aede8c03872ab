//! From a request on the wire to its answer: the deadline, the whole request, the handler, and the answer's parts.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_compat::Compat;
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
    Limits,
    calls::{Call, Calls, Held, Sending, exhausted},
    connections::Connection,
};

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The services of which a call takes further requests after the first answer. Each other method has one request, which is
/// whole when the client has ended its side.
const CONVERSATIONS: &str = "/grpc.reflection.";

/// What answering a call takes.
#[derive(Clone)]
pub(crate) struct Answering {
    pub(crate) routes: Routes,
    pub(crate) limits: Arc<Limits>,
    pub(crate) calls: Arc<Calls>,
}

impl Answering {
    /// The answer to a call, which always has a status.
    pub(crate) async fn answer(
        self,
        request: Request<Incoming>,
        call: Arc<Call>,
        connection: Arc<Connection>,
    ) -> Response<tonic::body::Body> {
        let timeout = grpc_timeout(request.headers());
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let limit = timeout.map_or(self.limits.call, |timeout| timeout.min(self.limits.call));
        let work = self.handle(request, &call, &connection);
        let late = async {
            Timer::after(limit).await;
            Err(late())
        };
        match or(work, late).await {
            Ok(response) => response.map(|body| {
                let sending = self.calls.send(call);
                tonic::body::Body::new(AnswerBody { body, sending, connection, deadline, timer: None, is_over: false })
            }),
            Err(status) => status.into_http(),
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        call: &Arc<Call>,
        connection: &Arc<Connection>,
    ) -> Result<Response<tonic::body::Body>, Status> {
        let held = self.calls.arrive(call.clone())?;
        let is_conversation = request.uri().path().starts_with(CONVERSATIONS);
        let (head, body) = request.into_parts();
        let given_up = async {
            call.given_up.wait().await;
            Err(exhausted())
        };
        let body = or(given_up, self.read(body, &held, is_conversation)).await?;
        held.complete();
        let _place = self.calls.place().await?;
        let _running = connection.run();
        let mut routes = self.routes.clone();
        // Reflection's handler spawns on the tokio that it finds around it.
        let handler = Compat::new(async move {
            let _ = poll_fn(|context| tower::Service::<Request<RequestBody>>::poll_ready(&mut routes, context)).await;
            routes.call(Request::from_parts(head, body)).await
        });
        let Ok(response) = handler.await;
        Ok(response)
    }

    /// Reads a request: of a conversation the first message, else all that the client sends.
    async fn read(&self, mut body: Incoming, held: &Held, is_conversation: bool) -> Result<RequestBody, Status> {
        // Copied, because what comes is a part of a larger buffer, which it would keep.
        let mut read = BytesMut::new();
        while !(is_conversation && has_message(&read)) {
            let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await else { break };
            // Nobody reads the answer to a call that its client has broken off.
            let frame = frame.map_err(|_| Status::cancelled("the client has broken off its request"))?;
            // Trailers of a client mean nothing, and nothing comes after them.
            let Ok(data) = frame.into_data() else { break };
            if read.len() + data.len() > self.limits.request + PREFIX {
                let limit = self.limits.request;
                return Err(Status::out_of_range(format!("a request may have {limit} bytes")));
            }
            held.grow(data.len())?;
            read.extend_from_slice(&data);
        }
        Ok(RequestBody { read: (!read.is_empty()).then(|| read.freeze()), rest: is_conversation.then_some(body) })
    }
}

/// Whether these bytes begin with a whole message.
fn has_message(bytes: &[u8]) -> bool {
    let length = bytes.get(1..PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    length.is_some_and(|length| bytes.len() - PREFIX >= length as usize)
}

/// A request as its handler reads it.
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

/// An answer, of which the connection asks for a part whenever its reader has room for one.
struct AnswerBody {
    body: tonic::body::Body,
    sending: Sending,
    connection: Arc<Connection>,
    /// When nobody waits for it any more.
    deadline: Option<Instant>,
    timer: Option<Timer>,
    is_over: bool,
}

impl AnswerBody {
    /// Whether the client's deadline has passed; wakes the task when it does.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline else { return false };
        if Instant::now() >= deadline {
            return true;
        }
        let timer = self.timer.get_or_insert_with(|| Timer::at(deadline));
        futures_lite::FutureExt::poll(timer, context).is_ready()
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.sending.take();
        self.connection.use_now();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Trailers say how it has ended: that is so, even if it is late.
        let is_end = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        if !is_end && self.is_late(context) {
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            late().add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if frame.is_ready() {
            self.sending.given();
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

fn late() -> Status {
    Status::deadline_exceeded("the call's deadline has passed")
}

/// The time that a client gives a call, if it says so: at most eight digits and a unit.
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
    fn the_deadline_of_a_client_is_read_in_every_unit() {
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
    fn a_message_is_whole_when_its_last_byte_is_there() {
        assert!(!has_message(&[]) && !has_message(&[0, 0, 0, 0]) && !has_message(&[0, 0, 0, 0, 1]));
        assert!(has_message(&[0, 0, 0, 0, 0]) && has_message(&[0, 0, 0, 0, 1, 7]) && has_message(&[0, 0, 0, 0, 0, 0]));
        assert!(!has_message(&[0, 255, 255, 255, 255, 7]));
    }
}
