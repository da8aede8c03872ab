//! A connection's I/O for hyper.

use std::{
    io,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use smol_hyper::rt::FuturesIo;

use super::{Client, UNSET};

/// A connection's socket, which records since when a write has been blocked. It is below TLS, which takes some bytes
/// although the socket takes none.
pub(crate) struct Socket {
    inner: TcpStream,
    client: Client,
}

impl Socket {
    pub(super) fn new(client: Client) -> Self {
        Self { inner: client.connection.stream.clone(), client }
    }

    fn observe<T>(&self, write: Poll<T>) -> Poll<T> {
        let Client { connection, all } = &self.client;
        if write.is_ready() {
            connection.blocked_since.store(UNSET, Ordering::Relaxed);
        } else if !connection.is_write_blocked() {
            connection.blocked_since.store(all.now(), Ordering::Relaxed);
        }
        write
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.observe(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.observe(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// A connection's I/O for hyper: reads first what was read before, and records whether a head has begun to arrive.
pub(crate) struct ObservedIo {
    /// Bytes that were read before hyper got the connection.
    prefix: Vec<u8>,
    /// How many of them hyper has read.
    consumed: usize,
    inner: FuturesIo<tls::Stream<Socket>>,
    client: Client,
}

impl ObservedIo {
    pub(super) fn new(prefix: Vec<u8>, stream: tls::Stream<Socket>, client: Client) -> Self {
        Self { prefix, consumed: 0, inner: FuturesIo::new(stream), client }
    }

    /// The stream, when hyper hands the connection back.
    pub(crate) fn into_stream(self) -> tls::Stream<Socket> {
        self.inner.into_inner()
    }
}

impl hyper::rt::Read for ObservedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let outcome = if this.consumed < this.prefix.len() {
            let rest = &this.prefix[this.consumed..];
            let length = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..length]);
            this.consumed += length;
            if this.consumed == this.prefix.len() {
                (this.prefix, this.consumed) = (Vec::new(), 0);
            }
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.inner).poll_read(context, buffer)
        };
        let connection = &this.client.connection;
        connection.is_read_blocked.store(outcome.is_pending(), Ordering::Relaxed);
        let awaits_head = connection.is_idle() && connection.open_bodies.load(Ordering::Relaxed) == 0;
        if outcome.is_ready() && awaits_head {
            // Bytes of the next head; reset at once if the head is complete.
            connection.has_partial_head.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl hyper::rt::Write for ObservedIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
}
