use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    pin::pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use auth::ServiceIdentity;
use config::{Reader, Value};
use futures_lite::future::or;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use runtime::{Failure, Shutdown, timeout};
use smol::{Async, net::TcpStream};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use telemetry::{
    Outage,
    metrics::{self, IntGauge},
};
use tonic::{Status, codegen::http::Request, service::Routes};

use crate::{
    Access, Health, Limits,
    calls::{Call, Calls},
    connections::{Clock, ConnectionGuard, Connections, ObservedIo},
    handler::Handler,
    health::is_health,
    observe::{methods, observe},
};

/// How often overdue connections and responses are looked for: the precision of the limits on waiting for a client.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, which fails again at once while file descriptors are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Flow-control windows, in bytes: of a connection and of a stream. Requests are read at once, so small ones are enough.
const WINDOWS: (u32, u32) = (64 * 1024, 16 * 1024);
/// Bytes of a response that hyper buffers.
const SEND_BUFFER: usize = 16 * 1024;

static OPEN: LazyLock<IntGauge> = LazyLock::new(|| metrics::gauge("grpc_connections", "Open gRPC connections."));

/// Where a gRPC server listens, and for whom.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The address to bind; port 0 takes a free one.
    pub address: SocketAddr,
    /// Time for calls in flight after the shutdown.
    pub drain: Duration,
    /// TLS; none for plaintext.
    pub tls: Option<ServerTls>,
    /// Age at which a connection takes no more calls (GOAWAY), if any. Its client connects again, perhaps to another replica,
    /// and with TLS both certificates are verified again.
    pub max_connection_age: Option<Duration>,
}

/// How a server speaks TLS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The server's certificate, and the authorities of its clients.
    pub files: tls::ServerSettings,
    /// The clients that may call, by a name in their certificate; none: every client that the authorities know. With
    /// [`Access`], those with such a name are services, which need no token.
    pub client_names: Option<ClientNames>,
}

/// DNS names and URIs, one of which has to be among the subject alternative names of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientNames(Vec<String>);

