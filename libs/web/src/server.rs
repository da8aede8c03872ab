use std::{
    convert::Infallible,
    future::{Future as _, poll_fn},
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_lite::{
    AsyncRead as _, AsyncWriteExt as _,
    future::{or, poll_once},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use runtime::{Shutdown, timeout};
use smol::{Async, net::TcpStream};
use telemetry::{
    Outage, Propagated, TraceContext,
    metrics::{self, IntGauge},
};

use crate::{
    App, Limits, Settings, TrustedProxies,
    connections::{Busy, Connections, Registered},
    convert::{self, ResponseBody},
    forwarded,
    pieces::Pieces,
};

/// How often connections are looked over; the precision of every limit on waiting for a client.
const LOOK_OVER: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, which fails again at once as long as descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Bytes that are read of a head at once.
const PIECE: usize = 4 * 1024;
/// The smallest limit that hyper takes for its buffers.
const LEAST_BUFFER: usize = 8 * 1024;
/// What a connection gets for which there is no room: each of the others is at work, or has waited less.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

static OPEN: LazyLock<IntGauge> = LazyLock::new(|| metrics::gauge("http_connections", "Open HTTP connections."));

/// A bound HTTP server.
///
/// ```
/// # runtime::block_on(1, async {
/// use runtime::Shutdown;
/// use web::{Router, Server, Settings};
///
/// let mut reader = config::Reader::new(config::Environment::empty().with("SERVER_PORT", "0"));
/// let server = Server::bind(&Settings::read(&mut reader, "4000")).unwrap();
/// let shutdown = Shutdown::new();
/// println!("listening on {}", server.address());
/// # shutdown.trigger();
/// server.serve(Router::new(()).build(), shutdown).await;
/// # });
/// ```
#[derive(Debug)]
pub struct Server {
    listener: Async<TcpListener>,
    address: SocketAddr,
    limits: Limits,
    trusted_proxies: TrustedProxies,
}

impl Server {
    /// Binds the address, so that the port is known and taken before anything is served.
    ///
    /// # Errors
    /// If the address cannot be bound; the error names it.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let listener = Async::new(runtime::listen(settings.address)?)?;
        let address = listener.get_ref().local_addr()?;
        let Settings { limits, trusted_proxies, .. } = settings.clone();
        Ok(Self { listener, address, limits, trusted_proxies })
    }

    /// The bound address, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the requests in flight within the limit for it.
    pub async fn serve<S: Clone + Send + Sync + 'static>(self, app: App<S>, shutdown: Shutdown) {
        let Self { listener, limits, trusted_proxies, .. } = self;
        let connections = Connections::new(&limits);
        let serve = Arc::new(Serve {
            app,
            limits,
            trusted_proxies,
            connections: connections.clone(),
            shutdown: shutdown.clone(),
        });
        let look_over = async {
            loop {
                smol::Timer::after(LOOK_OVER).await;
                connections.look_over(&serve.limits);
            }
        };
        shutdown.run_until_stopped(or(serve.clone().accept(&listener), look_over)).await;
        drop(listener);
        if timeout(serve.limits.drain, connections.all_closed()).await.is_err() {
            tracing::warn!(connections = connections.count(), "connections closed in the middle of a request");
            connections.close_all();
        }
    }
}

