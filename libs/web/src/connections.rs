//! The open connections of a server: what each waits for, since when, and how much memory it holds.
//!
//! One task sweeps all of them once a second. This replaces two or three timers for each request, each of which would
//! wake the reactor, and lets the server close the longest idle connection when it is full.
//!
//! Memory is bounded for all connections together, by [`memory`].

mod io;
mod memory;
mod request_body;

use std::{
    collections::HashMap,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use event_listener::Event;
use futures_util::task::AtomicWaker;
use smol::net::TcpStream;

use self::{
    io::ObservedIo,
    memory::MemoryBudget,
    request_body::{DISCARD_TIMEOUT, UnreadBody},
};
pub(crate) use self::{io::Socket, memory::REQUEST_OVERHEAD, request_body::RequestBody};
use crate::{
    Limits,
    chunks::{BlockPool, ChunkedBuffer},
};

/// Stands for a time that is not set: nothing is waited for.
const UNSET: u64 = u64::MAX;
/// Bytes per second that a client has to read of a response, so that it is not disconnected.
const MIN_READ_RATE: u64 = 4 * 1024;

/// Every open connection of a server.
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Event,
    next: AtomicU64,
    started: Instant,
    memory: MemoryBudget,
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
            memory: MemoryBudget::new(limits.buffers),
            write_timeout: limits.write_timeout,
            pool: BlockPool::new(limits.buffers),
        })
    }

    /// Registers a connection until the guard is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream, is_trusted_proxy: bool) -> ConnectionGuard {
        let unset = || AtomicU64::new(UNSET);
        let connection = Connection {
            stream,
            idle_since: AtomicU64::new(self.now()),
            record_since: unset(),
            head_since: unset(),
            body_since: unset(),
            blocked_since: unset(),
            response_deadline: unset(),
            charged: AtomicUsize::new(0),
            records_charged: AtomicUsize::new(0),
            open_bodies: AtomicUsize::new(0),
            unread_body: Mutex::default(),
            is_read_blocked: AtomicBool::new(false),
            has_partial_head: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            must_release: AtomicBool::new(false),
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
        let longest = waiting.filter(|(since, _)| *since != UNSET).min();
        let closed = longest.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close(Shutdown::Both)).is_some()
    }

    /// Closes connections whose client exceeded a timeout, and has idle ones release their buffers.
    pub(crate) fn sweep(&self, limits: &Limits) {
        self.memory.report();
        let now = self.now();
        let is_over = |since: &AtomicU64, limit: Duration| {
            now.saturating_sub(since.load(Ordering::Relaxed)) > u64::try_from(limit.as_millis()).unwrap_or(UNSET)
        };
        for connection in self.lock().values() {
            // A head that has started has its own timeout.
            let is_idle = connection.head_since.load(Ordering::Relaxed) == UNSET;
            if is_idle && is_over(&connection.idle_since, limits.idle_timeout)
                || is_over(&connection.head_since, limits.head_timeout)
                || is_over(&connection.record_since, limits.head_timeout)
                || is_over(&connection.blocked_since, limits.write_timeout)
                || is_over(&connection.response_deadline, Duration::ZERO)
            {
                connection.close(Shutdown::Both);
            } else if connection.is_idle() && is_over(&connection.body_since, DISCARD_TIMEOUT) {
                // Only for reading, so that the response still reaches the client and TLS ends properly.
                connection.close(Shutdown::Read);
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

    /// The connection's socket, for TLS or for [`io`](Self::io).
    pub(crate) fn socket(&self, is_tls: bool) -> Socket {
        Socket::new(self.client.clone(), is_tls)
    }

    /// The connection's I/O for hyper, which reads the bytes of `prefix` first.
    pub(crate) fn io(&self, prefix: Vec<u8>, stream: tls::Stream<Socket>) -> ObservedIo {
        ObservedIo::new(prefix, stream, self.client.clone())
    }

    /// Whether the peer is a trusted proxy.
    pub(crate) fn is_trusted_proxy(&self) -> bool {
        self.is_trusted_proxy
    }

    #[cfg(test)]
    fn stream(&self) -> TcpStream {
        self.client.connection.stream.clone()
    }

    /// Notes that an incomplete head of this many bytes has arrived, and charges the connection for it.
    ///
    /// False if there is no memory for it, because no other client has been waited for longer.
    pub(crate) fn head_started(&self, bytes: usize) -> bool {
        let Client { connection, all } = &self.client;
        if connection.head_since.load(Ordering::Relaxed) == UNSET {
            connection.head_since.store(all.now(), Ordering::Relaxed);
        }
        self.client.set_charge(bytes)
    }

    /// Notes that the connection waits for the next request and holds no memory.
    pub(crate) fn mark_idle(&self) {
        let Client { connection, all } = &self.client;
        connection.must_release.store(false, Ordering::Relaxed);
        all.memory.set_charge(connection, 0);
    }

    /// Notes that hyper serves the connection now, with a complete head or one that it has to reject.
    pub(crate) fn session_started(&self) {
        let connection = &self.client.connection;
        connection.head_since.store(UNSET, Ordering::Relaxed);
        connection.has_partial_head.store(false, Ordering::Relaxed);
        connection.is_read_blocked.store(false, Ordering::Relaxed);
        // If there is no room, the request is rejected with 503 once its head is parsed.
        self.client.set_charge(REQUEST_OVERHEAD);
    }

    /// Registers the task to wake when the connection is to release its buffers.
    pub(crate) fn watch(&self, context: &Context<'_>) {
        self.client.connection.task.register(context.waker());
    }

    /// Whether the connection can be taken back from hyper: all complete requests are answered, the responses are
    /// written, and its buffers are needed elsewhere or hold an incomplete head.
    ///
    /// The next byte from the client must then be one of a head. So the last body must be complete, and hyper must have
    /// parsed what it has read: it pauses after some pipelined requests, and reads on while there is more.
    pub(crate) fn can_hand_back(&self) -> bool {
        let Client { connection, all } = &self.client;
        let has_open_body = connection.open_bodies.load(Ordering::Relaxed) > 0;
        if !connection.is_idle() || has_open_body || connection.is_write_blocked() {
            return false;
        }
        connection.response_deadline.store(UNSET, Ordering::Relaxed);
        if self.client.charged() > REQUEST_OVERHEAD {
            all.memory.set_charge(connection, REQUEST_OVERHEAD);
        }
        let is_needed = connection.has_partial_head.load(Ordering::Relaxed)
            || connection.must_release.load(Ordering::Relaxed)
            || all.memory.is_short();
        is_needed && connection.is_read_blocked.load(Ordering::Relaxed)
    }

    /// Notes that a complete head has arrived. The connection is idle again when the guard is dropped.
    pub(crate) fn busy(&self) -> RequestGuard {
        let connection = &self.client.connection;
        connection.idle_since.store(UNSET, Ordering::Relaxed);
        connection.has_partial_head.store(false, Ordering::Relaxed);
        connection.must_release.store(false, Ordering::Relaxed);
        // That was the deadline of the previous response.
        connection.response_deadline.store(UNSET, Ordering::Relaxed);
        RequestGuard(self.client.clone())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let Client { connection, all } = &self.client;
        all.lock().remove(&self.id);
        all.memory.discharge(connection);
        all.closed.notify(usize::MAX);
    }
}

/// A request of the connection is being handled or its response written.
pub(crate) struct RequestGuard(Client);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let Client { connection, all } = &self.0;
        connection.body_since.store(UNSET, Ordering::Relaxed);
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

    /// Notes that the server waits for a body until the guard is dropped.
    pub(crate) fn awaiting_body(&self) -> BodyWaitGuard<'_> {
        self.connection.body_since.store(self.all.now(), Ordering::Relaxed);
        BodyWaitGuard(&self.connection)
    }

    /// Charges the connection for a response of this many bytes, and sets the deadline by which the client must have
    /// read it. The response is in memory already, so it is not rejected.
    pub(crate) fn response_started(&self, bytes: usize) {
        self.set_charge(self.charged() + bytes);
        let time = self.all.write_timeout + Duration::from_secs(bytes as u64 / MIN_READ_RATE);
        let deadline = self.all.now().saturating_add(u64::try_from(time.as_millis()).unwrap_or(UNSET));
        self.connection.response_deadline.store(deadline, Ordering::Relaxed);
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
        self.0.body_since.store(UNSET, Ordering::Relaxed);
    }
}