impl Value for ClientNames {
    const EXPECTED: &'static str = "DNS names or URIs, separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        let name = |name: &str| match name.trim() {
            "" => Err("one of them is empty".to_owned()),
            name if name.contains('*') => Err("one of them has a *, and patterns are not supported".to_owned()),
            name if name.contains("://") => Ok(name.to_owned()),
            name => Ok(name.to_ascii_lowercase()),
        };
        text.split(',').map(name).collect::<Result<_, _>>().map(Self)
    }
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("{0} (GRPC_SERVER_ADDRESS, GRPC_SERVER_PORT)")]
    Address(#[from] io::Error),
    /// The files for TLS are not valid.
    #[error("{0} (GRPC_SERVER_TLS_CERTIFICATE, GRPC_SERVER_TLS_KEY, GRPC_SERVER_TLS_CLIENT_CA)")]
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

impl ServerSettings {
    /// Reads `GRPC_SERVER_ADDRESS`, `GRPC_SERVER_PORT`, the files for TLS and `GRPC_CLIENT_SANS`.
    pub fn read(reader: &mut Reader, default_port: &'static str, drain: Duration) -> Self {
        let ip: IpAddr = reader
            .variable(&["GRPC_SERVER_ADDRESS", "SERVER_ADDRESS"], "address that the gRPC server binds")
            .or("127.0.0.1");
        let port = reader.variable(&["GRPC_SERVER_PORT"], "port of the gRPC server").or(default_port);
        let files = tls::ServerSettings::read(
            reader,
            tls::ServerVariables {
                certificate: &["GRPC_SERVER_TLS_CERTIFICATE"],
                key: &["GRPC_SERVER_TLS_KEY"],
                client_ca: Some(&["GRPC_SERVER_TLS_CLIENT_CA"]),
            },
        );
        let about = "clients that may call, by a name in their certificate, instead of every client with one";
        let client_names: Option<ClientNames> = reader.variable(&["GRPC_CLIENT_SANS"], about).optional();
        if client_names.is_some() && files.as_ref().is_none_or(|files| files.clients.is_none()) {
            let why = "GRPC_SERVER_TLS_CLIENT_CA is not set, so that clients show no certificate";
            reader.reject("GRPC_CLIENT_SANS", "nothing without certificates of clients", why);
        }
        let about = "age at which a gRPC connection takes no more calls, so that its client connects again";
        let max_connection_age = reader.variable(&["GRPC_MAX_CONNECTION_AGE"], about).optional();
        let tls = files.map(|files| ServerTls { files, client_names });
        Self { address: SocketAddr::new(ip, port), drain, tls, max_connection_age }
    }
}

/// A bound gRPC server. Besides the services given to it, it answers `grpc.health.v1` and reflection (v1 and v1alpha).
pub struct Server {
    listener: Async<TcpListener>,
    address: SocketAddr,
    drain: Duration,
    limits: Limits,
    access: Access,
    tls: Option<(tls::Acceptor, Option<ClientNames>)>,
    max_connection_age: Option<Duration>,
}

impl Server {
    /// Binds the address, so that the port is known and taken before anything is served.
    ///
    /// # Errors
    /// If the address cannot be bound, or the files for TLS are not valid; the error names them.
    pub fn bind(settings: &ServerSettings) -> Result<Self, BindError> {
        let tls = settings.tls.clone().map(|ServerTls { files, client_names }| {
            tls::Acceptor::new("grpc", files, &["h2"]).map(|acceptor| (acceptor, client_names))
        });
        let tls = tls.transpose()?;
        let listener = runtime::listen(settings.address)?;
        let address = listener.local_addr()?;
        let access = Access::open();
        let (limits, ServerSettings { drain, max_connection_age, .. }) = (Limits::default(), settings.clone());
        Ok(Self { listener: Async::new(listener)?, address, drain, limits, access, tls, max_connection_age })
    }

    /// Sets the limits in place of the defaults.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets through only calls that `access` does.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// The bound address, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the calls in flight within [`ServerSettings::drain`]. `descriptors` is the
    /// `FileDescriptorSet` of the services, encoded, for reflection.
    ///
    /// # Errors
    /// If the descriptors are malformed.
    pub async fn serve(
        self,
        routes: Routes,
        health: Health,
        descriptors: &'static [u8],
        shutdown: Shutdown,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Self { listener, drain, limits, access, tls, max_connection_age, .. } = self;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = routes
            .add_service(health.service())
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        let methods = methods(&[
            descriptors,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ])?;
        let clock = Clock::start();
        let calls = Calls::new(limits.clone(), clock);
        let connections = Connections::new(clock);
        let handler = Handler {
            routes,
            limits: Arc::new(limits),
            access: Arc::new(access),
            methods: Arc::new(methods),
            calls: calls.clone(),
        };
        let (connections_of, stop) = (connections.clone(), shutdown.clone());
        let acceptor = Acceptor { handler, connections: connections_of, shutdown: stop, tls, max_connection_age };
        let limits = acceptor.handler.limits.clone();
        let sweep = async {
            loop {
                smol::Timer::after(SWEEP_INTERVAL).await;
                connections.close_overdue(&limits);
                calls.abort_overdue();
            }
        };
        shutdown.run_until_stopped(or(acceptor.accept(&listener), sweep)).await;
        drop(listener);
        health.stop().await;
        // A client that keeps its connection open, or does not read its response, must not prolong the drain.
        if timeout(drain, connections.all_closed()).await.is_err() {
            tracing::warn!(connections = connections.count(), "gRPC connections closed at the end of the drain");
            connections.close_all();
        }
        Ok(())
    }
}

/// Accepts and serves connections.
#[derive(Clone)]
struct Acceptor {
    handler: Handler,
    connections: Arc<Connections>,
    shutdown: Shutdown,
    tls: Option<(tls::Acceptor, Option<ClientNames>)>,
    max_connection_age: Option<Duration>,
}

impl Acceptor {
    async fn accept(&self, listener: &Async<TcpListener>) {
        let outage = Outage::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(lasted) = outage.recovered() {
                        tracing::info!(lasted_ms = lasted.as_millis() as u64, "gRPC connections are accepted again");
                    }
                    self.admit(stream);
                }
                Err(error) => {
                    // ECONNABORTED is a client that left before it was accepted; anything else is our own lack of resources.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        if outage.failed(&error.to_string()) {
                            tracing::warn!(%error, "cannot accept gRPC connections");
                        }
                        self.connections.close_least_recently_used();
                    }
                    smol::Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: Async<std::net::TcpStream>) {
        let is_full = self.connections.count() >= self.handler.limits.connections;
        if is_full && !self.connections.close_least_recently_used() {
            // The client sees a connection that closes before any frame: UNAVAILABLE, which is safe to retry.
            return;
        }
        let stream = TcpStream::from(stream);
        // With Nagle's algorithm, a response in two writes waits for the client's delayed ACK, about 40 ms.
        if stream.set_nodelay(true).is_ok() {
            let guard = self.connections.register(stream);
            runtime::spawn(self.clone().connection(guard)).detach();
        }
    }

    async fn connection(self, guard: ConnectionGuard) {
        let _open = metrics::track(&OPEN);
        let (stream, peer) = match self.handshake(guard.io()).await {
            Ok(connected) => connected,
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake of a gRPC client failed");
                return;
            }
        };
        let spawner = Spawner::default();
        let service = |mut request: Request<Incoming>| {
            let call = Arc::<Call>::default();
            spawner.next(call.clone());
            let (handler, connection) = (self.handler.clone(), guard.connection().clone());
            let pending = handler.begin(&mut request, &call);
            if let Peer::Service(identity) = &peer {
                request.extensions_mut().insert(identity.clone());
            }
            let is_authorized = !matches!(peer, Peer::Stranger) || is_health(request.uri().path());
            async move {
                let methods = handler.methods.clone();
                let respond = |request: Request<Incoming>| async move {
                    match pending {
                        Ok(pending) if is_authorized => handler.respond(request, call, pending, connection).await,
                        Ok(_) => stranger().into_http(),
                        Err(status) => status.into_http(),
                    }
                };
                Ok::<_, Infallible>(Box::pin(observe(request, &methods, respond)).await)
            }
        };
        let io = FuturesIo::new(guard.plaintext(stream));
        let connection = self.http2(spawner.clone()).serve_connection(io, service_fn(service));
        let mut connection = pin!(connection);
        let stopping = async {
            self.until_stopping().await;
            None
        };
        let outcome = match or(async { Some(connection.as_mut().await) }, stopping).await {
            Some(outcome) => outcome,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            // The client reset it or does not speak HTTP/2; hyper has sent the GOAWAY.
            tracing::debug!(%error, "a gRPC connection ended with an error");
        }
    }

    /// The TLS handshake, if there is one, and whom it shows.
    async fn handshake(&self, io: ObservedIo) -> io::Result<(tls::Stream<ObservedIo>, Peer)> {
        let Some((acceptor, client_names)) = &self.tls else { return Ok((tls::Stream::Plain(io), Peer::Unnamed)) };
        let stream = acceptor.accept(io).await?;
        let peer = match client_names {
            // A certificate says that a client may connect, and not that it is a service of ours.
            None => Peer::Unnamed,
            Some(names) => names.identify(&stream.peer_names()).map_or(Peer::Stranger, Peer::Service),
        };
        Ok((stream, peer))
    }

    /// HTTP/2 within the limits.
    fn http2(&self, spawner: Spawner) -> http2::Builder<Spawner> {
        let limits = &self.handler.limits;
        let mut builder = http2::Builder::new(spawner);
        builder
            .timer(SmolTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.head)
            .initial_connection_window_size(WINDOWS.0)
            .initial_stream_window_size(WINDOWS.1)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(limits.keep_alive.0)
            .keep_alive_timeout(limits.keep_alive.1);
        builder
    }

    /// Waits until a connection is to take no more calls: at the shutdown, or when it is old.
    async fn until_stopping(&self) {
        let old = async {
            match self.max_connection_age {
                // Connections that were made together, at a restart, do not end together.
                Some(age) => drop(smol::Timer::after(age.mul_f64(0.9 + fastrand::f64() / 5.0)).await),
                None => std::future::pending().await,
            }
        };
        or(self.shutdown.wait(), old).await;
    }
}

