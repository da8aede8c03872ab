use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_lite::future::or;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use runtime::{Shutdown, within};
use smol::{Async, net::TcpStream};
use telemetry::{
    TraceContext,
    metrics::{self, IntGauge},
};

use crate::{
    App, Limits, Settings,
    connections::{Busy, Connections, Registered},
    convert::{self, ResponseBody},
};

/// How often connections are looked over; the precision of every limit on waiting for a client.
const LOOK_OVER: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, which fails again at once as long as descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// What a connection beyond the limit gets when each of the others is at work.
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
}

impl Server {
    /// Binds the address, so that the port is known and taken before anything is served.
    ///
    /// # Errors
    /// If the address cannot be bound; the error names it.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let listener = Async::new(runtime::listen(settings.address)?)?;
        let address = listener.get_ref().local_addr()?;
        Ok(Self { listener, address, limits: settings.limits.clone() })
    }

    /// The bound address, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the requests in flight within the limit for it.
    pub async fn serve<S: Clone + Send + Sync + 'static>(self, app: App<S>, shutdown: Shutdown) {
        let Self { listener, limits, .. } = self;
        let connections = Connections::new();
        let serve = Serve { app, limits, connections: connections.clone(), shutdown: shutdown.clone() };
        let look_over = async {
            loop {
                smol::Timer::after(LOOK_OVER).await;
                connections.close_overdue(&serve.limits);
            }
        };
        shutdown.or_stop(or(serve.accept(&listener), look_over)).await;
        drop(listener);
        if within(serve.limits.drain, connections.all_closed()).await.is_err() {
            tracing::warn!(connections = connections.count(), "connections closed in the middle of a request");
            connections.close_all();
        }
    }
}

/// What every connection of a server shares.
#[derive(Clone)]
struct Serve<S> {
    app: App<S>,
    limits: Limits,
    connections: Arc<Connections>,
    shutdown: Shutdown,
}

impl<S: Clone + Send + Sync + 'static> Serve<S> {
    async fn accept(&self, listener: &Async<TcpListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => {
                    // A client that gave up while it waited is no news; a lack of descriptors is.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        tracing::warn!(%error, "cannot accept connections");
                        self.connections.close_longest_idle();
                    }
                    smol::Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: Async<std::net::TcpStream>) {
        if self.connections.count() >= self.limits.connections && !self.connections.close_longest_idle() {
            // The client learns it or not; nothing waits for it.
            let _ = stream.get_ref().write_all(FULL);
            return;
        }
        let stream = TcpStream::from(stream);
        // Without it, an answer in two writes waits for the client's delayed acknowledgement, about 40 ms.
        if stream.set_nodelay(true).is_ok() {
            let registered = self.connections.register(stream);
            runtime::spawn(self.clone().connection(registered)).detach();
        }
    }

    async fn connection(self, registered: Registered) {
        let _open = metrics::count_in(&OPEN);
        let answer = |request| self.answer(request, registered.busy());
        let connection = http1::Builder::new()
            // Waits are bounded by `Connections`, without a timer for each.
            .header_read_timeout(None)
            .max_header_size(self.limits.head)
            .max_buf_size(self.limits.head.max(64 * 1024))
            .serve_connection(registered.io(), service_fn(answer));
        let mut connection = pin!(connection);
        let ended = or(async { Some(connection.as_mut().await) }, async {
            self.shutdown.wait().await;
            None
        });
        let outcome = match ended.await {
            Some(outcome) => outcome,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            // The client broke off or sent what is no HTTP: its affair, and hyper has answered what can be answered.
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        busy: Busy,
    ) -> Result<hyper::Response<BusyBody>, Infallible> {
        let (parts, body) = request.into_parts();
        let trace = TraceContext::continue_from(convert::only_value(&parts.headers, TraceContext::HEADER));
        if let Some(problem) = self.app.refusal(parts.uri.path()) {
            let refusal = convert::problem(&problem, parts.uri.path(), trace);
            return Ok(refusal.map(|body| BusyBody { body, _busy: busy }));
        }
        let mut response: tide::http::Response = match convert::request(&parts, body) {
            Err(problem) => problem.into_response(parts.uri.path(), trace).into(),
            Ok(mut request) => {
                request.ext_mut().insert(trace);
                self.app.respond(request).await
            }
        };
        response.insert_header(TraceContext::HEADER, trace.to_string());
        Ok(convert::response(response).await.map(|body| BusyBody { body, _busy: busy }))
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
