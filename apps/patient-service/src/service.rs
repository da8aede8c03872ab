//! What the service consists of, and how its parts are wired.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use postgres::{Database, Migrator};
use runtime::{Failure, Notify, Shutdown, TaskGroup};
use web::{Component, Health};

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
    store::Store,
};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Time for what goes on behind the requests to end after the last request: a batch in flight, and what it leads to.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(6);

/// Connections that requests cannot use up, besides `DATABASE_CONNECTIONS`: for a shard's relay, which reads while it
/// deletes, and for the relays together at most; for the tasks of billing and old keys; for the leases; for readiness.
const RELAY_CONNECTIONS: (usize, usize) = (2, 8);
const TASK_CONNECTIONS: usize = 2;
const LEASE_CONNECTIONS: usize = 1;
const HEALTH_CONNECTIONS: usize = 1;

/// A service with its port bound.
pub struct Service {
    server: web::Server,
    database: Database,
    billing: Arc<Billing>,
    settings: Settings,
}

impl Service {
    /// Binds the port. Nothing is connected yet: whatever is away does not keep the service from starting.
    ///
    /// # Errors
    /// If the port cannot be bound, or billing's address is not a valid URI.
    pub async fn build(settings: Settings) -> Result<Self, String> {
        let server = web::Server::bind(&settings.http).map_err(|error| error.to_string())?;
        let billing = Arc::new(Billing::new(settings.billing.clone())?);
        Ok(Self { server, database: Database::new(settings.database.clone()), billing, settings })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until the shutdown; then finishes the requests, then what goes on behind them.
    ///
    /// # Errors
    /// If a part of it fails, or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, database, billing, settings } = self;
        tracing::info!(http = %server.address(), "listening");

        // Slow requests cannot keep events from being published, accounts from being opened or a lease from being renewed.
        let for_tasks = database.reserve("tasks", TASK_CONNECTIONS);
        let relay_connections = (RELAY_CONNECTIONS.0 * settings.relay.shards as usize).min(RELAY_CONNECTIONS.1);
        let for_leases = database.reserve("leases", LEASE_CONNECTIONS);
        let outbox = Outbox::new(database.reserve("relay", relay_connections)).with_leases_on(for_leases);
        let (store, tasks) = (Store::new(database.clone()), BillingTasks::new(for_tasks.clone()));
        let (wake_relays, wake_reconciler) = (RelayWaker::new(settings.relay.shards), Arc::new(Notify::new()));
        let (completed, completed_task_deleter) = completed_tasks();
        let registry = Registry::new(store, billing.clone(), completed, wake_relays.clone(), wake_reconciler.clone());
        let broker = BrokerState::default();
        let health = health(database.reserve("health", HEALTH_CONNECTIONS), &broker, &billing, shutdown.clone());
        let app = App::new(registry, billing.clone(), settings.http.limits.clone());
        let app = http::routes(app).operations(health).build();

        // The background goes on until the last request has been answered.
        let background = Shutdown::new();
        let drain = settings.http.limits.drain + BACKGROUND_LIMIT;
        let mut group = TaskGroup::new(shutdown.clone());
        let serve = {
            let (shutdown, background) = (shutdown.clone(), background.clone());
            async move {
                server.serve(app, shutdown).await;
                background.trigger();
            }
        };
        group.start("http", serve);
        group.start("migration", migrate(database.clone(), shutdown));
        for shard in 0..settings.relay.shards {
            let relay = Relay::new(outbox.clone(), settings.relay.clone(), shard, broker.clone());
            group.start("relay", relay.run(wake_relays.clone(), background.clone()));
        }
        group.start("reconciler", Reconciler::new(tasks.clone(), billing).run(wake_reconciler, background.clone()));
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

async fn migrate(database: Database, shutdown: Shutdown) {
    match database.migrate(&MIGRATIONS, &shutdown).await {
        Ok(()) => shutdown.wait().await,
        // A part that ends early stops the service.
        Err(error) => tracing::error!(%error, "the service cannot work on this database"),
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
            let trouble = broker.trouble();
            async move { trouble.map_or_else(Component::up, Component::degraded) }
        })
        .component("billing", move || {
            let away = billing.is_away().then(|| billing.address());
            async move {
                away.map_or_else(Component::up, |address| {
                    Component::degraded(format!("the billing service does not answer at {address}"))
                })
            }
        })
}
