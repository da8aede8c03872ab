//! Wiring of the service.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use auth::Authenticator;
use runtime::{Failure, Notify, Shutdown, TaskGroup};
use web::{Component, Edge, Health};

use crate::{
    Assignment, Settings,
    dead_letters::Forwarder,
    http::{self, App, Queries},
    ingest::Ingest,
    member_client::MemberClient,
    members::Members,
    read_model::{Forwarding, ReadModel},
    state::SharedState,
};

/// Time for the last transaction after the last request.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);

/// A service with a bound port.
pub struct Service {
    server: web::Server,
    operations: Option<web::Server>,
    /// The connector to the other instances, if they speak TLS.
    members_tls: Option<tls::Connector>,
    settings: Settings,
}

impl Service {
    /// Binds the port. Connects to nothing and opens no file.
    ///
    /// # Errors
    /// If a port cannot be bound, or files for TLS are not valid.
    pub fn build(settings: Settings) -> Result<Self, Failure> {
        let server = web::Server::bind(&settings.http)?;
        let operations = web::Server::bind_operations(&settings.http)?;
        let members_tls = settings.members.connector()?;
        Ok(Self { server, operations, members_tls, settings })
    }

    /// The address of the HTTP server.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// If a task fails or does not end in time.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Failure> {
        let Self { server, operations, members_tls, settings } = self;
        tracing::info!(http = %server.address(), "listening");
        let state = Arc::new(SharedState::new(settings.state.clone()));
        let (read_model, dead_letter_stored) = (ReadModel::new(&settings.topic), Arc::new(Notify::new()));
        let authenticator = Authenticator::new(&settings.http.auth);
        let health = health(&read_model, shutdown.clone()).authentication(&settings.http.auth, &authenticator);
        let members = Members::default();
        // As a member of a group the instance has nothing until the first assignment.
        let is_member = settings.assignment == Assignment::Group;
        members.set(if is_member { Some(Vec::new()) } else { settings.members.listed() });
        let queries = Queries::new(read_model.clone(), members.clone(), MemberClient::new(members_tls));
        let app = App::new(queries, state.clone(), shutdown.clone());
        let edge = Edge::new(&settings.http, authenticator.clone());
        let app = http::routes(app, edge, settings.http.limits.in_flight).operations(health.clone()).build();
        let limit = settings.http.limits.drain + BACKGROUND_TIMEOUT;

        let mut group = TaskGroup::new(shutdown.clone());
        let members = (advertised_address(&settings, server.address()), members);
        let ingest =
            Ingest::new(settings.clone(), state.clone(), read_model.clone(), dead_letter_stored.clone(), members);
        group.start("http", server.serve(app, shutdown.clone()));
        if let Some(server) = operations {
            group.start("operations", server.serve(web::operations(health), shutdown.clone()));
        }
        group.start("authentication", authenticator.run(shutdown.clone()));
        group.start("ingest", ingest.run(shutdown.clone()));
        group.start("dead letters", Forwarder::new(state, settings, read_model).run(dead_letter_stored, shutdown));
        Ok(group.join(limit).await?)
    }
}

/// Where other instances reach the HTTP server: the address of the settings, or the one that it listens on.
fn advertised_address(settings: &Settings, listening: SocketAddr) -> String {
    settings.membership.advertised.as_ref().map_or_else(|| listening.to_string(), ToString::to_string)
}

fn health(read_model: &ReadModel, shutdown: Shutdown) -> Health {
    let (state, kafka, ingest, letters) =
        (read_model.clone(), read_model.clone(), read_model.clone(), read_model.clone());
    Health::new(shutdown)
        .component("state", move || {
            let error = state.read(|snapshot| snapshot.state_error.clone());
            async move { error.map_or_else(Component::up, Component::down) }
        })
        .component("kafka", move || {
            let error = kafka.read(|snapshot| snapshot.kafka_errors.values().next().cloned());
            async move { error.map_or_else(Component::up, Component::degraded) }
        })
        .component("ingest", move || {
            let (halted, unassigned) = ingest.read(|snapshot| {
                let halted = snapshot.partitions.iter().filter_map(|(n, position)| Some((n, position.halted.clone()?)));
                let halted: Vec<_> = halted.map(|(partition, why)| format!("partition {partition}: {why}")).collect();
                (halted, snapshot.unassigned.clone())
            });
            let component = if !halted.is_empty() {
                Component::down(halted.join("; "))
            } else if !unassigned.is_empty() {
                Component::degraded(format!("partitions {unassigned:?} were added, and PARTITIONS does not name them"))
            } else {
                Component::up()
            };
            async move { component }
        })
        .component("deadLetters", move || {
            let Forwarding { error, is_full } = letters.read(|snapshot| snapshot.dead_letters.clone());
            let component = match error {
                error if is_full => Component::down(format!(
                    "too many wait for their topic, and nothing is counted meanwhile: {}",
                    error.unwrap_or_else(|| "they are being forwarded".to_owned())
                )),
                Some(error) => Component::degraded(error),
                None => Component::up(),
            };
            async move { component }
        })
}
