use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
use runtime::{Shutdown, timeout};
use serde::Serialize;
use tide::{Response, StatusCode};

/// The path of the readiness probe.
pub(crate) const READINESS: &str = "/actuator/health/readiness";
/// Time for all checks together; those that are not done then count as down. It is below the timeout of a second that
/// probes usually have.
const CHECK_TIMEOUT: Duration = Duration::from_millis(800);

/// The status of a component or of the whole service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It works.
    Up,
    /// It does not work, and the service can do without it for now.
    Degraded,
    /// It does not work, and the service cannot do without it.
    Down,
}

/// The state of one dependency of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Component {
    /// Its status.
    pub status: Status,
    /// What is wrong, for an operator; never personal data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Component {
    /// It works.
    pub fn up() -> Self {
        Self { status: Status::Up, detail: None }
    }

    /// It does not work, and the service can do without it for now.
    pub fn degraded(detail: impl Into<String>) -> Self {
        Self { status: Status::Degraded, detail: Some(detail.into()) }
    }

    /// It does not work, and the service cannot do without it.
    pub fn down(detail: impl Into<String>) -> Self {
        Self { status: Status::Down, detail: Some(detail.into()) }
    }
}

type Check = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Component> + Send>> + Send + Sync>;

/// What the readiness of a service depends on. It is DOWN as a whole while any component is down, and from the moment
/// of the shutdown, so that load balancers send requests elsewhere.
#[derive(Clone)]
pub struct Health {
    shutdown: Shutdown,
    checks: Vec<(&'static str, Check)>,
}

impl Health {
    /// Readiness that depends only on the shutdown.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, checks: Vec::new() }
    }

    /// Adds a component; `check` is called for each probe.
    #[must_use]
    pub fn component<F, R>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Component> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || Box::pin(check()))));
        self
    }

    /// Adds what identifies callers: DOWN while no token can be verified, and a note if callers are not identified on an
    /// address that others can reach.
    #[must_use]
    pub fn authentication(self, settings: &auth::Settings, authenticator: &auth::Authenticator) -> Self {
        match settings.mode {
            auth::Mode::Off { on_network: false } => self,
            auth::Mode::Off { on_network: true } => self.component("authentication", || async {
                let detail = "off: whoever reaches the port may do everything".to_owned();
                Component { status: Status::Up, detail: Some(detail) }
            }),
            auth::Mode::Jwt(_) => {
                let authenticator = authenticator.clone();
                self.component("authentication", move || {
                    let trouble = authenticator.trouble();
                    async move { trouble.map_or_else(Component::up, Component::down) }
                })
            }
        }
    }

    /// The response to a readiness probe; a brief one leaves out the components.
    pub(crate) async fn readiness(&self, is_brief: bool) -> Response {
        let mut components = serde_json::Map::new();
        let mut worst = Status::Up;
        let mut add = |name: &str, component: Component| {
            worst = worst.max(component.status);
            components.insert(name.to_owned(), serde_json::to_value(component).expect("two strings"));
        };
        if self.shutdown.is_triggered() {
            add("service", Component::down("stopping"));
        }
        let checks = self.checks.iter().map(|(_, check)| timeout(CHECK_TIMEOUT, check()));
        for ((name, _), component) in self.checks.iter().zip(join_all(checks).await) {
            add(name, component.unwrap_or_else(|elapsed| Component::down(elapsed.to_string())));
        }
        let status = if worst == Status::Down { StatusCode::ServiceUnavailable } else { StatusCode::Ok };
        if is_brief {
            return crate::json(status, &serde_json::json!({ "status": worst }));
        }
        crate::json(status, &serde_json::json!({ "status": worst, "components": components }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn readiness(health: &Health) -> (u16, serde_json::Value) {
        let mut response = smol::block_on(health.readiness(false));
        let body = smol::block_on(response.take_body().into_bytes()).unwrap();
        (response.status().into(), serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn the_worst_component_decides_and_degraded_is_ready() {
        let shutdown = Shutdown::new();
        let health = Health::new(shutdown.clone())
            .component("database", || async { Component::up() })
            .component("kafka", || async { Component::degraded("unavailable") });
        let (status, body) = readiness(&health);
        assert_eq!((status, body["status"].as_str()), (200, Some("DEGRADED")));
        assert_eq!(body["components"]["kafka"]["detail"], "unavailable");

        let (status, body) = readiness(&health.clone().component("state", || async { Component::down("full") }));
        assert_eq!((status, body["status"].as_str()), (503, Some("DOWN")));

        shutdown.trigger();
        assert_eq!(readiness(&health).0, 503);
    }

    #[test]
    fn checks_that_hang_are_down_and_cost_less_than_a_second_together() {
        let health = Health::new(Shutdown::new())
            .component("database", std::future::pending)
            .component("kafka", std::future::pending)
            .component("state", || async { Component::up() })
            .component("billing", std::future::pending);
        let started = Instant::now();
        let (status, body) = readiness(&health);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!((status, body["components"]["state"]["status"].as_str()), (503, Some("UP")));
        assert_eq!(body["components"]["billing"]["status"], "DOWN");
    }
}