/// A connection. Times are in milliseconds since the server's start, or [`UNSET`].
struct Connection {
    stream: TcpStream,
    /// Since when no request is being handled.
    idle_since: AtomicU64,
    /// Since when the rest of an incomplete TLS record is waited for.
    record_since: AtomicU64,
    /// When the first bytes of an incomplete head arrived.
    head_since: AtomicU64,
    /// Since when the server waits for a body.
    body_since: AtomicU64,
    /// Since when a write has been blocked.
    blocked_since: AtomicU64,
    /// When the client must have read the whole response.
    response_deadline: AtomicU64,
    /// Bytes of memory that it is charged for, see [`memory`]: those of TLS records apart, because both change on their
    /// own.
    charged: AtomicUsize,
    records_charged: AtomicUsize,
    /// Bodies of requests that have not been received to their end.
    open_bodies: AtomicUsize,
    /// The rest of a body that its handler has left.
    unread_body: Mutex<Option<UnreadBody>>,
    /// Whether hyper has read all that has arrived.
    is_read_blocked: AtomicBool,
    /// Whether hyper has read bytes of the next head.
    has_partial_head: AtomicBool,
    is_evicted: AtomicBool,
    /// Whether it is to release the buffers of its last request.
    must_release: AtomicBool,
    task: AtomicWaker,
}

