//! The components of the service and how they are wired.

use std::{net::SocketAddr, time::Duration};

use auth::{Authenticator, JwtSettings, KeySource, Mode};
use runtime::{Failure, Shutdown, TaskGroup};
use web::Health;

use crate::{
    Settings,
    http::{self, App},
    signer::Signer,
    users::Users,
};

/// A service with its port bound, its users read and its key there.
pub struct Service {
    server: web::Server,
    app: App,
    authenticator: Authenticator,
    drain: Duration,
}

impl Service {
    /// Reads the files and binds the port.
    ///
    /// # Errors
    /// If a file is wrong, or the port cannot be bound.
    pub async fn build(settings: Settings) -> Result<Self, Failure> {
        let (users_file, key_file) = (settings.users.clone(), settings.key.clone());
        let opened = smol::unblock(move || Ok((Users::read(&users_file)?, Signer::open(&key_file)?))).await;
        let (users, signer) = opened.map_err(|error: String| Failure::configuration(error))?;
        let server = web::Server::bind(&settings.http)?;
        let drain = settings.http.limits.drain;
        let jwt = JwtSettings {
            issuer: settings.issuer.clone(),
            audience: settings.audiences.0[0].clone(),
            keys: KeySource::Fixed(signer.jwk_set().to_string().into_bytes()),
        };
        let authenticator = Authenticator::new(&auth::Settings { mode: Mode::Jwt(jwt) });
        let app = App::new(settings, users, signer, authenticator.clone());
        Ok(Self { server, app, authenticator, drain })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// If a component fails or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, app, authenticator, drain } = self;
        tracing::info!(http = %server.address(), "listening");
        let app = http::routes(app).operations(Health::new(shutdown.clone())).build();
        let mut group = TaskGroup::new(shutdown.clone());
        group.start("http", server.serve(app, shutdown.clone()));
        group.start("authentication", authenticator.run(shutdown));
        Ok(group.join(drain + Duration::from_secs(1)).await?)
    }
}
