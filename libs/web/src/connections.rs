//! The open connections of a server: what each waits for, since when, and how much memory it holds.
//!
//! One task sweeps all of them once a second. This replaces two or three timers for each request, each of which would
//! wake the reactor, and lets the server close the longest idle connection when it is full.
//!
//! Memory is bounded for all connections together. A connection is charged for what it holds: the bytes of an
//! unfinished head, the buffers of the current request, its body, an answer that its client has not read. When the
//! charges exceed [`Limits::buffers`], first idle connections release their buffers, and then the connection is evicted
//! whose client has been waited for longest.

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use event_listener::Event;
use futures_util::task::AtomicWaker;
use smol::net::TcpStream;
use smol_hyper::rt::FuturesIo;
use telemetry::metrics::{self, IntCounter, IntGauge};

use crate::{
    Limits,
    chunks::{BlockPool, ChunkedBuffer},
};

static HELD: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("http_buffer_bytes", "Memory held for what HTTP clients have not sent or taken completely.")
});
static EVICTED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("http_connections_evicted_total", "HTTP connections closed because others needed their memory.")
});

/// A time that is not set: nothing is waited for.
const NEVER: u64 = u64::MAX;
/// Bytes charged for a request besides its head and body: hyper's buffers and the futures of the handler.
pub(crate) const REQUEST_OVERHEAD: usize = 20 * 1024;
/// The slowest reader of an answer that is not disconnected, in bytes per second.
const MIN_READ_RATE: u64 = 4 * 1024;

