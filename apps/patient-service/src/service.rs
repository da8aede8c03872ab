//! The components of the service and how they are wired.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use auth::Authenticator;
use postgres::{Database, Migrator};
use runtime::{Failure, Notify, Shutdown, TaskGroup};
use web::{Component, Edge, Health};

use crate::{
    Settings,
    billing::Billing,
    billing_tasks::BillingTasks,
    completed_tasks::completed_tasks,
    housekeeping,
    http::{self, App},
    outbox::Outbox,
    reconciler::Reconciler,
    registry::Registry,
    relay::{BrokerState, Relay, RelayWaker},
    store::{self, Store},
};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Time for the background tasks to end after the last request, at least.
const MIN_BACKGROUND_LIMIT: Duration = Duration::from_secs(6);

/// Reserved connections besides `DATABASE_CONNECTIONS`, which requests cannot use up: for a shard's relay, which reads while it
/// deletes, and at most for all relays; for billing tasks and idempotency keys; for leases; for readiness.
const RELAY_CONNECTIONS: (usize, usize) = (2, 8);
const TASK_CONNECTIONS: usize = 2;
const LEASE_CONNECTIONS: usize = 1;
const HEALTH_CONNECTIONS: usize = 1;

/// A service with its port bound.
pub struct Service {
    server: web::Server,
    operations: Option<web::Server>,
    database: Database,
    billing: Arc<Billing>,
    settings: Settings,
}

impl Service {
    /// Binds the port. Nothing is connected yet, so unavailable dependencies do not keep the service from starting.
    ///
    /// # Errors
    /// If a port cannot be bound, billing's address is not a valid URI, or files for TLS are not valid.
    pub async fn build(settings: Settings) -> Result<Self, Failure> {
        let server = web::Server::bind(&settings.http)?;
        let operations = web::Server::bind_operations(&settings.http)?;
        let billing = Billing::new(settings.billing.clone());
        let billing =
            Arc::new(billing.map_err(|error| Failure::configuration(format!("the billing service: {error}")))?);
        Ok(Self { server, operations, database: Database::new(settings.database.clone()), billing, settings })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until the shutdown, then finishes requests in flight, then the background tasks.
    ///
    /// # Errors
    /// If a component fails or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, operations, database, billing, settings } = self;
        tracing::info!(http = %server.address(), "listening");

        // Reserved, so that slow requests delay no event, no account and no renewal of a lease.
        let for_tasks = database.reserve("tasks", TASK_CONNECTIONS);
        let relay_connections = (RELAY_CONNECTIONS.0 * settings.relay.shards as usize).min(RELAY_CONNECTIONS.1);
        let for_leases = database.reserve("leases", LEASE_CONNECTIONS);
        let outbox = Outbox::new(database.reserve("relay", relay_connections)).with_leases_on(for_leases);
        let (store, tasks) = (Store::new(database.clone()), BillingTasks::new(for_tasks.clone()));
        let (relay_waker, reconciler_notify) = (RelayWaker::new(settings.relay.shards), Arc::new(Notify::new()));
        let (completed, completed_task_deleter) = completed_tasks();
        let registry = Registry::new(store, billing.clone(), completed, relay_waker.clone(), reconciler_notify.clone());
        let broker = BrokerState::default();
        let health = health(database.reserve("health", HEALTH_CONNECTIONS), &broker, &billing, shutdown.clone());
        let authenticator = Authenticator::new(&settings.http.auth);
        let health = health.authentication(&settings.http.auth, &authenticator);
        let app = App::new(registry, billing.clone(), settings.http.limits.clone());
        let edge = Edge::new(&settings.http, authenticator.clone());
        let app = http::routes(app, edge).operations(health.clone()).build();

        // The background tasks run until the last request has been answered.
        let background = Shutdown::new();
        let drain = settings.http.limits.drain + background_limit(&settings);
        let mut group = TaskGroup::new(shutdown.clone());
        let serve = {
            let (shutdown, background) = (shutdown.clone(), background.clone());
            async move {
                server.serve(app, shutdown).await;
                background.trigger();
            }
        };
        group.start("http", serve);
        if let Some(server) = operations {
            group.start("operations", server.serve(web::operations(health), shutdown.clone()));
        }
        group.start("authentication", authenticator.run(shutdown.clone()));
        group.start("migration", migrate(database.clone(), shutdown));
        for shard in 0..settings.relay.shards {
            let relay = Relay::new(outbox.clone(), settings.relay.clone(), shard, broker.clone());
            group.start("relay", relay.run(relay_waker.clone(), background.clone()));
        }
        group.start("reconciler", Reconciler::new(tasks.clone(), billing).run(reconciler_notify, background.clone()));
        group.start("completed tasks", completed_task_deleter.run(tasks, background.clone()));
        group.start("housekeeping", housekeeping::run(Store::new(for_tasks), settings.key_retention, background));
        let outcome = group.join(drain).await;
        database.close().await;
        match database.permanent_error() {
            Some(permanent_error) => Err(Failure::configuration(permanent_error.to_string())),
            None => Ok(outcome?),
        }
    }
}

/// Time for the background tasks to end after the last request: a batch in flight that Kafka does not answer, and its deletion or the
/// end of the lease.
fn background_limit(settings: &Settings) -> Duration {
    let postgres::Settings { acquire, deadline, .. } = &settings.database;
    (settings.relay.kafka.deadline + *acquire + *deadline).max(MIN_BACKGROUND_LIMIT)
}

async fn migrate(database: Database, shutdown: Shutdown) {
    // A component that ends early stops the service.
    if let Err(error) = database.keep_migrated(&MIGRATIONS, &[store::LOCALE, store::UNIQUE_INDEXES], &shutdown).await {
        tracing::error!(%error, "the service cannot work on this database");
    }
}

fn health(database: Database, broker: &BrokerState, billing: &Arc<Billing>, shutdown: Shutdown) -> Health {
    let (broker, billing) = (broker.clone(), billing.clone());
    Health::new(shutdown)
        .component("database", move || {
            let database = database.clone();
            async move {
                database.ping().await.map_or_else(|error| Component::down(error.to_string()), |()| Component::up())
            }
        })
        .component("kafka", move || {
            let error = broker.error();
            async move { error.map_or_else(Component::up, Component::degraded) }
        })
        .component("billing", move || {
            let problem = billing.problem();
            async move { problem.map_or_else(Component::up, Component::degraded) }
        })
}

#[cfg(test)]
mod tests {
    use config::{Environment, Reader};

    use super::*;

    #[test]
    fn background_tasks_have_the_time_of_their_deadlines_to_end() {
        let limit = |kafka: &str, database: &str| {
            let environment = Environment::empty()
                .with("DATABASE_URL", "postgres://localhost/patients")
                .with("DATABASE_DEADLINE", database)
                .with("KAFKA_DEADLINE", kafka);
            let mut reader = Reader::new(environment);
            let settings = Settings::read(&mut reader);
            background_limit(&reader.finish(settings).unwrap().0)
        };
        // Compose and Kubernetes give 18 s, with the drain.
        assert_eq!(limit("5s", "2s"), Duration::from_secs(8));
        assert_eq!(limit("30s", "20s"), Duration::from_secs(51), "and 1 s for a connection");
        assert_eq!(limit("100ms", "100ms"), MIN_BACKGROUND_LIMIT);
    }
}
