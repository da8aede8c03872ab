//! The components of the service and how they are wired.

use std::{net::SocketAddr, time::Duration};

use ::grpc::{Access, Routes};
use auth::{Authenticator, Scope};
use billing_api::billing_service_server::BillingServiceServer;
use postgres::{Database, Migrator};
use runtime::{Failure, Shutdown, TaskGroup};
use web::{Component, Edge, Router};

use crate::{Settings, grpc::Billing, store::Store};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// The largest request, in bytes. Requests have a few hundred.
const MESSAGE_LIMIT: usize = 64 * 1024;
/// Reads accounts and ledgers.
const READ: Scope = Scope::new("billing:read");
/// Opens and closes accounts, and enters transactions.
const WRITE: Scope = Scope::new("billing:write");
/// The scope that each method requires.
const SCOPES: [(&str, Scope); 5] = [
    ("/BillingService/CreateBillingAccount", WRITE),
    ("/BillingService/GetBillingAccount", READ),
    ("/BillingService/CloseBillingAccount", WRITE),
    ("/BillingService/RecordTransaction", WRITE),
    ("/BillingService/ListTransactions", READ),
];
/// Interval between checks of the database for the gRPC health service.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reserved connections besides `DATABASE_CONNECTIONS`, which calls cannot use up: for readiness and gRPC health.
const HEALTH_CONNECTIONS: usize = 1;

/// A service with its ports bound.
pub struct Service {
    http: web::Server,
    operations: Option<web::Server>,
    grpc: ::grpc::Server,
    database: Database,
    settings: Settings,
}

impl Service {
    /// Binds the ports. Nothing is connected yet, so an unavailable database does not keep the service from starting.
    ///
    /// # Errors
    /// If a port cannot be bound, or files for TLS are not valid.
    pub async fn build(settings: Settings) -> Result<Self, Failure> {
        let http = web::Server::bind(&settings.http)?;
        let operations = web::Server::bind_operations(&settings.http)?;
        let grpc = ::grpc::Server::bind(&settings.grpc)?;
        Ok(Self { http, operations, grpc, database: Database::new(settings.database.clone()), settings })
    }

    /// Where HTTP is served.
    pub fn http_address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.address()
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// If a component fails or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { http, operations, grpc, database, settings } = self;
        tracing::info!(http = %http.address(), grpc = %grpc.address(), "listening");

        let probe = database.reserve("health", HEALTH_CONNECTIONS);
        let watched = probe.clone();
        let health = web::Health::new(shutdown.clone()).component("database", move || {
            let database = probe.clone();
            async move {
                database.ping().await.map_or_else(|error| Component::down(error.to_string()), |()| Component::up())
            }
        });
        let authenticator = Authenticator::new(&settings.http.auth);
        let health = health.authentication(&settings.http.auth, &authenticator);
        let edge = Edge::new(&settings.http, authenticator.clone());
        let app = Router::new(()).edge(edge).operations(health.clone()).build();

        let serving = ::grpc::Health::not_serving(billing_api::SERVICE).await;
        let billing = BillingServiceServer::new(Billing::new(Store::new(database.clone())));
        let routes = Routes::new(billing.max_decoding_message_size(MESSAGE_LIMIT));

        let mut group = TaskGroup::new(shutdown.clone());
        group.start("http", http.serve(app, shutdown.clone()));
        group.start("database", watch_database(watched, serving.clone(), shutdown.clone()));
        let grpc = grpc.with_access(Access::new(authenticator.clone(), &SCOPES));
        if let Some(server) = operations {
            group.start("operations", server.serve(web::operations(health), shutdown.clone()));
        }
        group.start("authentication", authenticator.run(shutdown.clone()));
        let calls = grpc.serve(routes, serving, billing_api::DESCRIPTORS, shutdown);
        group.start("grpc", async {
            if let Err(error) = calls.await {
                tracing::error!(%error, "the gRPC server failed");
            }
        });
        // Each component ends within the drain timeout; the extra second lets it report its outcome.
        let outcome = group.join(settings.http.limits.drain + Duration::from_secs(1)).await;
        database.close().await;
        match database.permanent_error() {
            Some(permanent_error) => Err(Failure::configuration(permanent_error.to_string())),
            None => Ok(outcome?),
        }
    }
}

/// Keeps the schema migrated, and reports the state of the database to the gRPC health service.
async fn watch_database(database: Database, serving: ::grpc::Health, shutdown: Shutdown) {
    let report = async {
        while !shutdown.is_triggered() {
            let is_up = database.ping().await.is_ok();
            serving.set_serving(is_up && !shutdown.is_triggered()).await;
            shutdown.run_until_stopped(smol::Timer::after(CHECK_INTERVAL)).await;
        }
        Ok(())
    };
    let watch = futures_lite::future::or(database.keep_migrated(&MIGRATIONS, &[], &shutdown), report);
    // At the shutdown it ends at once: a ping that is not answered takes as long as DATABASE_DEADLINE.
    if let Some(Err(error)) = shutdown.run_until_stopped(watch).await {
        tracing::error!(%error, "the service cannot work on this database");
    }
}
