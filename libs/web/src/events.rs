//! Server-sent events. tide's own helper spawns each stream on async-std's executor and so starts its threads; this one
//! leaves spawning to the caller.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_lite::{AsyncBufRead, AsyncRead, Stream};
use smol::channel::{self, Receiver, Sender};
use tide::{Body, Response, StatusCode};

use crate::buffered_read;

/// Events queued for a slow client; then sending waits.
const MAX_PENDING_EVENTS: usize = 16;

/// Sends the events of a stream.
#[derive(Clone, Debug)]
pub struct EventSender(Sender<Vec<u8>>);

impl EventSender {
    /// Sends an event with one line of data; false if the client has disconnected.
    pub async fn send(&self, name: &str, data: &str) -> bool {
        debug_assert!(!data.contains('\n'), "a line break would end the data");
        self.0.send(format!("event: {name}\ndata: {data}\n\n").into_bytes()).await.is_ok()
    }

    /// Waits until the client disconnects, also while nothing is sent: the server reads from the connection all the
    /// time, and drops the response when the client closes it.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A response that streams events until all its [`EventSender`]s are dropped.
pub fn events() -> (EventSender, Response) {
    let (sender, receiver) = channel::bounded(MAX_PENDING_EVENTS);
    let mut response = Response::new(StatusCode::Ok);
    response.set_body(Body::from_reader(Events { receiver: Box::pin(receiver), event: Vec::new(), read: 0 }, None));
    response.insert_header("content-type", "text/event-stream");
    response.insert_header("cache-control", "no-cache");
    // nginx would buffer events up to some kilobytes.
    response.insert_header("x-accel-buffering", "no");
    (EventSender(sender), response)
}

struct Events {
    receiver: Pin<Box<Receiver<Vec<u8>>>>,
    event: Vec<u8>,
    read: usize,
}

impl AsyncBufRead for Events {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.read == this.event.len() {
            this.event = ready!(this.receiver.as_mut().poll_next(context)).unwrap_or_default();
            this.read = 0;
        }
        Poll::Ready(Ok(&this.event[this.read..]))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.read += amount;
    }
}

impl AsyncRead for Events {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        buffered_read::poll_read(self, context, buffer)
    }
}
