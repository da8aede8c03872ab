//! The open connections of a server: how many, what each waits for, and since when.
//!
//! One task looks at all of them once a second. That takes the place of two or three timers a request, each of which
//! would wake the reactor, and it is what lets the server close the longest idle connection when it is full.

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use event_listener::Event;
use smol::net::TcpStream;
use smol_hyper::rt::FuturesIo;

use crate::Limits;

/// No wait begins at this time.
const NOT_WAITING: u64 = u64::MAX;

/// Every open connection of a server.
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Event,
    next: AtomicU64,
    started: Instant,
}

impl Connections {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            closed: Event::new(),
            next: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    /// Takes a connection in, which is forgotten when the result is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream) -> Registered {
        let connection = Arc::new(Connection {
            stream,
            started: self.started,
            head_since: AtomicU64::new(NOT_WAITING),
            write_since: AtomicU64::new(NOT_WAITING),
        });
        connection.head_since.store(connection.now(), Ordering::Relaxed);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        Registered { id, connection, all: self.clone() }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes and forgets the connection that has waited longest for a request; false if each is at work.
    pub(crate) fn close_longest_idle(&self) -> bool {
        let mut open = self.lock();
        let waiting = open.iter().map(|(id, connection)| (connection.head_since.load(Ordering::Relaxed), *id));
        let longest = waiting.filter(|(since, _)| *since != NOT_WAITING).min();
        let closed = longest.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close()).is_some()
    }

    /// Closes those whose client has kept the server waiting for too long.
    pub(crate) fn close_overdue(&self, limits: &Limits) {
        for connection in self.lock().values() {
            let overdue = |since: &AtomicU64, limit: Duration| {
                let since = since.load(Ordering::Relaxed);
                connection.now().saturating_sub(since) > u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
            };
            if overdue(&connection.head_since, limits.head_wait) || overdue(&connection.write_since, limits.write_wait)
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
    /// The connection's bytes, watched.
    pub(crate) fn io(&self) -> WatchedIo {
        WatchedIo { inner: FuturesIo::new(self.connection.stream.clone()), connection: self.connection.clone() }
    }

    /// Says that a whole head has come. The wait for the next one begins when the result is dropped.
    pub(crate) fn busy(&self) -> Busy {
        self.connection.head_since.store(NOT_WAITING, Ordering::Relaxed);
        Busy(self.connection.clone())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
        self.all.closed.notify(usize::MAX);
    }
}

/// A request of the connection is being handled or answered.
pub(crate) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.head_since.store(self.0.now(), Ordering::Relaxed);
    }
}

struct Connection {
    stream: TcpStream,
    started: Instant,
    /// Milliseconds after `started` since which the next head is awaited.
    head_since: AtomicU64,
    /// Milliseconds after `started` since which the client has taken no byte.
    write_since: AtomicU64,
}

impl Connection {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Reads of the connection end and writes fail from now on, so that its task ends by itself.
    fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A connection's bytes, for hyper; remembers when a write had to wait.
pub(crate) struct WatchedIo {
    inner: FuturesIo<TcpStream>,
    connection: Arc<Connection>,
}

impl WatchedIo {
    fn watch<T>(&self, write: Poll<T>) -> Poll<T> {
        let since = &self.connection.write_since;
        if write.is_ready() {
            since.store(NOT_WAITING, Ordering::Relaxed);
        } else if since.load(Ordering::Relaxed) == NOT_WAITING {
            since.store(self.connection.now(), Ordering::Relaxed);
        }
        write
    }
}

impl hyper::rt::Read for WatchedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for WatchedIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(written)
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
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.watch(written)
    }
}
