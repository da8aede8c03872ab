use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use async_compat::Compat;
use config::Reader;
use runtime::Shutdown;
use tonic::{
    service::Routes,
    transport::{Server as Transport, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::layer::util::Stack;

use crate::observe::Observe;

/// Calls at work on one connection; a client opens further ones later.
const STREAMS: u32 = 1024;
/// A call that takes longer is cancelled, whatever its client said.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How often a quiet connection is asked for a sign of life, and how long it may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

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
    listener: TcpListener,
    address: SocketAddr,
    drain: Duration,
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
        Ok(Self { listener, address, drain: settings.drain })
    }

    /// The bound address, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then finishes the calls in flight within the limit for it. `descriptors` is the
    /// compiled form of the services' files, for reflection.
    ///
    /// # Errors
    /// If the descriptors are malformed or the transport fails.
    pub async fn serve(
        self,
        routes: Routes,
        health: Health,
        descriptors: &'static [u8],
        shutdown: Shutdown,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Self { listener, drain, .. } = self;
        let stop = shutdown.clone();
        let serve = async move {
            let reflection =
                || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(descriptors);
            let routes = routes
                .add_service(health.service)
                .add_service(reflection().build_v1()?)
                .add_service(reflection().build_v1alpha()?);
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
            let stopping = async {
                stop.wait().await;
                health.reporter.set_service_status("", ServingStatus::NotServing).await;
                health.reporter.set_service_status(health.name, ServingStatus::NotServing).await;
            };
            transport().add_routes(routes).serve_with_incoming_shutdown(incoming, stopping).await?;
            Ok(())
        };
        // A client that keeps its connection open can hold tonic's shutdown up for ever (hyper#4170).
        let end = async {
            shutdown.wait().await;
            smol::Timer::after(drain).await;
            tracing::warn!("gRPC calls broken off by the end of the drain");
            Ok(())
        };
        smol::future::or(Compat::new(serve), end).await
    }
}

fn transport() -> Transport<Stack<Observe, tower::layer::util::Identity>> {
    Transport::builder()
        .timeout(CALL_LIMIT)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .layer(Observe)
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
