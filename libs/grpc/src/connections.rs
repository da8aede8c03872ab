//! The open connections of a server: how many, what each waits for, and since when.

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

/// No wait begins at this time.
const NOT_WAITING: u64 = u64::MAX;
/// Bytes of HTTP/2's preface and of a frame's head. A client that sends no more than these has not begun.
const FIRST_BYTES: usize = 24 + 9;

/// Milliseconds since a moment of the server's own: times that fit an atomic.
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
        // A time that has been written since is none that has passed.
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

    /// Takes a connection in, which is forgotten when the result is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream) -> Registered {
        let now = self.clock.now();
        let connection = Arc::new(Connection {
            stream,
            clock: self.clock,
            opened: now,
            received: AtomicUsize::new(0),
            used: AtomicU64::new(now),
            running: AtomicUsize::new(0),
            write_since: AtomicU64::new(NOT_WAITING),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        Registered { id, connection, all: self.clone() }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes and forgets the connection that has been of no use for longest; false if calls are at work on each.
    pub(crate) fn close_least_used(&self) -> bool {
        let mut open = self.lock();
        let unused = open.iter().filter(|(_, connection)| connection.running.load(Ordering::Relaxed) == 0);
        let longest = unused.map(|(id, connection)| (connection.used.load(Ordering::Relaxed), *id)).min();
        let closed = longest.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close()).is_some()
    }

    /// Closes those whose client has kept the server waiting for too long.
    pub(crate) fn close_overdue(&self, limits: &Limits) {
        for connection in self.lock().values() {
            let begun = connection.received.load(Ordering::Relaxed) >= FIRST_BYTES;
            let write_since = connection.write_since.load(Ordering::Relaxed);
            if (!begun && self.clock.is_past(connection.opened, limits.handshake))
                || self.clock.is_past(write_since, limits.write_wait)
            {
                connection.close();
            }
        }
    }

    pub(crate) fn close_all(&self) {
        self.lock().values().for_each(|connection| connection.close());
    }

    /// Ends when no connection is open.
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
        // Nothing can panic while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones.
pub(crate) struct Registered {
    id: u64,
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Registered {
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The connection's bytes, watched.
    pub(crate) fn io(&self) -> WatchedIo {
        WatchedIo { inner: self.connection.stream.clone(), connection: self.connection.clone() }
    }
}

impl Drop for Registered {
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
    /// Bytes received, as far as they matter.
    received: AtomicUsize,
    /// When it last did what connections are for.
    used: AtomicU64,
    /// Calls whose handlers are at work.
    running: AtomicUsize,
    /// Since when the client has taken no byte.
    write_since: AtomicU64,
}

impl Connection {
    /// A call's handler is at work until the result is dropped.
    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// Its client has sent a whole request, or taken a part of an answer.
    pub(crate) fn use_now(&self) {
        self.used.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Reads of the connection end and writes fail from now on, so that its task ends by itself.
    fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A call's handler is at work.
pub(crate) struct Running(Arc<Connection>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.use_now();
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's bytes; remembers whether its client has begun, and when a write had to wait.
pub(crate) struct WatchedIo {
    inner: TcpStream,
    connection: Arc<Connection>,
}

impl WatchedIo {
    fn watch<T>(&self, write: Poll<T>) -> Poll<T> {
        let since = &self.connection.write_since;
        if write.is_ready() {
            since.store(NOT_WAITING, Ordering::Relaxed);
        } else if since.load(Ordering::Relaxed) == NOT_WAITING {
            since.store(self.connection.clock.now(), Ordering::Relaxed);
        }
        write
    }
}

impl AsyncRead for WatchedIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Poll::Ready(Ok(count)) = read {
            let received = &self.connection.received;
            if received.load(Ordering::Relaxed) < FIRST_BYTES {
                received.fetch_add(count, Ordering::Relaxed);
            }
        }
        read
    }
}

impl AsyncWrite for WatchedIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}
