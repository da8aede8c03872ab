//! The body of a request: a reader for tide, and what becomes of the rest that no handler reads because the response does
//! not depend on it: 401, 404, 413, 415, 503.
//!
//! The rest is discarded after the response, within bounds. Then the connection can be used again, and a client that is
//! still sending gets the response: closing a connection with unread bytes resets it, and a client that finds the
//! connection reset may never look at the response (RFC 9112, section 9.6).

use std::{
    io,
    pin::Pin,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_lite::{AsyncBufRead, AsyncRead};
use hyper::body::{Body as _, Incoming};

use super::{Client, Connection, ConnectionGuard, Shutdown, UNSET};
use crate::buffered_read;

/// Bytes of a body that are discarded, and for how long. After that the connection is closed.
const MAX_DISCARDED: usize = 4 * 1024 * 1024;
pub(super) const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// hyper's request body as a reader for tide.
pub(crate) struct RequestBody {
    /// None once it has been received to its end.
    incoming: Option<Incoming>,
    chunk: Bytes,
    client: Client,
}

impl RequestBody {
    /// None if the request has no body.
    pub(crate) fn new(incoming: Incoming, client: &Client) -> Option<Self> {
        if incoming.is_end_stream() {
            return None;
        }
        client.connection.open_bodies.fetch_add(1, Ordering::Relaxed);
        Some(Self { incoming: Some(incoming), chunk: Bytes::new(), client: client.clone() })
    }

    /// Its length in bytes, if the head says it.
    pub(crate) fn length(&self) -> Option<usize> {
        self.incoming.as_ref()?.size_hint().exact()?.try_into().ok()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            let rest = UnreadBody { incoming: Some(incoming), discarded: 0, longest: 0 };
            *self.client.connection.unread_body() = Some(rest);
        }
    }
}

impl AsyncBufRead for RequestBody {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match ready!(this.client.connection.poll_body(&mut this.incoming, context))? {
                Some(chunk) => this.chunk = chunk,
                None => break,
            }
        }
        Poll::Ready(Ok(&this.chunk))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.chunk.advance(amount);
    }
}

impl AsyncRead for RequestBody {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        buffered_read::poll_read(self, context, buffer)
    }
}

/// The rest of a body that its handler has left.
pub(super) struct UnreadBody {
    incoming: Option<Incoming>,
    discarded: usize,
    /// The longest piece so far: hyper's buffer is as large.
    longest: usize,
}

impl Connection {
    /// The next bytes of a body; none at its end. It is taken when it has been received to its end, or never will be.
    fn poll_body(&self, body: &mut Option<Incoming>, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let Some(incoming) = body else { return Poll::Ready(Ok(None)) };
        let data = match ready!(Pin::new(&mut *incoming).poll_frame(context)) {
            Some(Ok(frame)) => Some(frame.into_data().unwrap_or_default()),
            Some(Err(error)) => {
                // hyper closes the connection. What comes next on it is unknown, so the body stays open.
                *body = None;
                return Poll::Ready(Err(io::Error::other(error)));
            }
            None => None,
        };
        if data.is_none() || incoming.is_end_stream() {
            *body = None;
            self.open_bodies.fetch_sub(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(data))
    }

    fn unread_body(&self) -> MutexGuard<'_, Option<UnreadBody>> {
        // Nothing can panic while it is held.
        self.unread_body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_have_unread_body(&self) -> bool {
        self.open_bodies.load(Ordering::Relaxed) > 0 && self.is_idle()
    }
}

impl ConnectionGuard {
    /// Discards what has arrived of a body that its handler has left, once the response is written.
    pub(crate) fn discard_unread_body(&self, context: &mut Context<'_>) {
        let Client { connection, all } = &self.client;
        if !connection.may_have_unread_body() {
            return;
        }
        let mut unread = connection.unread_body();
        let Some(body) = &mut *unread else { return };
        if connection.body_since.load(Ordering::Relaxed) == UNSET {
            connection.body_since.store(all.now(), Ordering::Relaxed);
        }
        while let Poll::Ready(data) = connection.poll_body(&mut body.incoming, context) {
            let length = data.ok().flatten().map_or(0, |data| data.len());
            if body.incoming.is_none() {
                *unread = None;
                connection.body_since.store(UNSET, Ordering::Relaxed);
                return;
            }
            body.discarded += length;
            let larger = length.saturating_sub(body.longest);
            body.longest += larger;
            // Twice: it is in hyper's buffer, and the next bytes are already read behind it.
            if body.discarded > MAX_DISCARDED || (larger > 0 && !self.client.charge(2 * larger)) {
                *unread = None;
                connection.close(Shutdown::Read);
                return;
            }
        }
    }

    /// Leaves such a body to hyper, which reads what has arrived and closes the connection if that is not all.
    pub(crate) fn abandon_unread_body(&self) {
        let connection = &self.client.connection;
        if connection.may_have_unread_body() {
            *connection.unread_body() = None;
        }
    }
}
