//! What the console consists of, and how its parts are wired.

use std::{net::SocketAddr, time::Duration};

use runtime::{Failure, Shutdown, TaskGroup};
use web::{Health, Server};

use crate::{Settings, app::App, forward, http, map::Map, scrape, store::Store};

/// Time for what goes on behind the requests to end.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(1);

/// A console with its port bound.
pub struct Service {
    server: Server,
    settings: Settings,
}

impl Service {
    /// Binds the port. Whatever is away does not keep the console from starting.
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
    /// If a part of it fails, or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, settings } = self;
        tracing::info!(http = %server.address(), "listening");
        let drain = settings.http.limits.drain + BACKGROUND_LIMIT;
        let (store, map) = (Store::default(), Map::default());
        let mut parts = TaskGroup::new(shutdown.clone());
        let forwarder = settings.collector.clone().map(|collector| {
            let (forwarder, forwarding) = forward::to(collector);
            parts.start("forwarding", forwarding.run(shutdown.clone()));
            forwarder
        });
        let services = [settings.patients.clone(), settings.billing.clone(), settings.analytics.clone()];
        parts.start("scrapes", scrape::run(map.clone(), services, shutdown.clone()));
        // It is ready as soon as it answers: whatever else is away is what it shows.
        let app = App::new(settings, store, map, forwarder, shutdown.clone());
        let app = http::routes(app).operations(Health::new(shutdown.clone())).build();
        parts.start("http", server.serve(app, shutdown));
        Ok(parts.join(drain).await?)
    }
}