/// Has the kernel end a connection whose client has acknowledged nothing for so long: one that lost power or its network
/// says no farewell, and a few bytes now and then, as of a stream of events, fit into the socket's buffer for hours. Without
/// this, the kernel tries to send them for about a quarter of an hour.
fn give_up_when_vanished(stream: &TcpStream, limit: Duration) {
    #[cfg(target_os = "linux")]
    {
        let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // Then it takes the kernel's own time.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, limit);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, limit);
}

/// What every connection of a server shares.
struct Serve<S> {
    app: App<S>,
    limits: Limits,
    trusted_proxies: TrustedProxies,
    connections: Arc<Connections>,
    shutdown: Shutdown,
}

impl<S: Clone + Send + Sync + 'static> Serve<S> {
    async fn accept(self: Arc<Self>, listener: &Async<TcpListener>) {
        let outage = Outage::new();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(lasted) = outage.recovered() {
                        tracing::info!(lasted_ms = lasted.as_millis() as u64, "connections are accepted again");
                    }
                    self.admit(stream, peer);
                }
                Err(error) => {
                    // A client that gave up while it waited is no news; a lack of descriptors is.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        if outage.failed(&error.to_string()) {
                            tracing::warn!(%error, "cannot accept connections");
                        }
                        self.connections.close_longest_idle();
                    }
                    smol::Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: Async<std::net::TcpStream>, peer: SocketAddr) {
        if self.connections.count() >= self.limits.connections && !self.connections.close_longest_idle() {
            // The client learns it or not; nothing waits for it.
            let _ = stream.get_ref().write_all(FULL);
            return;
        }
        let stream = TcpStream::from(stream);
        give_up_when_vanished(&stream, self.limits.write_wait);
        // Without it, an answer in two writes waits for the client's delayed acknowledgement, about 40 ms.
        if stream.set_nodelay(true).is_ok() {
            let registered = self.connections.register(stream, self.trusted_proxies.contains(peer.ip()));
            runtime::spawn(self.clone().connection(registered)).detach();
        }
    }

    async fn connection(self: Arc<Self>, registered: Registered) {
        let _open = metrics::count_in(&OPEN);
        let mut begun = Vec::new();
        while let Some(head) = self.next_head(&registered, begun).await {
            // Boxed, so that a connection that waits for a head does not have the size of one at work.
            let Some(rest) = Box::pin(self.session(&registered, head)).await else { return };
            begun = rest;
        }
    }

    /// Reads up to the end of a head, into a buffer that grows with it. It ends with nothing when the client has gone, or has
    /// to give way to others, or when the server stops.
    ///
    /// hyper takes 16 KiB for each connection from its start, and up to `max_buf_size` for a head that does not end.
    async fn next_head(&self, registered: &Registered, begun: Vec<u8>) -> Option<Vec<u8>> {
        let mut head = Head::of(registered.client().pieces(Vec::new()), &begun);
        head.bytes.push(&begun);
        drop(begun);
        let mut stream = registered.stream();
        if head.bytes.is_empty() {
            registered.at_rest();
        } else if !registered.head_begun(head.bytes.size()) {
            return refuse(stream).await;
        }
        loop {
            let is_begun = !head.bytes.is_empty();
            let read = poll_fn(|context| head.poll_read(context, &mut stream));
            let read = if is_begun { read.await } else { self.shutdown.run_until_stopped(read).await? };
            if registered.client().gave_way() {
                return refuse(stream).await;
            }
            match read {
                // hyper says what there is to say of half a head.
                Ok(0) => return (!head.bytes.is_empty()).then(|| head.bytes.take()),
                Ok(_) if head.end == End::Whole || head.bytes.len() > self.limits.head => {
                    return Some(head.bytes.take());
                }
                Ok(_) if registered.head_begun(head.bytes.size()) => {}
                Ok(_) => return refuse(stream).await,
                Err(_) => return None,
            }
        }
    }

    /// Has hyper answer the requests of a connection, the first of which has come as far as `head`. It gives the bytes of the
    /// next head that have come when its buffers are not needed or hold no whole one; nothing when the connection has ended.
    async fn session(&self, registered: &Registered, head: Vec<u8>) -> Option<Vec<u8>> {
        registered.session_begins();
        let answer = |request| self.answer(request, registered);
        let mut connection = http1::Builder::new()
            // Waits are bounded by `Connections`, without a timer for each.
            .header_read_timeout(None)
            .max_header_size(self.limits.head)
            .max_buf_size(self.limits.head.max(LEAST_BUFFER))
            .serve_connection(registered.io(head), service_fn(answer));
        let served = poll_fn(|context| {
            registered.watch(context);
            match Pin::new(&mut connection).poll(context) {
                Poll::Ready(outcome) => Poll::Ready(Next::Ended(outcome)),
                Poll::Pending if registered.is_to_rest() => Poll::Ready(Next::Rest),
                Poll::Pending => Poll::Pending,
            }
        });
        let next = or(served, async {
            self.shutdown.wait().await;
            Next::Stop
        });
        let outcome = match next.await {
            Next::Rest => return Some(connection.into_parts().read_buf.into()),
            Next::Ended(outcome) => outcome,
            Next::Stop => {
                Pin::new(&mut connection).graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            // The client broke off or sent what is no HTTP: its affair, and hyper has answered what can be answered.
            tracing::debug!(%error, "a connection ended early");
        }
        None
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        registered: &Registered,
    ) -> Result<hyper::Response<BusyBody>, Infallible> {
        let (busy, client) = (registered.busy(), registered.client());
        let (parts, body) = request.into_parts();
        let trace = TraceContext::continue_from(convert::only_value(&parts.headers, TraceContext::HEADER));
        let path = parts.uri.path();
        let has_room = client.request_begins(convert::head_size(&parts));
        if let Some(problem) = self.app.refusal(path, has_room) {
            let refusal = convert::problem(&problem, path, trace);
            return Ok(refusal.map(|body| BusyBody { body, _busy: busy }));
        }
        let mut response: tide::http::Response = match convert::request(&parts, body) {
            Err(problem) => problem.into_response(path, trace).into(),
            Ok(mut request) => {
                request.ext_mut().insert(trace);
                request.ext_mut().insert(client.clone());
                let propagated = Propagated::extract(|name| convert::values(&parts.headers, name));
                propagated.scope(self.app.respond(request)).await
            }
        };
        if let Some(length) = response.len() {
            client.answer_begins(length);
        }
        response.insert_header(TraceContext::HEADER, trace.to_string());
        let mut answer = convert::response(response).await.map(|body| BusyBody { body, _busy: busy });
        if let Some(prefix) = registered.is_trusted_proxy().then(|| forwarded::prefix(&parts.headers)).flatten() {
            forwarded::apply(&prefix, answer.headers_mut());
        }
        Ok(answer)
    }
}

