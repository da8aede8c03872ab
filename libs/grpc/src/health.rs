//! `grpc.health.v1`: whether a server and its service serve.

use std::sync::Arc;

use smol::lock::Mutex;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// The path of its methods.
const PATH: &str = "/grpc.health.v1.Health/";

/// Whether this is a method of it, which every client may call, without a token and whatever names its certificate has: it says
/// nothing but whether this server serves.
pub(crate) fn is_health(path: &str) -> bool {
    path.starts_with(PATH)
}

/// The serving status of a server (`""`) and of one service by its name, for `grpc.health.v1`.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    name: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What was reported last.
    is_serving: bool,
    /// The server has stopped.
    is_stopped: bool,
}

impl Health {
    /// `NOT_SERVING` at first.
    pub async fn not_serving(name: &'static str) -> Self {
        let health = Self { reporter: HealthReporter::new(), name, state: Arc::default() };
        health.report(ServingStatus::NotServing).await;
        health
    }

    /// Sets the status of both, and tells it to those who watch it if it is another one.
    pub async fn set_serving(&self, serving: bool) {
        let mut state = self.state.lock().await;
        let serving = serving && !state.is_stopped;
        // The reporter sends every status that it is given, and each message counts as use of the watcher's connection.
        if state.is_serving != serving {
            self.report(if serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            state.is_serving = serving;
        }
    }

    /// `NOT_SERVING` from now on, whatever is set later.
    pub(crate) async fn stop(&self) {
        let mut state = self.state.lock().await;
        *state = State { is_serving: false, is_stopped: true };
        self.report(ServingStatus::NotServing).await;
    }

    /// The service that tells it.
    pub(crate) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    async fn report(&self, status: ServingStatus) {
        for name in ["", self.name] {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::{
        StreamExt as _,
        future::{block_on, poll_once},
    };
    use tonic::Request;
    use tonic_health::pb::{HealthCheckRequest, health_check_response, health_server::Health as _};

    use super::*;

    #[test]
    fn a_watcher_is_told_the_status_and_then_each_change_once() {
        block_on(async {
            let health = Health::not_serving("BillingService").await;
            let service = HealthService::from_health_reporter(health.reporter.clone());
            for name in ["", "BillingService"] {
                health.set_serving(false).await;
                let request = Request::new(HealthCheckRequest { service: name.to_owned() });
                let mut watched = service.watch(request).await.unwrap().into_inner();
                let first = watched.next().await.unwrap().unwrap();
                assert_eq!(first.status(), health_check_response::ServingStatus::NotServing, "{name:?}");
                for (serving, status) in [
                    (true, health_check_response::ServingStatus::Serving),
                    (false, health_check_response::ServingStatus::NotServing),
                ] {
                    health.set_serving(serving).await;
                    assert_eq!(watched.next().await.unwrap().unwrap().status(), status, "{name:?}");
                    health.set_serving(serving).await;
                    assert!(poll_once(watched.next()).await.is_none(), "{name:?}: nothing has changed");
                }
            }
            health.stop().await;
            health.set_serving(true).await;
            let request = Request::new(HealthCheckRequest::default());
            let stopped = service.check(request).await.unwrap().into_inner();
            assert_eq!(stopped.status(), health_check_response::ServingStatus::NotServing);
        });
    }
}
