//! Whether a response comes from a gRPC server, and whether its status does.
//!
//! tonic gives every call a status, whatever the response is: a proxy's HTML page is INTERNAL, its 404 UNIMPLEMENTED, a
//! message that it cannot decode INTERNAL or OUT_OF_RANGE. Here a status that was received is marked, so that
//! [`CallError`](crate::CallError) takes no other for an answer of the peer.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::{StatusCode, header::CONTENT_TYPE};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response},
    transport,
};
use tower::Service;

/// The channel for a generated client: tonic's, with every response checked.
#[derive(Clone, Debug)]
pub struct Channel(pub(crate) transport::Channel);

impl Service<Request<Body>> for Channel {
    type Response = Response<CheckedBody>;
    type Error = Status;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(context).map_err(|error| Status::from_error(error.into()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        ResponseFuture(self.0.call(request))
    }
}

/// The response to one call.
#[derive(Debug)]
pub struct ResponseFuture(<transport::Channel as Service<Request<Body>>>::Future);

impl Future for ResponseFuture {
    type Output = Result<Response<CheckedBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(check(response.map_err(|error| Status::from_error(error.into()))?))
    }
}

/// The source of a status that the peer has sent.
#[derive(Debug, thiserror::Error)]
#[error("the peer has sent it")]
pub(crate) struct Received;

/// A response of something else than a gRPC server.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {}, {content_type}", .status.as_u16())]
struct NotGrpc {
    status: StatusCode,
    content_type: String,
}

fn check(mut response: Response<Body>) -> Result<Response<CheckedBody>, Status> {
    // A status in the headers counts whatever the rest is: it is all that a failed call without a message has.
    if !read_status(response.headers_mut())? {
        let status = response.status();
        let content_type = response.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
        if status != StatusCode::OK || !content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
            let content_type = content_type.unwrap_or(b"no content type").escape_ascii().to_string();
            return Err(Status::from_error(NotGrpc { status, content_type }.into()));
        }
    }
    Ok(response.map(CheckedBody))
}

/// Whether these headers or trailers have a status. One that is not OK is the error.
fn read_status(headers: &mut HeaderMap) -> Result<bool, Status> {
    // Nobody reads the details, and tonic panics if they are not base64.
    headers.remove("grpc-status-details-bin");
    let code = match headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes())) {
        None => return Ok(false),
        Some(Code::Ok) => return Ok(true),
        Some(code) => code,
    };
    let mut status = Status::from_header_map(headers).expect("it has a status");
    if status.code() != code {
        // tonic's is UNKNOWN, because the message is not UTF-8.
        status = Status::new(code, status.message());
    }
    status.set_source(Arc::new(Received));
    Err(status)
}

/// The body of a response with its trailers checked. tonic itself makes an error of one that ends without a status.
#[derive(Debug)]
pub struct CheckedBody(Body);

impl http_body::Body for CheckedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame?;
            if let Some(trailers) = frame.trailers_mut() {
                read_status(trailers)?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