impl Connection {
    /// Shuts the socket down, so that the connection's task ends by itself.
    fn close(&self, what: Shutdown) {
        // It may be closed already.
        let _ = self.stream.shutdown(what);
    }

    fn is_write_blocked(&self) -> bool {
        self.blocked_since.load(Ordering::Relaxed) != UNSET
    }

    /// Whether no request is being handled.
    fn is_idle(&self) -> bool {
        self.request_awaited_since() != UNSET
    }

    fn request_awaited_since(&self) -> u64 {
        self.idle_since.load(Ordering::Relaxed)
    }

    /// Since when the connection has held memory while it waits for its client.
    fn client_awaited_since(&self) -> u64 {
        let since = [&self.record_since, &self.head_since, &self.body_since, &self.blocked_since]
            .map(|since| since.load(Ordering::Relaxed));
        since.into_iter().min().unwrap_or(UNSET)
    }

    fn holds_idle_buffers(&self) -> bool {
        self.is_idle() && self.client_awaited_since() == UNSET && self.charged.load(Ordering::Relaxed) > 0
    }

    fn release(&self) {
        self.must_release.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Closes the connection to free its memory.
    fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        // Once a response has been started nothing else can be sent; before that, writing stays open for a 503.
        self.close(if self.is_write_blocked() { Shutdown::Both } else { Shutdown::Read });
        // At once, without a round of the reactor.
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::{AsyncReadExt as _, future::poll_once};
    use smol::net::TcpListener;

    use super::*;

    #[test]
    fn a_response_has_to_be_read_by_a_deadline() {
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
            assert!(is_open().await, "there is no response yet");
            registered.client().response_started(1 << 30);
            assert!(is_open().await, "a long response has more time");
            registered.client().response_started(1);
            let _next = registered.busy();
            assert!(is_open().await, "the time for a response does not count for the next one, such as a stream");
            registered.client().response_started(1);
            assert!(!is_open().await, "a short one has none");
        });
    }
}