/// Every open connection of a server.
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Event,
    next: AtomicU64,
    started: Instant,
    /// The sum of the charges of all connections, and its limit, in bytes.
    charged: AtomicUsize,
    most: usize,
    write_timeout: Duration,
    pool: Arc<BlockPool>,
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            closed: Event::new(),
            next: AtomicU64::new(0),
            started: Instant::now(),
            charged: AtomicUsize::new(0),
            most: limits.buffers,
            write_timeout: limits.write_timeout,
            pool: BlockPool::new(limits.buffers),
        })
    }

    /// Registers a connection until the guard is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream, is_trusted_proxy: bool) -> ConnectionGuard {
        let never = || AtomicU64::new(NEVER);
        let connection = Connection {
            stream,
            idle_since: AtomicU64::new(self.now()),
            head_since: never(),
            body_since: never(),
            write_since: never(),
            answer_until: never(),
            charged: AtomicUsize::new(0),
            has_partial_head: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
            task: AtomicWaker::new(),
        };
        let connection = Arc::new(connection);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        ConnectionGuard { id, is_trusted_proxy, client: Client { connection, all: self.clone() } }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes and removes the connection that has been idle longest; false if none is idle.
    pub(crate) fn close_longest_idle(&self) -> bool {
        let mut open = self.lock();
        let waiting = open.iter().map(|(id, connection)| (connection.request_awaited_since(), *id));
        let longest = waiting.filter(|(since, _)| *since != NEVER).min();
        let closed = longest.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close(Shutdown::Both)).is_some()
    }

    /// Closes connections whose client exceeded a timeout, and has idle ones release their buffers.
    pub(crate) fn sweep(&self, limits: &Limits) {
        HELD.set(i64::try_from(self.charged.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        let now = self.now();
        let is_over = |since: &AtomicU64, limit: Duration| {
            now.saturating_sub(since.load(Ordering::Relaxed)) > u64::try_from(limit.as_millis()).unwrap_or(NEVER)
        };
        for connection in self.lock().values() {
            // A head that has started has its own timeout.
            let is_idle = connection.head_since.load(Ordering::Relaxed) == NEVER;
            if is_idle && is_over(&connection.idle_since, limits.idle_timeout)
                || is_over(&connection.head_since, limits.head_timeout)
                || is_over(&connection.write_since, limits.write_timeout)
                || is_over(&connection.answer_until, Duration::ZERO)
            {
                connection.close(Shutdown::Both);
            } else if connection.holds_idle_buffers() {
                connection.release();
            }
        }
    }

    pub(crate) fn close_all(&self) {
        self.lock().values().for_each(|connection| connection.close(Shutdown::Both));
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

    /// Milliseconds since the server's start.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Replaces the charge of a connection.
    fn set_charge(&self, connection: &Connection, bytes: usize) {
        // Not atomic together, which would need a lock; the sum is correct after both.
        self.charged.fetch_add(bytes, Ordering::Relaxed);
        self.charged.fetch_sub(connection.charged.swap(bytes, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether more than half of the memory is in use; then idle connections release theirs at once.
    fn is_short(&self) -> bool {
        self.charged.load(Ordering::Relaxed) > self.most / 2
    }

    /// Frees memory until the charges are within the limit; false if no connection but `asking` is left to be evicted.
    fn make_room(&self, asking: &Arc<Connection>) -> bool {
        let is_over = || self.charged.load(Ordering::Relaxed) > self.most;
        if !is_over() {
            return true;
        }
        let open = self.lock();
        for connection in open.values().filter(|connection| connection.holds_idle_buffers()) {
            connection.release();
            // It frees the buffers as soon as its task runs.
            self.set_charge(connection, 0);
        }
        while is_over() {
            let held = open.values().filter(|connection| connection.charged.load(Ordering::Relaxed) > 0);
            let awaited = held.map(|connection| (connection.client_awaited_since(), connection));
            let longest = awaited.filter(|(since, _)| *since != NEVER).min_by_key(|(since, _)| *since);
            match longest {
                // Not the asking one: its request is rejected, and it can still get an answer.
                Some((_, connection)) if !Arc::ptr_eq(connection, asking) => {
                    connection.evict();
                    EVICTED.inc();
                    self.set_charge(connection, 0);
                }
                _ => return false,
            }
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Nothing can panic while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a connection registered.
pub(crate) struct ConnectionGuard {
    id: u64,
    is_trusted_proxy: bool,
    client: Client,
}

impl ConnectionGuard {
    /// The connection, for its requests.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The connection's I/O for hyper, which reads the bytes of `begun` first.
    pub(crate) fn io(&self, begun: Vec<u8>) -> WatchedIo {
        let stream = self.client.connection.stream.clone();
        WatchedIo { begun, read: 0, inner: FuturesIo::new(stream), client: self.client.clone() }
    }

    /// Whether the peer is a trusted proxy.
    pub(crate) fn is_trusted_proxy(&self) -> bool {
        self.is_trusted_proxy
    }

    pub(crate) fn stream(&self) -> TcpStream {
        self.client.connection.stream.clone()
    }

    /// Notes that an incomplete head of this many bytes has arrived, and charges the connection for it.
    ///
    /// False if there is no memory for it, because no other client has been waited for longer.
    pub(crate) fn head_started(&self, bytes: usize) -> bool {
        let Client { connection, all } = &self.client;
        if connection.head_since.load(Ordering::Relaxed) == NEVER {
            connection.head_since.store(all.now(), Ordering::Relaxed);
        }
        all.set_charge(connection, bytes);
        all.make_room(connection)
    }

    /// Notes that the connection waits for the next request and holds no memory.
    pub(crate) fn mark_idle(&self) {
        let Client { connection, all } = &self.client;
        connection.is_released.store(false, Ordering::Relaxed);
        all.set_charge(connection, 0);
    }

    /// Notes that hyper serves the connection now, with a complete head or one that it has to reject.
    pub(crate) fn session_started(&self) {
        let Client { connection, all } = &self.client;
        connection.head_since.store(NEVER, Ordering::Relaxed);
        connection.has_partial_head.store(false, Ordering::Relaxed);
        all.set_charge(connection, REQUEST_OVERHEAD);
        // If there is no room, the request is rejected with 503 once its head is parsed.
        all.make_room(connection);
    }

    /// Registers the task to wake when the connection is to release its buffers.
    pub(crate) fn watch(&self, context: &Context<'_>) {
        self.client.connection.task.register(context.waker());
    }

    /// Whether the connection can be taken back from hyper: all complete requests are answered, the answers are
    /// written, and its buffers are needed elsewhere or hold an incomplete head.
    pub(crate) fn can_hand_back(&self) -> bool {
        let Client { connection, all } = &self.client;
        if connection.idle_since.load(Ordering::Relaxed) == NEVER || connection.is_writing() {
            return false;
        }
        connection.answer_until.store(NEVER, Ordering::Relaxed);
        if connection.charged.load(Ordering::Relaxed) > REQUEST_OVERHEAD {
            all.set_charge(connection, REQUEST_OVERHEAD);
        }
        connection.has_partial_head.load(Ordering::Relaxed)
            || connection.is_released.load(Ordering::Relaxed)
            || all.is_short()
    }

    /// Notes that a complete head has arrived. The connection is idle again when the guard is dropped.
    pub(crate) fn busy(&self) -> RequestGuard {
        let connection = &self.client.connection;
        connection.idle_since.store(NEVER, Ordering::Relaxed);
        connection.has_partial_head.store(false, Ordering::Relaxed);
        // That was the deadline of the previous answer.
        connection.answer_until.store(NEVER, Ordering::Relaxed);
        RequestGuard(self.client.clone())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let Client { connection, all } = &self.client;
        all.lock().remove(&self.id);
        all.set_charge(connection, 0);
        all.closed.notify(usize::MAX);
    }
}

/// A request of the connection is being handled or its answer written.
pub(crate) struct RequestGuard(Client);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let Client { connection, all } = &self.0;
        connection.body_since.store(NEVER, Ordering::Relaxed);
        connection.idle_since.store(all.now(), Ordering::Relaxed);
    }
}

/// The connection, as its requests use it.
#[derive(Clone)]
pub(crate) struct Client {
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Client {
    /// A buffer that starts with these bytes.
    pub(crate) fn chunks(&self, start: Vec<u8>) -> ChunkedBuffer {
        ChunkedBuffer::new(&self.all.pool, start)
    }

    /// Charges the connection for a request with a head of this many bytes; false if there is no room for it.
    pub(crate) fn request_started(&self, head: usize) -> bool {
        // Three times: hyper's copy, tide's, and the overhead of both.
        self.all.set_charge(&self.connection, REQUEST_OVERHEAD + 3 * head);
        self.all.make_room(&self.connection)
    }

    /// Adds to the charge of the connection; false, and unchanged, if there is no room.
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let charge = self.connection.charged.load(Ordering::Relaxed);
        self.all.set_charge(&self.connection, charge + bytes);
        let room = self.all.make_room(&self.connection);
        if !room {
            self.all.set_charge(&self.connection, charge);
        }
        room
    }

    /// Notes that the server waits for a body until the guard is dropped.
    pub(crate) fn awaiting_body(&self) -> BodyWaitGuard<'_> {
        self.connection.body_since.store(self.all.now(), Ordering::Relaxed);
        BodyWaitGuard(&self.connection)
    }

    /// Charges the connection for an answer of this many bytes, and sets the deadline by which the client must have
    /// read it. The answer is in memory already, so it is not rejected.
    pub(crate) fn answer_started(&self, bytes: usize) {
        let charge = self.connection.charged.load(Ordering::Relaxed);
        self.all.set_charge(&self.connection, charge + bytes);
        self.all.make_room(&self.connection);
        let seconds = bytes as u64 / MIN_READ_RATE;
        let time = self.all.write_timeout + Duration::from_secs(seconds);
        let until = self.all.now().saturating_add(u64::try_from(time.as_millis()).unwrap_or(NEVER));
        self.connection.answer_until.store(until, Ordering::Relaxed);
    }

    /// Whether the connection was closed to free its memory.
    pub(crate) fn is_evicted(&self) -> bool {
        self.connection.is_evicted.load(Ordering::Relaxed)
    }
}

/// The server waits for a body.
pub(crate) struct BodyWaitGuard<'a>(&'a Connection);

impl Drop for BodyWaitGuard<'_> {
    fn drop(&mut self) {
        self.0.body_since.store(NEVER, Ordering::Relaxed);
    }
}

/// A connection. Times are in milliseconds since the server's start, or [`NEVER`].
struct Connection {
    stream: TcpStream,
    /// Since when no request is being handled.
    idle_since: AtomicU64,
    /// When the first bytes of an incomplete head arrived.
    head_since: AtomicU64,
    /// Since when the server waits for a body.
    body_since: AtomicU64,
    /// Since when a write has been blocked.
    write_since: AtomicU64,
    /// Deadline for reading the whole answer.
    answer_until: AtomicU64,
    /// Bytes of memory that it is charged for.
    charged: AtomicUsize,
    /// Whether hyper has read bytes of the next head.
    has_partial_head: AtomicBool,
    is_evicted: AtomicBool,
    /// Whether it is to release the buffers of its last request.
    is_released: AtomicBool,
    task: AtomicWaker,
}

impl Connection {
    /// Shuts the socket down, so that the connection's task ends by itself.
    fn close(&self, what: Shutdown) {
        // It may be closed already.
        let _ = self.stream.shutdown(what);
    }

    fn is_writing(&self) -> bool {
        self.write_since.load(Ordering::Relaxed) != NEVER
    }

    fn request_awaited_since(&self) -> u64 {
        self.idle_since.load(Ordering::Relaxed)
    }

    /// Since when the connection has held memory while it waits for its client.
    fn client_awaited_since(&self) -> u64 {
        let since = [&self.head_since, &self.body_since, &self.write_since].map(|since| since.load(Ordering::Relaxed));
        since.into_iter().min().unwrap_or(NEVER)
    }

    fn holds_idle_buffers(&self) -> bool {
        let is_idle = self.idle_since.load(Ordering::Relaxed) != NEVER && self.client_awaited_since() == NEVER;
        is_idle && self.charged.load(Ordering::Relaxed) > 0
    }

    fn release(&self) {
        self.is_released.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Closes the connection to free its memory.
    fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        // Once an answer has been started nothing else can be sent; before that, writing stays open for a 503.
        self.close(if self.is_writing() { Shutdown::Both } else { Shutdown::Read });
    }
}

/// A connection's I/O for hyper, which notes since when a write has been blocked.
pub(crate) struct WatchedIo {
    begun: Vec<u8>,
    read: usize,
    inner: FuturesIo<TcpStream>,
    client: Client,
}

impl WatchedIo {
    fn watch<T>(&self, write: Poll<T>) -> Poll<T> {
        let Client { connection, all } = &self.client;
        if write.is_ready() {
            connection.write_since.store(NEVER, Ordering::Relaxed);
        } else if !connection.is_writing() {
            connection.write_since.store(all.now(), Ordering::Relaxed);
        }
        write
    }
}

impl hyper::rt::Read for WatchedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let outcome = if this.read < this.begun.len() {
            let rest = &this.begun[this.read..];
            let length = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..length]);
            this.read += length;
            if this.read == this.begun.len() {
                (this.begun, this.read) = (Vec::new(), 0);
            }
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.inner).poll_read(context, buffer)
        };
        let connection = &this.client.connection;
        if outcome.is_ready() && connection.idle_since.load(Ordering::Relaxed) != NEVER {
            // Bytes of the next head; reset at once if the head is complete.
            connection.has_partial_head.store(true, Ordering::Relaxed);
        }
        outcome
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

#[cfg(test)]
mod tests {
    use futures_lite::{AsyncReadExt as _, future::poll_once};
    use smol::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_has_to_be_read_by_a_deadline() {
        smol::block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let limits = Limits { write_timeout: Duration::ZERO, ..Limits::default() };
            let connections = Connections::new(&limits);
            let registered = connections.register(stream, false);
            let _busy = registered.busy();
            let is_open = async || {
                // Time is counted in milliseconds.
                smol::Timer::after(Duration::from_millis(5)).await;
                connections.sweep(&limits);
                poll_once(registered.stream().read(&mut [0])).await.is_none()
            };
            assert!(is_open().await, "the answer is not there yet");
            registered.client().answer_started(1 << 30);
            assert!(is_open().await, "a long answer has more time");
            registered.client().answer_started(1);
            let _next = registered.busy();
            assert!(is_open().await, "the time for an answer does not count for the next one, such as a stream");
            registered.client().answer_started(1);
            assert!(!is_open().await, "a short one has none");
        });
    }
}
