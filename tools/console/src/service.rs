//! What the console consists of, and how it is wired.

use std::{net::SocketAddr, time::Duration};

use runtime::{Failure, Shutdown, TaskGroup};
use web::{Health, Server};

use crate::{Settings, app::App, forward, http, map::Map, scrape, session::Identity, store::Store};

/// Time for the background tasks to end.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(1);

/// A console with its port bound.
pub struct Service {
    server: Server,
    settings: Settings,
}

impl Service {
    /// Binds the port. The console starts whatever else is unavailable.
    ///
    /// # Errors
    /// If the port cannot be bound.
    pub fn build(settings: Settings) -> Result<Self, String> {
        let server = Server::bind(&settings.http).map_err(|error| error.to_string())?;
        Ok(Self { server, settings })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// If one of its tasks fails, or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, settings } = self;
        tracing::info!(http = %server.address(), "listening");
        let drain = settings.http.limits.drain + BACKGROUND_LIMIT;
        let (store, map) = (Store::default(), Map::default());
        let mut tasks = TaskGroup::new(shutdown.clone());
        let forwarder = settings.collector.clone().map(|collector| {
            let (forwarder, task) = forward::queue(collector);
            tasks.start("forwarding", task.run(shutdown.clone()));
            forwarder
        });
        let services = [settings.patients.clone(), settings.billing.clone(), settings.analytics.clone()];
        let identity = settings.secure.clone().map(Identity::new).transpose();
        let identity = identity.map_err(|error| Failure::configuration(error.to_string()))?;
        tasks.start("scrapes", scrape::run(map.clone(), services, identity.clone(), shutdown.clone()));
        // It is ready as soon as it answers: it shows what is unavailable.
        let app = App::new(settings, identity, store, map, forwarder, shutdown.clone());
        let app = http::routes(app).operations(Health::new(shutdown.clone())).build();
        tasks.start("http", server.serve(app, shutdown));
        Ok(tasks.join(drain).await?)
    }
}
