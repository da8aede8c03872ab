use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    pin::pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use config::Reader;
use futures_lite::future::or;
use hyper::{server::conn::http2, service::service_fn};
use runtime::{Shutdown, timeout};
use smol::{Async, net::TcpStream};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use telemetry::{
    Outage,
    metrics::{self, IntGauge},
};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    Limits,
    answer::Answering,
    calls::{Call, Calls},
    connections::{Clock, Connections, Registered},
    observe::observe,
};

/// How often connections and answers are looked over; the precision of every limit on waiting for a client.
const LOOK_OVER: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, which fails again at once as long as descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of requests that a connection may have sent and nobody has read, in all and for one call; they are read at once.
const WINDOWS: (u32, u32) = (64 * 1024, 16 * 1024);
/// Bytes of an answer that wait for the connection.
const SEND_BUFFER: usize = 16 * 1024;

static OPEN: LazyLock<IntGauge> = LazyLock::new(|| metrics::gauge("grpc_connections", "Open gRPC connections."));

/// Where a gRPC server listens.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The address to bind; port 0 takes a free one.
    pub address: SocketAddr,
    /// Time for calls in flight after the shutdown.
    pub drain: Duration,
}

impl ServerSettings {
    /// Reads `GRPC_SERVER_ADDRESS` and `GRPC_SERVER_PORT`.
    pub fn read(reader: &mut Reader, default_port: &'static str, drain: Duration) -> Self {
        let ip: IpAddr = reader
            .variable(&["GRPC_SERVER_ADDRESS", "SERVER_ADDRESS"], "address that the gRPC server binds")
            .or("127.0.0.1");
        let port = reader.variable(&["GRPC_SERVER_PORT"], "port of the gRPC server").or(default_port);
        Self { address: SocketAddr::new(ip, port), drain }
    }
}

/// A bound gRPC server. Besides the services given to it, it answers `grpc.health.v1` and reflection (v1 and v1alpha).
pub struct Server {
    listener: Async<TcpListener>,
    address: SocketAddr,
    drain: Duration,
    limits: Limits,
}

impl Server {
    /// Binds the address, so that the port is known and taken before anything is served.
    ///
    /// # Errors
    /// If the address cannot be bound; the error names it.
    pub fn bind(settings: &ServerSettings) -> io::Result<Self> {
        let listener = runtime::listen(settings.address).map_err(|error| {
            io::Error::new(error.kind(), format!("{error} (GRPC_SERVER_ADDRESS, GRPC_SERVER_PORT)"))
        })?;
        let address = listener.local_addr()?;
        let limits = Limits::default();
        Ok(Self { listener: Async::new(listener)?, address, drain: settings.drain, limits })
    }

    /// Bounds what clients can make it hold, in place of the defaults.
    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The bound address, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the calls in flight within the limit for it. `descriptors` is the
    /// compiled form of the services' files, for reflection.
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
        let Self { listener, drain, limits, .. } = self;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = routes
            .add_service(health.service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        let clock = Clock::start();
        let calls = Calls::new(limits.clone(), clock);
        let connections = Connections::new(clock);
        let answering = Answering { routes, limits: Arc::new(limits), calls: calls.clone() };
        let serve = Serve { answering, connections: connections.clone(), shutdown: shutdown.clone() };
        let limits = serve.answering.limits.clone();
        let look_over = async {
            loop {
                smol::Timer::after(LOOK_OVER).await;
                connections.close_overdue(&limits);
                calls.break_off_overdue();
            }
        };
        shutdown.run_until_stopped(or(serve.accept(&listener), look_over)).await;
        drop(listener);
        for name in ["", health.name] {
            health.reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        // A client that keeps its connection open, or an answer's reader that takes nothing, could hold the end up for ever.
        if timeout(drain, connections.all_closed()).await.is_err() {
            tracing::warn!(connections = connections.count(), "gRPC calls broken off by the end of the drain");
            connections.close_all();
        }
        Ok(())
    }
}

/// What every connection of a server shares.
#[derive(Clone)]
struct Serve {
    answering: Answering,
    connections: Arc<Connections>,
    shutdown: Shutdown,
}

impl Serve {
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
                    // A client that gave up while it waited is no news; a lack of descriptors is.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        if outage.failed(&error.to_string()) {
                            tracing::warn!(%error, "cannot accept gRPC connections");
                        }
                        self.connections.close_least_used();
                    }
                    smol::Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: Async<std::net::TcpStream>) {
        let is_full = self.connections.count() >= self.answering.limits.connections;
        if is_full && !self.connections.close_least_used() {
            // Its client sees a connection that is closed before anything was sent: UNAVAILABLE, and safe to try again.
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
        let _open = metrics::track(&OPEN);
        let spawner = Spawner::default();
        let answer = |request| {
            let call = Arc::<Call>::default();
            spawner.next(call.clone());
            let (answering, connection) = (self.answering.clone(), registered.connection().clone());
            async move {
                let answer = |request| answering.answer(request, call, connection);
                Ok::<_, Infallible>(Box::pin(observe(request, answer)).await)
            }
        };
        let limits = &self.answering.limits;
        let mut builder = http2::Builder::new(spawner.clone());
        builder
            .timer(SmolTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.head)
            .initial_connection_window_size(WINDOWS.0)
            .initial_stream_window_size(WINDOWS.1)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(limits.keep_alive.0)
            .keep_alive_timeout(limits.keep_alive.1);
        let connection = builder.serve_connection(FuturesIo::from(registered.io()), service_fn(answer));
        let mut connection = pin!(connection);
        let stopping = async {
            self.shutdown.wait().await;
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
            // The client broke off or sent what is no HTTP/2: its affair, and hyper has answered what can be answered.
            tracing::debug!(%error, "a gRPC connection ended early");
        }
    }
}

/// Runs the calls of a connection, each until it ends or is broken off.
#[derive(Clone, Default)]
struct Spawner {
    /// The call that hyper runs next: it runs the future of a call as soon as it has it.
    call: Arc<Mutex<Option<Arc<Call>>>>,
}

impl Spawner {
    fn next(&self, call: Arc<Call>) {
        // Nothing can panic while it is held.
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, work: F) {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        let work = async move {
            match call {
                // Only dropping it breaks an answer off whose reader has no room: hyper does not ask for the next part then.
                Some(call) => or(async { drop(work.await) }, call.broken_off.wait()).await,
                None => drop(work.await),
            }
        };
        runtime::spawn(work).detach();
    }
}

/// The health that a server reports for itself (`""`) and for one service by its name.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    service: HealthService,
    name: &'static str,
}

type HealthService = tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>;

impl Health {
    /// Not serving yet.
    pub async fn not_serving(name: &'static str) -> Self {
        let reporter = HealthReporter::new();
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let service = tonic_health::pb::health_server::HealthServer::new(service);
        let health = Self { reporter, service, name };
        health.set_serving(false).await;
        health
    }

    /// Says whether calls can be served.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in ["", self.name] {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
