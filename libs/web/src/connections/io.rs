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
/// although the socket takes none, and keeps those of a record until its last byte has come.
pub(crate) struct Socket {
    inner: TcpStream,
    client: Client,
    /// With TLS.
    records: Option<Records>,
}

impl Socket {
    pub(super) fn new(client: Client, is_tls: bool) -> Self {
        Self { inner: client.connection.stream.clone(), client, records: is_tls.then(Records::default) }
    }

    /// Notes that TLS has passed on plaintext, or completed the handshake: it holds at most the beginning of the next record.
    pub(crate) fn decrypted(&mut self) {
        if let Some(records) = self.records.as_mut().filter(|records| records.held > records.incomplete) {
            records.held = records.incomplete;
            self.client.records_ended(records.held);
        }
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
        let Self { inner, client, records } = &mut *self;
        let Some(records) = records else { return Pin::new(inner).poll_read(context, buffer) };
        let read = if records.take_turns(client.is_memory_short()) {
            context.waker().wake_by_ref();
            Poll::Pending
        } else {
            Pin::new(inner).poll_read(context, buffer)
        };
        match read {
            Poll::Ready(Ok(length)) => records.read(&buffer[..length]),
            Poll::Pending if records.held > 0 && !client.records_held(records.held, context) => {
                return Poll::Ready(Err(io::Error::other("there is no memory for a TLS record")));
            }
            _ => {}
        }
        read
    }
}

/// Which bytes TLS may still hold: those of a record until it is complete, those of a handshake message until all of its
/// records have come. rustls does not say how many they are.
#[derive(Default)]
struct Records {
    /// Bytes that were read and that TLS has not passed on.
    held: usize,
    /// Bytes of an incomplete record that were read, its header among them.
    incomplete: usize,
    /// The last two of them within the header.
    length: u16,
    /// Bytes that the record lacks after its header.
    missing: usize,
    /// How often the connection has given way to others since it last read.
    waits: u8,
}

impl Records {
    fn read(&mut self, mut bytes: &[u8]) {
        /// Type, version and, in the last two bytes, the length.
        const HEADER: usize = 5;
        self.held += bytes.len();
        while let [first, rest @ ..] = bytes {
            if self.missing > 0 {
                let length = self.missing.min(bytes.len());
                self.missing -= length;
                self.incomplete += length;
                bytes = &bytes[length..];
            } else {
                self.incomplete += 1;
                self.length = self.length << 8 | u16::from(*first);
                if self.incomplete == HEADER {
                    self.missing = self.length.into();
                }
                bytes = rest;
            }
            if self.missing == 0 && self.incomplete >= HEADER {
                self.incomplete = 0;
            }
        }
    }

    /// Whether to let other connections run before more is read: while memory is short, those that are evicted have to free
    /// theirs first. rustls would read all that has arrived at once.
    fn take_turns(&mut self, is_memory_short: bool) -> bool {
        /// What rustls reads at once.
        const TURN: usize = 4 * 1024;
        // After the first time, futures-rustls reports a handshake's progress to itself and reads again.
        const WAITS: u8 = 2;
        let waits = is_memory_short && self.held >= TURN && self.waits < WAITS;
        self.waits = if waits { self.waits + 1 } else { 0 };
        waits
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
            let read = Pin::new(&mut this.inner).poll_read(context, buffer);
            if read.is_ready() {
                this.inner.get_mut().get_mut().decrypted();
            }
            read
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