/// What becomes of a connection that hyper serves.
enum Next {
    Ended(hyper::Result<()>),
    Rest,
    Stop,
}

/// Tells a client that it has to give way to others. It learns it or not; nothing waits for it.
async fn refuse(mut stream: TcpStream) -> Option<Vec<u8>> {
    let _ = poll_once(stream.write(FULL)).await;
    None
}

/// A head that comes in pieces.
struct Head {
    bytes: Pieces,
    end: End,
}

/// How much of a head's end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing but empty lines, which do not count before a head.
    Before,
    /// Within a line.
    Line,
    /// After a line, and perhaps a carriage return.
    Break,
    Whole,
}

impl Head {
    /// A head that begins like this, and of which more is to come.
    fn of(begun: Pieces, bytes: &[u8]) -> Self {
        let mut head = Self { bytes: begun, end: End::Before };
        head.look_at(bytes);
        // hyper has looked at it, and would give it back again.
        if head.end == End::Whole {
            head.end = End::Line;
        }
        head
    }

    /// Reads what has come; 0 bytes are the end of the connection.
    fn poll_read(&mut self, context: &mut Context<'_>, stream: &mut TcpStream) -> Poll<io::Result<usize>> {
        let mut piece = [0; PIECE];
        let read = ready!(Pin::new(stream).poll_read(context, &mut piece))?;
        self.look_at(&piece[..read]);
        self.bytes.push(&piece[..read]);
        Poll::Ready(Ok(read))
    }

    /// Looks for the empty line. What hyper can refuse earlier than that waits for it too, unless it does not even begin like
    /// a method.
    fn look_at(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.end = match (self.end, byte) {
                (End::Whole, _) => return,
                (End::Before, b'\r' | b'\n') => End::Before,
                (End::Before, byte) if !byte.is_ascii_graphic() => End::Whole,
                (End::Break, b'\n') => End::Whole,
                (End::Line, b'\n') | (End::Break, b'\r') => End::Break,
                _ => End::Line,
            };
        }
    }
}

/// An answer's body, which keeps its connection busy until it has been sent.
struct BusyBody {
    body: ResponseBody,
    _busy: Busy,
}

impl http_body::Body for BusyBody {
    type Data = bytes::Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
