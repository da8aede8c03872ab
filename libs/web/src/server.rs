use std::{
    convert::Infallible,
    future::{Future as _, poll_fn},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::Poll,
    time::Duration,
};

use futures_lite::{
    AsyncWriteExt as _,
    future::{or, poll_once},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use runtime::{Failure, Shutdown, timeout};
use smol::{Async, net::TcpStream};
use telemetry::{
    Outage, Propagated, TraceContext,
    metrics::{self, IntGauge},
};

use crate::{
    App, Limits, Settings, TrustedProxies,
    connections::{ConnectionGuard, Connections, RequestBody, RequestGuard, Socket},
    convert::{self, ResponseBody},
    edge::{ClientAddress, Linked},
    forwarded,
    head::Head,
};

/// How often connections are swept; the precision of every timeout of a client.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, which fails again at once while file descriptors are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The smallest `max_buf_size` that hyper accepts.
const MIN_BUFFER: usize = 8 * 1024;
/// The response on a connection that there is no room for.
const SERVICE_UNAVAILABLE: &[u8] =
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
    trace_callers: TrustedProxies,
    tls: Option<tls::Acceptor>,
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error(transparent)]
    Address(#[from] io::Error),
    /// The files for TLS are not valid.
    #[error("{0} (SERVER_TLS_CERTIFICATE, SERVER_TLS_KEY)")]
    Tls(#[from] tls::Error),
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Address(_) => error.to_string().into(),
            BindError::Tls(_) => Self::configuration(error.to_string()),
        }
    }
}

impl Server {
    /// Binds the address, so that the port is known and taken before anything is served.
    ///
    /// # Errors
    /// If the address cannot be bound, or the files for TLS are not valid; the error names them.
    pub fn bind(settings: &Settings) -> Result<Self, BindError> {
        let tls = settings.tls.clone().map(|files| tls::Acceptor::new("http", files, &["http/1.1"])).transpose()?;
        let listener = Async::new(runtime::listen(settings.address)?)?;
        let address = listener.get_ref().local_addr()?;
        let Settings { limits, trusted_proxies, trace_callers, .. } = settings.clone();
        Ok(Self { listener, address, limits, trusted_proxies, trace_callers, tls })
    }

    /// Binds the operations port, if there is one.
    ///
    /// # Errors
    /// If the address cannot be bound; the error names it.
    pub fn bind_operations(settings: &Settings) -> Result<Option<Self>, BindError> {
        let bind = |address| {
            Self::bind(&settings.for_operations(address)).map_err(|error| match error {
                BindError::Address(error) => {
                    let text = format!("{error} (OPERATIONS_ADDRESS, OPERATIONS_PORT)");
                    BindError::Address(io::Error::new(error.kind(), text))
                }
                error @ BindError::Tls(_) => error,
            })
        };
        settings.operations.map(bind).transpose()
    }

    /// The bound address, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the requests in flight within the limit for it.
    pub async fn serve<S: Clone + Send + Sync + 'static>(self, app: App<S>, shutdown: Shutdown) {
        let Self { listener, limits, trusted_proxies, trace_callers, tls, .. } = self;
        let connections = Connections::new(&limits);
        let serve = Arc::new(Serve {
            app,
            limits,
            trusted_proxies,
            trace_callers,
            tls,
            connections: connections.clone(),
            shutdown: shutdown.clone(),
        });
        let sweep = async {
            loop {
                smol::Timer::after(SWEEP_INTERVAL).await;
                connections.sweep(&serve.limits);
            }
        };
        shutdown.run_until_stopped(or(serve.clone().accept(&listener), sweep)).await;
        drop(listener);
        if timeout(serve.limits.drain, connections.all_closed()).await.is_err() {
            tracing::warn!(connections = connections.count(), "connections closed in the middle of a request");
            connections.close_all();
        }
    }
}

