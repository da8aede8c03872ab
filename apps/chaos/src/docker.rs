//! The system that `just up` runs in containers, with one replica of each service or scaled.
//!
//! It is found by the labels that Compose gives to the containers of this checkout. Docker's own commands do the rest.

use std::{
    collections::BTreeMap,
    env,
    process::Output,
    time::{Duration, Instant},
};

use runtime::within;
use serde_json::Value as Json;
use smol::{lock::Mutex, process::Command};
use testbed::{Scratch, StartError, audit::Places, http::Client};

use crate::{parts::Part, subject::Subject};

/// Time for the engine to do what it is told; to stop a container it waits itself.
const LIMIT: Duration = Duration::from_secs(60);
/// Seconds that a container has to end by itself.
const GRACE: &str = "25";
/// Time for a container to be healthy after its last start.
const HEALTHY: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(250);

/// A container of the system.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    id: String,
}

/// What the engine tells about one.
struct Told {
    container: Container,
    service: String,
    number: String,
    is_running: bool,
    /// Ports of the container, with the addresses on this machine.
    published: BTreeMap<String, String>,
    /// Its address in the containers' network, which this machine reaches too where Docker runs on Linux.
    address: String,
    environment: BTreeMap<String, String>,
}

impl Container {
    pub(crate) async fn kill(&self) -> Result<(), StartError> {
        // One that has just ended by itself is as good.
        docker(&["kill", &self.id]).await.map(drop).or_else(not_running)
    }

    pub(crate) async fn pause(&self) -> Result<(), StartError> {
        docker(&["pause", &self.id]).await.map(drop)
    }

    pub(crate) async fn unpause(&self) -> Result<(), StartError> {
        docker(&["unpause", &self.id]).await.map(drop)
    }

    pub(crate) async fn stop(&self) -> Result<(), StartError> {
        docker(&["stop", "-t", GRACE, &self.id]).await.map(drop)
    }

    pub(crate) async fn start(&self) -> Result<(), StartError> {
        docker(&["start", &self.id]).await.map(drop)
    }

    pub(crate) async fn log(&self) -> Result<String, StartError> {
        let output = docker(&["logs", &self.id]).await?;
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until its health check says that it is well; one without a check is when it runs.
    pub(crate) async fn until_ready(&self) -> Result<(), StartError> {
        let format = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}";
        let end = Instant::now() + HEALTHY;
        loop {
            let state = text(&docker(&["inspect", "--format", format, &self.id]).await?);
            match state.trim() {
                "running" | "running healthy" => return Ok(()),
                state if Instant::now() > end => {
                    return Err(StartError::new(format!("container {} is {state} after {HEALTHY:?}", self.id)));
                }
                _ => drop(smol::Timer::after(LOOK).await),
            }
        }
    }
}

/// The system of this checkout.
///
/// # Errors
/// If no engine answers, or it does not run there.
pub(crate) async fn find() -> Result<Subject, StartError> {
    let all = all().await?;
    if !all.iter().any(|told| told.service == "patient-service" && told.is_running) {
        return Err(StartError::new("the system does not run in containers: just up --docker, or just up-scaled"));
    }
    let front = if all.iter().any(|told| told.service == "balancer") { "balancer" } else { "patient-service" };
    let clients = vec![Client::new(address_of(&all, front, "4000/tcp")?)];
    let name = |told: &Told| {
        let is_one = all.iter().filter(|other| other.service == told.service).count() == 1;
        if is_one { told.service.clone() } else { format!("{} #{}", told.service, told.number) }
    };
    let parts: Vec<_> =
        all.iter().map(|told| (name(told), Mutex::new(Part::Container(told.container.clone())))).collect();
    let what = format!("{} containers", parts.len());
    Ok(Subject { what, parts, clients, fixed: None, clock: None, logs: None, scratch: Scratch::new()?, _kept: None })
}

/// Where the parts of the system of this checkout keep what they know.
///
/// # Errors
/// If no engine answers, or a part is not there.
pub(crate) async fn places() -> Result<Places, StartError> {
    let all = all().await?;
    let database = |service: &str| {
        let told = all.iter().find(|told| told.service == service && !told.address.is_empty());
        let told = told.ok_or_else(|| StartError::new(format!("{service} has no address")))?;
        let setting = |name: &str| told.environment.get(name).cloned().unwrap_or_default();
        let (user, password) = (setting("POSTGRES_USER"), setting("POSTGRES_PASSWORD"));
        Ok::<_, StartError>(format!("postgres://{user}:{password}@{}:5432/{}", told.address, setting("POSTGRES_DB")))
    };
    let analytics = all.iter().filter(|told| told.service.starts_with("analytics-service"));
    let analytics = analytics.filter_map(|told| told.published.get("4002/tcp")).map(Client::new).collect();
    let kafka = address_of(&all, "kafka", "19092/tcp")?;
    Places::at(database("patient-db")?, database("billing-db")?, &kafka, "patient", analytics)
}

fn address_of(all: &[Told], service: &str, port: &str) -> Result<String, StartError> {
    let found = all.iter().filter(|told| told.service == service).find_map(|told| told.published.get(port));
    found.cloned().ok_or_else(|| StartError::new(format!("{service} publishes no port {port}")))
}

/// The containers of this checkout, in the order of their names.
async fn all() -> Result<Vec<Told>, StartError> {
    let checkout = env::current_dir()?.canonicalize()?;
    let label = format!("label=com.docker.compose.project.working_dir={}", checkout.display());
    let ids = text(&docker(&["ps", "-a", "-q", "--filter", &label]).await?);
    let ids: Vec<_> = ids.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let arguments: Vec<_> = ["inspect", "--type", "container"].into_iter().chain(ids).collect();
    let json: Json = serde_json::from_str(&text(&docker(&arguments).await?)).unwrap_or_default();
    let mut all: Vec<_> = json.as_array().into_iter().flatten().map(told).collect();
    all.sort_by(|a, b| (&a.service, &a.number).cmp(&(&b.service, &b.number)));
    Ok(all)
}

fn told(json: &Json) -> Told {
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
    Told {
        container: Container { id: text(&json["Id"]).chars().take(12).collect() },
        service: label("service"),
        number: label("container-number"),
        is_running: json["State"]["Running"] == true,
        published: published.collect(),
        address: networks.map(|(_, network)| text(&network["IPAddress"])).next().unwrap_or_default(),
        environment: variables.filter_map(pair).collect(),
    }
}

async fn docker(arguments: &[&str]) -> Result<Output, StartError> {
    let output = Command::new("docker").args(arguments).kill_on_drop(true).output();
    let output = within(LIMIT, output).await.map_err(|_| StartError::new("docker does not answer"))?;
    let output = output.map_err(|error| StartError::new(format!("docker: {error}")))?;
    if output.status.success() {
        return Ok(output);
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StartError::new(format!("docker {}: {why}", arguments.first().unwrap_or(&""))))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn not_running(error: StartError) -> Result<(), StartError> {
    if error.to_string().contains("is not running") { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_the_engine_tells() {
        let told = told(&json!({
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
        assert_eq!((told.service.as_str(), told.number.as_str(), told.is_running), ("patient-db", "2", true));
        assert_eq!(told.published, BTreeMap::from([("4000/tcp".to_owned(), "127.0.0.1:4100".to_owned())]));
        assert_eq!((told.address.as_str(), told.environment["POSTGRES_PASSWORD"].as_str()), ("172.18.0.4", "a=b"));
    }
}
