//! The open connections of a server: what each waits for, since when, and how much memory it holds meanwhile.
//!
//! One task looks at all of them once a second. That takes the place of two or three timers a request, each of which
//! would wake the reactor, and it is what lets the server close the longest idle connection when it is full.
//!
//! Memory is bounded for all connections together, and not for each. A connection is charged for what it holds: the bytes
//! of an unfinished head, the buffers of a request under way, its body, an answer that its client has not taken. A charge
//! beyond [`Limits::buffers`] is paid by others: first by idle connections, which give their buffers back, and then by the
//! client that has been waited for longest, whose connection ends.

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
    pieces::{Pieces, Region},
};

static HELD: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("http_buffer_bytes", "Memory held for what HTTP clients have not sent or taken completely.")
});
static EVICTED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("http_connections_evicted_total", "HTTP connections ended because others needed their memory.")
});

/// Stands for a time that has not come: nothing is awaited.
const NEVER: u64 = u64::MAX;
/// What a request under way costs before its head and its body are counted: hyper's buffers and the futures of its answer.
pub(crate) const SESSION: usize = 20 * 1024;
/// The slowest reader of an answer that is not given up, in bytes a second.
const SLOWEST_READER: u64 = 4 * 1024;

/// Every open connection of a server.
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    closed: Event,
    next: AtomicU64,
    started: Instant,
    /// The sum of what connections are charged with, and the most that it may be.
    charged: AtomicUsize,
    most: usize,
    write_wait: Duration,
    region: Arc<Region>,
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
            write_wait: limits.write_wait,
            region: Region::new(limits.buffers),
        })
    }

    /// Takes a connection in, which is forgotten when the result is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: TcpStream, is_trusted_proxy: bool) -> Registered {
        let never = || AtomicU64::new(NEVER);
        let connection = Connection {
            stream,
            idle_since: AtomicU64::new(self.now()),
            head_since: never(),
            body_since: never(),
            write_since: never(),
            answer_until: never(),
            charged: AtomicUsize::new(0),
            has_part: AtomicBool::new(false),
            gave_way: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
            task: AtomicWaker::new(),
        };
        let connection = Arc::new(connection);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection.clone());
        Registered { id, is_trusted_proxy, client: Client { connection, all: self.clone() } }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes and forgets the connection that has waited longest for a request; false if each is at work.
    pub(crate) fn close_longest_idle(&self) -> bool {
        let mut open = self.lock();
        let waiting = open.iter().map(|(id, connection)| (connection.request_awaited_since(), *id));
        let longest = waiting.filter(|(since, _)| *since != NEVER).min();
        let closed = longest.and_then(|(_, id)| open.remove(&id));
        closed.inspect(|connection| connection.close(Shutdown::Both)).is_some()
    }

    /// Closes those whose client has kept the server waiting for too long, and has idle ones give their buffers back.
    pub(crate) fn look_over(&self, limits: &Limits) {
        HELD.set(i64::try_from(self.charged.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        let now = self.now();
        let is_over = |since: &AtomicU64, limit: Duration| {
            now.saturating_sub(since.load(Ordering::Relaxed)) > u64::try_from(limit.as_millis()).unwrap_or(NEVER)
        };
        for connection in self.lock().values() {
            // A head that has begun has a time of its own.
            let is_idle = connection.head_since.load(Ordering::Relaxed) == NEVER;
            if is_idle && is_over(&connection.idle_since, limits.idle_wait)
                || is_over(&connection.head_since, limits.head_wait)
                || is_over(&connection.write_since, limits.write_wait)
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

    /// Milliseconds since the server's start.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Charges a connection with so many bytes instead of what it was charged with.
    fn set_charge(&self, connection: &Connection, bytes: usize) {
        // Both at once would need a lock; the sum is right as soon as both are done.
        self.charged.fetch_add(bytes, Ordering::Relaxed);
        self.charged.fetch_sub(connection.charged.swap(bytes, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether more than half of the memory is in use, so that idle connections should hold none of it.
    fn is_short(&self) -> bool {
        self.charged.load(Ordering::Relaxed) > self.most / 2
    }

    /// Frees memory until no more than the limit is charged; false if nothing is left that could give way to `asking`.
    fn make_room(&self, asking: &Arc<Connection>) -> bool {
        let is_over = || self.charged.load(Ordering::Relaxed) > self.most;
        if !is_over() {
            return true;
        }
        let open = self.lock();
        for connection in open.values().filter(|connection| connection.holds_idle_buffers()) {
            connection.release();
            // It frees them as soon as its task runs.
            self.set_charge(connection, 0);
        }
        while is_over() {
            let held = open.values().filter(|connection| connection.charged.load(Ordering::Relaxed) > 0);
            let awaited = held.map(|connection| (connection.client_awaited_since(), connection));
            let longest = awaited.filter(|(since, _)| *since != NEVER).min_by_key(|(since, _)| *since);
            match longest {
                // Not the asking one: what it asks for is refused, and it can still be answered.
                Some((_, connection)) if !Arc::ptr_eq(connection, asking) => {
                    connection.give_way();
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

/// A connection's place among the open ones.
pub(crate) struct Registered {
    id: u64,
    is_trusted_proxy: bool,
    client: Client,
}

impl Registered {
    /// What a request of this connection can say of it.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The connection's bytes, watched; those of `begun` come first.
    pub(crate) fn io(&self, begun: Vec<u8>) -> WatchedIo {
        let stream = self.client.connection.stream.clone();
        WatchedIo { begun, read: 0, inner: FuturesIo::new(stream), client: self.client.clone() }
    }

    /// Whether the other end is a proxy that is believed.
    pub(crate) fn is_trusted_proxy(&self) -> bool {
        self.is_trusted_proxy
    }

    pub(crate) fn stream(&self) -> TcpStream {
        self.client.connection.stream.clone()
    }

    /// Says that the first bytes of a head have come and the rest has not, and charges the connection with them.
    ///
    /// False if they have to be given up: memory is short, and no other client has been waited for longer.
    pub(crate) fn head_begun(&self, bytes: usize) -> bool {
        let Client { connection, all } = &self.client;
        if connection.head_since.load(Ordering::Relaxed) == NEVER {
            connection.head_since.store(all.now(), Ordering::Relaxed);
        }
        all.set_charge(connection, bytes);
        all.make_room(connection)
    }

    /// Says that nothing of a request has come since the last one, and that the connection holds nothing.
    pub(crate) fn at_rest(&self) {
        let Client { connection, all } = &self.client;
        connection.is_released.store(false, Ordering::Relaxed);
        all.set_charge(connection, 0);
    }

    /// Says that hyper has the connection now, with a whole head or with what it has to refuse.
    pub(crate) fn session_begins(&self) {
        let Client { connection, all } = &self.client;
        connection.head_since.store(NEVER, Ordering::Relaxed);
        connection.has_part.store(false, Ordering::Relaxed);
        all.set_charge(connection, SESSION);
        // Where nothing gives way, the request is refused in words once its head is read.
        all.make_room(connection);
    }

    /// Has the polling task woken when the connection is to give its buffers back.
    pub(crate) fn watch(&self, context: &Context<'_>) {
        self.client.connection.task.register(context.waker());
    }

    /// Whether hyper can be taken off the connection: it has answered all that has come as a whole, its answers have left,
    /// and its buffers are needed, or hold the beginning of a head.
    pub(crate) fn is_to_rest(&self) -> bool {
        let Client { connection, all } = &self.client;
        if connection.idle_since.load(Ordering::Relaxed) == NEVER || connection.is_writing() {
            return false;
        }
        connection.answer_until.store(NEVER, Ordering::Relaxed);
        if connection.charged.load(Ordering::Relaxed) > SESSION {
            all.set_charge(connection, SESSION);
        }
        connection.has_part.load(Ordering::Relaxed) || connection.is_released.load(Ordering::Relaxed) || all.is_short()
    }

    /// Says that a whole head has come. The wait for the next one begins when the result is dropped.
    pub(crate) fn busy(&self) -> Busy {
        let connection = &self.client.connection;
        connection.idle_since.store(NEVER, Ordering::Relaxed);
        connection.has_part.store(false, Ordering::Relaxed);
        // That was the time for the answer before, which has been handed on.
        connection.answer_until.store(NEVER, Ordering::Relaxed);
        Busy(self.client.clone())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Client { connection, all } = &self.client;
        all.lock().remove(&self.id);
        all.set_charge(connection, 0);
        all.closed.notify(usize::MAX);
    }
}

/// A request of the connection is being handled or answered.
pub(crate) struct Busy(Client);

impl Drop for Busy {
    fn drop(&mut self) {
        let Client { connection, all } = &self.0;
        connection.body_since.store(NEVER, Ordering::Relaxed);
        connection.idle_since.store(all.now(), Ordering::Relaxed);
    }
}

/// The connection as the requests on it know it.
#[derive(Clone)]
pub(crate) struct Client {
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Client {
    /// Room for what comes in pieces, after these bytes.
    pub(crate) fn pieces(&self, start: Vec<u8>) -> Pieces {
        Pieces::new(&self.all.region, start)
    }

    /// Charges the connection with the request whose head has come, and with nothing that was before; false if there is no
    /// room for it.
    pub(crate) fn request_begins(&self, head: usize) -> bool {
        // hyper's copy, tide's, and what lies between their headers.
        self.all.set_charge(&self.connection, SESSION + 3 * head);
        self.all.make_room(&self.connection)
    }

    /// Charges the connection with more bytes; false, and not charged, if there is no room for them.
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let charge = self.connection.charged.load(Ordering::Relaxed);
        self.all.set_charge(&self.connection, charge + bytes);
        let room = self.all.make_room(&self.connection);
        if !room {
            self.all.set_charge(&self.connection, charge);
        }
        room
    }

    /// Says that the client is waited for to send a body. It ends with the result.
    pub(crate) fn awaiting_body(&self) -> AwaitingBody<'_> {
        self.connection.body_since.store(self.all.now(), Ordering::Relaxed);
        AwaitingBody(&self.connection)
    }

    /// Charges the connection with an answer of this many bytes, and says that it begins: a client that reads at all has it
    /// by some time. It is in memory already, so that there is no use in refusing it.
    pub(crate) fn answer_begins(&self, bytes: usize) {
        let charge = self.connection.charged.load(Ordering::Relaxed);
        self.all.set_charge(&self.connection, charge + bytes);
        self.all.make_room(&self.connection);
        let seconds = bytes as u64 / SLOWEST_READER;
        let time = self.all.write_wait + Duration::from_secs(seconds);
        let until = self.all.now().saturating_add(u64::try_from(time.as_millis()).unwrap_or(NEVER));
        self.connection.answer_until.store(until, Ordering::Relaxed);
    }

    /// Whether the connection has been ended to free what it holds.
    pub(crate) fn gave_way(&self) -> bool {
        self.connection.gave_way.load(Ordering::Relaxed)
    }
}

/// The rest of a body is awaited.
pub(crate) struct AwaitingBody<'a>(&'a Connection);

impl Drop for AwaitingBody<'_> {
    fn drop(&mut self) {
        self.0.body_since.store(NEVER, Ordering::Relaxed);
    }
}

/// Times are in milliseconds after the server's start, or [`NEVER`].
struct Connection {
    stream: TcpStream,
    /// Since when no request is under way.
    idle_since: AtomicU64,
    /// When the first bytes came of a head that is not complete.
    head_since: AtomicU64,
    /// Since when a body is awaited.
    body_since: AtomicU64,
    /// Since when the client has taken no byte.
    write_since: AtomicU64,
    /// By when the client has to have taken the whole answer.
    answer_until: AtomicU64,
    /// Bytes of memory that it holds.
    charged: AtomicUsize,
    /// Whether bytes of the next head have come to hyper.
    has_part: AtomicBool,
    gave_way: AtomicBool,
    /// Whether it is to give back the buffers of its last request.
    is_released: AtomicBool,
    task: AtomicWaker,
}

impl Connection {
    /// Reads of the connection end and, if asked for, writes fail from now on, so that its task ends by itself.
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

    /// Since when the client has had something of it waiting in memory.
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

    /// Ends the wait for its client.
    fn give_way(&self) {
        self.gave_way.store(true, Ordering::Relaxed);
        // Whoever has begun to write an answer cannot say anything else; before that there is something to be told.
        self.close(if self.is_writing() { Shutdown::Both } else { Shutdown::Read });
    }
}

/// A connection's bytes, for hyper; remembers when a write had to wait.
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
            // Of the next head; if it is the whole, this is taken back at once.
            connection.has_part.store(true, Ordering::Relaxed);
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
    fn an_answer_has_to_be_taken_by_some_time() {
        smol::block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let limits = Limits { write_wait: Duration::ZERO, ..Limits::default() };
            let connections = Connections::new(&limits);
            let registered = connections.register(stream, false);
            let _busy = registered.busy();
            let is_open = async || {
                // Time is counted in milliseconds.
                smol::Timer::after(Duration::from_millis(5)).await;
                connections.look_over(&limits);
                poll_once(registered.stream().read(&mut [0])).await.is_none()
            };
            assert!(is_open().await, "the answer is not there yet");
            registered.client().answer_begins(1 << 30);
            assert!(is_open().await, "a long answer has more time");
            registered.client().answer_begins(1);
            let _next = registered.busy();
            assert!(is_open().await, "the time for an answer does not count for the next one, such as a stream");
            registered.client().answer_begins(1);
            assert!(!is_open().await, "a short one has none");
        });
    }
}