/// Who has opened a connection, as far as it is known.
enum Peer {
    /// Names are not looked at.
    Unnamed,
    /// A service, by a name in its certificate.
    Service(Arc<ServiceIdentity>),
    /// A client whose certificate has no name that may call.
    Stranger,
}

fn stranger() -> Status {
    Status::permission_denied("the client's certificate has none of the names that may call")
}

impl ClientNames {
    /// The service that a certificate with these names belongs to, if it may call.
    fn identify(&self, names: &[String]) -> Option<Arc<ServiceIdentity>> {
        let name = names.iter().find(|name| self.0.contains(name))?;
        Some(Arc::new(ServiceIdentity { name: name.as_str().into() }))
    }
}

/// Runs the calls of a connection, each until it ends or is aborted.
#[derive(Clone, Default)]
struct Spawner {
    /// The call that hyper spawns next: it spawns a call's future as soon as the service has returned it.
    call: Arc<Mutex<Option<Arc<Call>>>>,
}

impl Spawner {
    fn next(&self, call: Arc<Call>) {
        // Nothing panics while it is held.
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, work: F) {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        let work = async move {
            match call {
                // hyper does not poll a response while the client's window is full, so only dropping its task aborts it.
                Some(call) => or(async { drop(work.await) }, call.aborted.wait()).await,
                None => drop(work.await),
            }
        };
        runtime::spawn(work).detach();
    }
}
