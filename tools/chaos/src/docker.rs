//! The containers of this checkout, by the `docker` command. They are found by the labels of Docker Compose.

use std::{
    collections::BTreeMap,
    env,
    process::Output,
    time::{Duration, Instant},
};

use runtime::timeout;
use serde_json::Value as Json;
use smol::process::Command;
use testbed::{
    Error,
    audit::Auditor,
    compose::{CHECKOUT_LABEL, id_and_checkout, ids_in},
    http::Client,
};

/// Timeout of a `docker` command, including the wait of `docker stop`.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Seconds until `docker stop` kills the container.
const GRACE: &str = "25";
/// Time for a container to be healthy after its last start.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(90);
/// How often the state of a container is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A container of the system.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    id: String,
}

/// The output of `docker inspect` for a container.
pub(crate) struct Inspected {
    pub(crate) container: Container,
    pub(crate) service: String,
    pub(crate) number: String,
    pub(crate) is_running: bool,
    /// The container's ports, with the addresses on this machine where they are published.
    published: BTreeMap<String, String>,
    /// Its IP address in the network of the containers, which the host can reach on Linux.
    address: String,
    environment: BTreeMap<String, String>,
}

impl Container {
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        // It may have ended by itself.
        docker(&["kill", &self.id]).await.map(drop).or_else(not_running)
    }

    pub(crate) async fn pause(&self) -> Result<(), Error> {
        docker(&["pause", &self.id]).await.map(drop)
    }

    pub(crate) async fn unpause(&self) -> Result<(), Error> {
        docker(&["unpause", &self.id]).await.map(drop)
    }

    pub(crate) async fn stop(&self) -> Result<(), Error> {
        docker(&["stop", "-t", GRACE, &self.id]).await.map(drop)
    }

    pub(crate) async fn start(&self) -> Result<(), Error> {
        docker(&["start", &self.id]).await.map(drop)
    }

    pub(crate) async fn log(&self) -> Result<String, Error> {
        let output = docker(&["logs", &self.id]).await?;
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until its health check succeeds, or until it runs if it has none.
    pub(crate) async fn until_ready(&self) -> Result<(), Error> {
        let format = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}";
        let end = Instant::now() + HEALTHY_TIMEOUT;
        loop {
            let state = text(&docker(&["inspect", "--format", format, &self.id]).await?);
            match state.trim() {
                "running" | "running healthy" => return Ok(()),
                state if Instant::now() > end => {
                    return Err(Error::new(format!("container {} is {state} after {HEALTHY_TIMEOUT:?}", self.id)));
                }
                _ => drop(smol::Timer::after(POLL_INTERVAL).await),
            }
        }
    }
}

/// An auditor of the system of this checkout.
///
/// # Errors
/// If no Docker engine responds, or a container is missing.
pub(crate) async fn auditor() -> Result<Auditor, Error> {
    let all = all().await?;
    let database = |service: &str| {
        let container = all.iter().find(|container| container.service == service && !container.address.is_empty());
        let container = container.ok_or_else(|| Error::new(format!("{service} has no address")))?;
        let setting = |name: &str| container.environment.get(name).cloned().unwrap_or_default();
        let (user, password) = (setting("POSTGRES_USER"), setting("POSTGRES_PASSWORD"));
        Ok::<_, Error>(format!("postgres://{user}:{password}@{}:5432/{}", container.address, setting("POSTGRES_DB")))
    };
    let analytics = all.iter().filter(|container| container.service.starts_with("analytics-service"));
    let analytics = analytics.filter_map(|container| container.published.get("4002/tcp")).map(Client::new).collect();
    let kafka = address_of(&all, "kafka", "19092/tcp")?;
    Auditor::at(database("patient-db")?, database("billing-db")?, &kafka, "patient", analytics)
}

pub(crate) fn address_of(all: &[Inspected], service: &str, port: &str) -> Result<String, Error> {
    let found =
        all.iter().filter(|container| container.service == service).find_map(|container| container.published.get(port));
    found.cloned().ok_or_else(|| Error::new(format!("{service} publishes no port {port}")))
}

/// The containers of this checkout, in the order of their names.
pub(crate) async fn all() -> Result<Vec<Inspected>, Error> {
    let checkout = env::current_dir()?.canonicalize()?;
    let (label, format) = (format!("label={CHECKOUT_LABEL}"), id_and_checkout());
    let listed = text(&docker(&["ps", "-a", "--filter", &label, "--format", &format]).await?);
    let ids: Vec<_> = ids_in(&listed, &checkout).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let arguments: Vec<_> = ["inspect", "--type", "container"].into_iter().chain(ids).collect();
    let json: Json = serde_json::from_str(&text(&docker(&arguments).await?)).unwrap_or_default();
    let mut all: Vec<_> = json.as_array().into_iter().flatten().map(inspected).collect();
    all.sort_by(|a, b| (&a.service, &a.number).cmp(&(&b.service, &b.number)));
    Ok(all)
}

fn inspected(json: &Json) -> Inspected {
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let label = |name: &str| text(&json["Config"]["Labels"][format!("com.docker.compose.{name}")]);
    let ports = json["NetworkSettings"]["Ports"].as_object().into_iter().flatten();
    let published = ports.filter_map(|(port, bindings)| {
        let binding = bindings.as_array()?.first()?;
        Some((port.clone(), format!("{}:{}", text(&binding["HostIp"]), text(&binding["HostPort"]))))
    });
    let networks = json["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    let variables = json["Config"]["Env"].as_array().into_iter().flatten();
    let pair =
        |variable: &Json| variable.as_str()?.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    Inspected {
        container: Container { id: text(&json["Id"]).chars().take(12).collect() },
        service: label("service"),
        number: label("container-number"),
        is_running: json["State"]["Running"] == true,
        published: published.collect(),
        address: networks.map(|(_, network)| text(&network["IPAddress"])).next().unwrap_or_default(),
        environment: variables.filter_map(pair).collect(),
    }
}

async fn docker(arguments: &[&str]) -> Result<Output, Error> {
    let output = Command::new("docker").args(arguments).kill_on_drop(true).output();
    let output = timeout(COMMAND_TIMEOUT, output).await.map_err(|_| Error::new("docker does not respond"))?;
    let output = output.map_err(|error| Error::new(format!("docker: {error}")))?;
    if output.status.success() {
        return Ok(output);
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::new(format!("docker {}: {reason}", arguments.first().unwrap_or(&""))))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn not_running(error: Error) -> Result<(), Error> {
    if error.to_string().contains("is not running") { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_output_of_docker_inspect_is_parsed() {
        let container = inspected(&json!({
            "Id": "0123456789abcdef",
            "State": {"Running": true},
            "Config": {
                "Labels": {"com.docker.compose.service": "patient-db", "com.docker.compose.container-number": "2"},
                "Env": ["POSTGRES_USER=patients", "POSTGRES_PASSWORD=a=b"],
            },
            "NetworkSettings": {
                "Ports": {"5432/tcp": null, "4000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "4100"}]},
                "Networks": {"pm_default": {"IPAddress": "172.18.0.4"}},
            },
        }));
        assert_eq!(
            (container.service.as_str(), container.number.as_str(), container.is_running),
            ("patient-db", "2", true)
        );
        assert_eq!(container.published, BTreeMap::from([("4000/tcp".to_owned(), "127.0.0.1:4100".to_owned())]));
        assert_eq!(
            (container.address.as_str(), container.environment["POSTGRES_PASSWORD"].as_str()),
            ("172.18.0.4", "a=b")
        );
    }
}
