//! The containers of the system, by `docker inspect`.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use serde_json::Value as Json;
use testbed::compose::CHECKOUT_LABEL;

use super::command::run;

/// A container of the system.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) id: String,
    /// The name of its service in the compose file.
    pub(super) service: String,
    /// Counted from 1 among the replicas of the service.
    pub(super) number: u32,
    /// The directory of its compose files.
    pub(super) checkout: String,
    /// `running`, `exited` ...
    pub(super) status: String,
    /// `starting`, `healthy` or `unhealthy`, if it has a health check.
    pub(super) health: Option<String>,
    /// Its ports, with the addresses on this machine where they are published.
    pub(super) published: BTreeMap<u16, String>,
    /// The names of its volumes.
    pub(super) volumes: Vec<String>,
}

impl Container {
    pub(super) fn is_ready(&self) -> bool {
        self.status == "running" && self.health.as_deref().is_none_or(|health| health == "healthy")
    }

    pub(super) fn is_running(&self) -> bool {
        ["running", "restarting"].contains(&self.status.as_str())
    }

    pub(super) fn publishes(&self, port: u16) -> bool {
        self.published.values().any(|address| address.rsplit(':').next() == Some(port.to_string().as_str()))
    }
}

/// The containers with these ids.
pub(super) async fn inspect(ids: &[&str]) -> Result<Vec<Container>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut arguments = vec!["inspect", "--type", "container", "--format", "{{json .}}"];
    arguments.extend(ids);
    let output = run("docker", &arguments).await?;
    let mut containers = Vec::new();
    for line in output.lines() {
        let json =
            serde_json::from_str(line).map_err(|error| anyhow!("docker inspect printed no JSON ({error}): {line}"))?;
        containers.push(container(&json));
    }
    containers.sort_by(|a, b| (&a.service, a.number).cmp(&(&b.service, b.number)));
    Ok(containers)
}

fn container(json: &Json) -> Container {
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let label = |name: &str| text(&json["Config"]["Labels"][format!("com.docker.compose.{name}")]);
    let published =
        json["NetworkSettings"]["Ports"].as_object().into_iter().flatten().filter_map(|(port, bindings)| {
            let binding = bindings.as_array()?.first()?;
            let port = port.split('/').next()?.parse().ok()?;
            Some((port, format!("{}:{}", text(&binding["HostIp"]), text(&binding["HostPort"]))))
        });
    let mounts = json["Mounts"].as_array().into_iter().flatten();
    Container {
        id: text(&json["Id"]).chars().take(12).collect(),
        service: label("service"),
        number: label("container-number").parse().unwrap_or(1),
        checkout: text(&json["Config"]["Labels"][CHECKOUT_LABEL]),
        status: text(&json["State"]["Status"]),
        health: json["State"]["Health"]["Status"].as_str().map(str::to_owned),
        published: published.collect(),
        volumes: mounts.filter(|mount| mount["Type"] == "volume").map(|mount| text(&mount["Name"])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_docker_inspect_is_parsed() {
        let text = r#"{"Id":"0123456789abcdef","State":{"Status":"running","Health":{"Status":"starting"}},
            "Mounts":[{"Type":"volume","Name":"kafka_data"},{"Type":"bind","Source":"/etc"}],
            "Config":{"Labels":{"com.docker.compose.service":"kafka","com.docker.compose.container-number":"2"}},
            "NetworkSettings":{"Ports":{"9092/tcp":null,"19092/tcp":[{"HostIp":"127.0.0.1","HostPort":"9092"}]}}}"#;
        let mut kafka = container(&serde_json::from_str(text).unwrap());
        assert_eq!((kafka.id.as_str(), kafka.service.as_str(), kafka.number), ("0123456789ab", "kafka", 2));
        assert_eq!(kafka.volumes, ["kafka_data"]);
        assert!(kafka.publishes(9092) && !kafka.publishes(19092) && kafka.is_running() && !kafka.is_ready());
        kafka.health = Some("healthy".to_owned());
        assert!(kafka.is_ready());
        kafka.status = "exited".to_owned();
        assert!(!kafka.is_ready() && !kafka.is_running());
    }
}
