//! The open connections of a server, and which of them have waited for their client for too long.

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use event_listener::Event;
use futures_lite::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;

use crate::Limits;

/// Stands for: no write is blocked.
const NOT_BLOCKED: u64 = u64::MAX;
/// Bytes of HTTP/2's preface and the first frame's header. A client that has sent fewer has not completed the handshake.
const HANDSHAKE_BYTES: usize = 24 + 9;

/// Monotonic time in milliseconds since the start of the server, which fits an atomic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    /// Whether more than `limit` has passed since then.
    pub(crate) fn is_past(self, since: u64, limit: Duration) -> bool {
        // Another thread may have written a later time than our `now`.
        u128::from(self.now().saturating_sub(since)) > limit.as_millis()
    }
}

/// Every open connection of a server.
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Event,
    next: AtomicU64,
    clock: Clock,
}

impl Connections {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), closed: Event::new(), next: AtomicU64::new(0), clock })
    }

    /// Registers a connection until the result is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream) -> ConnectionGuard {
        let now = self.clock.now();
        let connection = Arc::new(Connection {
            stream,
            clock: self.clock,
            opened: now,
            received: AtomicUsize::new(0),
            last_used: AtomicU64::new(now),
            active_calls: AtomicUsize::new(0),
            blocked_since: AtomicU64::new(NOT_BLOCKED),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        ConnectionGuard { id, connection, all: self.clone() }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes the least recently used connection without active calls; false if each has some.
    pub(crate) fn close_least_recently_used(&self) -> bool {
        let mut open = self.lock();
        let idle = open.iter().filter(|(_, connection)| connection.active_calls.load(Ordering::Relaxed) == 0);
        let least_recent = idle.map(|(id, connection)| (connection.last_used.load(Ordering::Relaxed), *id)).min();
        let closed = least_recent.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close()).is_some()
    }

    /// Closes connections whose client has not completed the handshake, or has read nothing, for too long.
    pub(crate) fn close_overdue(&self, limits: &Limits) {
        for connection in self.lock().values() {
            let has_begun = connection.received.load(Ordering::Relaxed) >= HANDSHAKE_BYTES;
            let blocked_since = connection.blocked_since.load(Ordering::Relaxed);
            if (!has_begun && self.clock.is_past(connection.opened, limits.handshake))
                || self.clock.is_past(blocked_since, limits.write_wait)
            {
                connection.close();
            }
        }
    }

    pub(crate) fn close_all(&self) {
        self.lock().values().for_each(|connection| connection.close());
    }

    /// Waits until no connection is open.
    pub(crate) async fn all_closed(&self) {
        loop {
            let listener = self.closed.listen();
            if self.count() == 0 {
                return;
            }
            listener.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A registered connection. Dropping it removes the connection from the open ones.
pub(crate) struct ConnectionGuard {
    id: u64,
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl ConnectionGuard {
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The connection's socket, observed.
    pub(crate) fn io(&self) -> ObservedIo {
        ObservedIo { inner: self.connection.stream.clone(), connection: self.connection.clone() }
    }

    /// What is read from the socket, perhaps decrypted, observed.
    pub(crate) fn plaintext<T>(&self, inner: T) -> PlaintextIo<T> {
        PlaintextIo { inner, connection: self.connection.clone() }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
        self.all.closed.notify(usize::MAX);
    }
}

/// An open connection.
pub(crate) struct Connection {
    stream: TcpStream,
    clock: Clock,
    opened: u64,
    /// Bytes received, counted up to [`HANDSHAKE_BYTES`].
    received: AtomicUsize,
    /// When a call last ended, or the client last read from a response.
    last_used: AtomicU64,
    /// Calls that the service is handling.
    active_calls: AtomicUsize,
    /// Since when a write has been blocked.
    blocked_since: AtomicU64,
}

impl Connection {
    /// Counts a call as active until the result is dropped.
    pub(crate) fn begin_call(self: &Arc<Self>) -> ActiveCall {
        self.active_calls.fetch_add(1, Ordering::Relaxed);
        ActiveCall(self.clone())
    }

    /// Marks it as used now.
    pub(crate) fn touch(&self) {
        self.last_used.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Ends reads and fails writes, so that the connection's task ends by itself.
    fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A call that the service is handling.
pub(crate) struct ActiveCall(Arc<Connection>);

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.0.touch();
        self.0.active_calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's socket; records since when a write has been blocked.
pub(crate) struct ObservedIo {
    inner: TcpStream,
    connection: Arc<Connection>,
}

impl ObservedIo {
    fn observe<T>(&self, write: Poll<T>) -> Poll<T> {
        let since = &self.connection.blocked_since;
        if write.is_ready() {
            since.store(NOT_BLOCKED, Ordering::Relaxed);
        } else if since.load(Ordering::Relaxed) == NOT_BLOCKED {
            since.store(self.connection.clock.now(), Ordering::Relaxed);
        }
        write
    }
}

impl AsyncRead for ObservedIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for ObservedIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.observe(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// What hyper reads and writes; counts the bytes of HTTP/2's handshake, which TLS's does not replace.
pub(crate) struct PlaintextIo<T> {
    inner: T,
    connection: Arc<Connection>,
}

impl<T: AsyncRead + Unpin> AsyncRead for PlaintextIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Poll::Ready(Ok(count)) = read {
            let received = &self.connection.received;
            if received.load(Ordering::Relaxed) < HANDSHAKE_BYTES {
                received.fetch_add(count, Ordering::Relaxed);
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PlaintextIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}