/// Has the kernel close a connection whose client has acknowledged nothing for `limit` (`TCP_USER_TIMEOUT`), because it
/// lost power or its network. Without it the kernel retransmits for about a quarter of an hour, and the few bytes of an
/// event stream fit into the socket's buffer for hours.
fn set_user_timeout(stream: &TcpStream, limit: Duration) {
    #[cfg(target_os = "linux")]
    {
        let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // On failure the kernel's default applies.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, limit);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, limit);
}

/// What all connections of a server share.
struct Serve<S> {
    app: App<S>,
    limits: Limits,
    trusted_proxies: TrustedProxies,
    trace_callers: TrustedProxies,
    tls: Option<tls::Acceptor>,
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
                    // A client that disconnected in the queue is not an error; a lack of descriptors is.
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
            // Best effort, without waiting for the client. With TLS there is no handshake to answer in.
            if self.tls.is_none() {
                let _ = stream.get_ref().write_all(SERVICE_UNAVAILABLE);
            }
            return;
        }
        let stream = TcpStream::from(stream);
        set_user_timeout(&stream, self.limits.write_timeout);
        // Without it, a response in two writes waits for the client's delayed acknowledgement, about 40 ms.
        if stream.set_nodelay(true).is_ok() {
            let registered = self.connections.register(stream, self.trusted_proxies.contains(peer.ip()));
            runtime::spawn(self.clone().connection(registered, peer.ip())).detach();
        }
    }

    async fn connection(self: Arc<Self>, registered: ConnectionGuard, peer: IpAddr) {
        let _open = metrics::track(&OPEN);
        let Some(mut stream) = self.handshake(&registered).await else { return };
        let mut begun = Vec::new();
        while let Some(head) = self.next_head(&registered, &mut stream, begun).await {
            // Boxed, so that an idle connection does not take the memory of one with a request.
            let Some((same, rest)) = Box::pin(self.session(&registered, stream, head, peer)).await else { return };
            (stream, begun) = (same, rest);
        }
        if stream.is_tls() {
            // Tells the client that nothing is missing. Best effort, without waiting for it.
            let _ = poll_once(stream.close()).await;
        }
    }

    /// The connection, after the handshake if the server speaks TLS. `None` if that fails or the server stops.
    async fn handshake(&self, registered: &ConnectionGuard) -> Option<tls::Stream<Socket>> {
        let Some(tls) = &self.tls else { return Some(tls::Stream::Plain(registered.socket(false))) };
        // Boxed, because it is short and would be part of every idle connection.
        let handshake = Box::pin(tls.accept(registered.socket(true)));
        match self.shutdown.run_until_stopped(handshake).await? {
            Ok(mut stream) => {
                stream.get_mut().decrypted();
                Some(stream)
            }
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
        }
    }

    /// Reads up to the end of a head, into a buffer that grows with it. Returns `None` when the client disconnects, the
    /// connection is evicted, or the server stops.
    ///
    /// hyper would allocate 16 KiB for each connection at its start, and up to `max_buf_size` for a head that does not
    /// end.
    async fn next_head(
        &self,
        registered: &ConnectionGuard,
        stream: &mut tls::Stream<Socket>,
        begun: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let mut head = Head::of(registered.client().chunks(Vec::new()), &begun);
        drop(begun);
        if head.bytes.is_empty() {
            registered.mark_idle();
        } else if !registered.head_started(head.bytes.size()) {
            return reject(stream).await;
        }
        loop {
            let is_begun = !head.bytes.is_empty();
            let read = poll_fn(|context| head.poll_read(context, &mut *stream));
            let read = if is_begun { read.await } else { self.shutdown.run_until_stopped(read).await? };
            if registered.client().is_evicted() {
                return reject(stream).await;
            }
            match read {
                // hyper answers an incomplete head.
                Ok(0) => return (!head.bytes.is_empty()).then(|| head.bytes.take()),
                Ok(_) if head.is_whole() || head.bytes.len() > self.limits.head => return Some(head.bytes.take()),
                // Only empty lines.
                Ok(_) if head.bytes.is_empty() => {}
                Ok(_) if registered.head_started(head.bytes.size()) => {}
                Ok(_) => return reject(stream).await,
                Err(_) => return None,
            }
        }
    }

    /// Has hyper serve the requests of a connection, of which the bytes in `head` have arrived. Returns the stream and the
    /// bytes of the next head when hyper hands the connection back, or `None` when the connection has ended.
    async fn session(
        &self,
        registered: &ConnectionGuard,
        stream: tls::Stream<Socket>,
        head: Vec<u8>,
        peer: IpAddr,
    ) -> Option<(tls::Stream<Socket>, Vec<u8>)> {
        registered.session_started();
        let respond = |request| self.respond(request, registered, peer);
        let mut connection = http1::Builder::new()
            // `Connections` enforces the timeouts, without a timer for each.
            .header_read_timeout(None)
            .max_header_size(self.limits.head)
            .max_buf_size(self.limits.head.max(MIN_BUFFER))
            .serve_connection(registered.io(head, stream), service_fn(respond));
        let served = poll_fn(|context| {
            registered.watch(context);
            if let Poll::Ready(outcome) = Pin::new(&mut connection).poll(context) {
                return Poll::Ready(SessionEnd::Closed(outcome));
            }
            registered.discard_unread_body(context);
            if registered.can_hand_back() { Poll::Ready(SessionEnd::HandBack) } else { Poll::Pending }
        });
        let next = or(served, async {
            self.shutdown.wait().await;
            SessionEnd::Shutdown
        });
        let outcome = match next.await {
            SessionEnd::HandBack => {
                let parts = connection.into_parts();
                return Some((parts.io.into_stream(), parts.read_buf.into()));
            }
            SessionEnd::Closed(outcome) => outcome,
            SessionEnd::Shutdown => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| {
                    let served = Pin::new(&mut connection).poll(context);
                    registered.abandon_unread_body();
                    served
                })
                .await
            }
        };
        if let Err(error) = outcome {
            // The client disconnected or sent no valid HTTP; hyper has answered if it could.
            tracing::debug!(%error, "a connection ended early");
        }
        None
    }

    async fn respond(
        &self,
        request: hyper::Request<Incoming>,
        registered: &ConnectionGuard,
        peer: IpAddr,
    ) -> Result<hyper::Response<GuardedBody>, Infallible> {
        let (busy, client) = (registered.busy(), registered.client());
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(body, client);
        let callers = convert::single_value(&parts.headers, TraceContext::HEADER);
        let continues_trace = self.trace_callers.contains(peer);
        // Anybody could have every request recorded otherwise, and mix into the traces of others.
        let (trace, linked) = if continues_trace {
            (TraceContext::continue_from(callers), None)
        } else {
            (TraceContext::root(), callers.and_then(TraceContext::parse))
        };
        let path = parts.uri.path();
        let has_room = client.request_started(convert::head_size(&parts));
        if let Some(problem) = self.app.overload_problem(path, has_room) {
            let response = convert::problem(&self.app.complete(problem, &parts.headers), path, trace);
            return Ok(response.map(|body| GuardedBody { body, _busy: busy }));
        }
        let mut response: tide::http::Response = match convert::request(&parts, body) {
            Err(problem) => self.app.complete(problem, &parts.headers).into_response(path, trace).into(),
            Ok(None) => crate::no_content().into(),
            Ok(Some(mut request)) => {
                request.ext_mut().insert(trace);
                request.ext_mut().insert(client.clone());
                let is_proxy = registered.is_trusted_proxy();
                let address =
                    if is_proxy { forwarded::client(&parts.headers, peer, &self.trusted_proxies) } else { peer };
                request.ext_mut().insert(ClientAddress(address));
                if let Some(linked) = linked {
                    request.ext_mut().insert(Linked(linked));
                }
                let propagated = if continues_trace {
                    Propagated::extract(|name| convert::values(&parts.headers, name))
                } else {
                    Propagated::default()
                };
                propagated.scope(self.app.respond(request)).await
            }
        };
        if let Some(length) = response.len() {
            client.response_started(length);
        }
        response.insert_header(TraceContext::HEADER, trace.to_string());
        let mut converted = convert::response(response).await.map(|body| GuardedBody { body, _busy: busy });
        convert::add_security_headers(converted.headers_mut());
        if let Some(prefix) = registered.is_trusted_proxy().then(|| forwarded::prefix(&parts.headers)).flatten() {
            forwarded::apply(&prefix, converted.headers_mut());
        }
        Ok(converted)
    }
}

/// How hyper's service of a connection ends.
enum SessionEnd {
    Closed(hyper::Result<()>),
    HandBack,
    Shutdown,
}

/// Answers 503 on a connection that is evicted. Best effort, without waiting for the client.
async fn reject(stream: &mut tls::Stream<Socket>) -> Option<Vec<u8>> {
    let _ = poll_once(async {
        stream.write_all(SERVICE_UNAVAILABLE).await?;
        stream.flush().await
    })
    .await;
    None
}

/// The body of a response, which keeps its connection busy until it is written.
struct GuardedBody {
    body: ResponseBody,
    _busy: RequestGuard,
}

impl http_body::Body for GuardedBody {
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
