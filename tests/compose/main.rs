//! Checks the compose files and the Dockerfile against the promises of docs/running.md.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod balancer;
mod context;
mod files;
mod gateway;
mod nginx;
mod secure;

use std::collections::{BTreeMap, BTreeSet};

use config::Value as _;
use files::{scaled, secure as secure_system, services, single, strings, text, variables};
use serde_json::Value as Json;
use testbed::{broker::KAFKA_VERSION, postgres::POSTGRES_VERSION};
use web::Hosts;

const OURS: [&str; 5] = ["patient-service", "billing-service", "analytics-service", "auth-service", "console"];
const MIB: u64 = 1024 * 1024;

fn both() -> [Json; 2] {
    [single(), scaled()]
}

fn all() -> [Json; 3] {
    [single(), scaled(), secure_system()]
}

fn is_default(service: &Json) -> bool {
    service.get("profiles").is_none()
}

/// The binary of a service of ours.
fn binary(service: &Json) -> Option<&str> {
    service["build"]["target"].as_str()
}

/// The settings of a binary with their defaults, from its `--help`.
fn settings(binary: &str) -> BTreeMap<String, Option<String>> {
    let known = testbed::service::settings(binary).unwrap_or_else(|error| panic!("{error}"));
    let names = known.iter().flat_map(|setting| setting.names.iter().map(|name| (name, &setting.default)));
    names.map(|(name, default)| (name.clone(), default.clone())).collect()
}

fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text} is not in seconds"))
}

fn bytes(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.len() - 1);
    number.parse::<u64>().unwrap() * if unit == "g" { 1024 * MIB } else { MIB }
}

/// The published ports of a service: the port of the host, and the port of the container.
fn ports(service: &Json) -> Vec<(&str, &str)> {
    let parts = |port: &str| -> Vec<String> { port.split(':').map(str::to_owned).collect() };
    for port in strings(&service["ports"]) {
        assert_eq!(
            (parts(port).len(), parts(port)[0].as_str()),
            (3, "127.0.0.1"),
            "{port} is published on more than loopback"
        );
    }
    strings(&service["ports"])
        .into_iter()
        .map(|port| port.trim_start_matches("127.0.0.1:").split_once(':').unwrap())
        .collect()
}

#[test]
fn every_service_has_a_health_check() {
    for system in all() {
        for (name, service) in services(&system) {
            // Its image has no program for a health check.
            if name == "grpcui" {
                continue;
            }
            let check = &service["healthcheck"];
            let test = strings(&check["test"]);
            assert_eq!(test.first(), Some(&"CMD"), "{name} has no health check, or one that needs a shell");
            assert!(
                check["timeout"].is_string() && check["interval"].is_string() && check["retries"].is_number(),
                "{name}"
            );
            let start = check["start_period"].as_str().and_then(|period| period.strip_suffix('s')?.parse::<u32>().ok());
            assert!(start >= Some(120), "{name}: compose gives it up before a slow machine has started it");
            assert!(check.get("start_interval").is_none(), "{name}: older engines refuse start_interval");
            if let Some(binary) = binary(service) {
                assert_eq!(test[1..], [&format!("/usr/local/bin/{binary}"), "healthcheck"], "{name}");
            }
            if service["image"].as_str().unwrap_or_default().contains("postgres") {
                assert!(
                    test.windows(2).any(|pair| pair == ["-h", "127.0.0.1"]),
                    "{name} is healthy before it is ready"
                );
            }
        }
    }
}

#[test]
fn every_service_waits_for_its_dependencies() {
    for system in all() {
        let names: BTreeSet<_> = services(&system).map(|(name, _)| name.clone()).collect();
        for (name, service) in services(&system) {
            for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
                assert!(names.contains(needed) && how["condition"].is_string(), "{name} waits for {needed} {how}");
            }
        }
        for (name, needs) in
            [("patient-service", "patient-db"), ("billing-service", "billing-db"), ("analytics-service", "kafka")]
        {
            assert_eq!(system["services"][name]["depends_on"][needs]["condition"], "service_healthy", "{name}");
        }
    }
}

#[test]
fn ports_are_unique_and_published_on_loopback_alone() {
    for system in all() {
        let published: Vec<_> =
            services(&system).flat_map(|(_, service)| ports(service)).map(|(host, _)| host).collect();
        let chosen: BTreeSet<_> = published.iter().filter(|host| !host.is_empty()).collect();
        let left_to_docker = published.iter().filter(|host| host.is_empty()).count();
        assert_eq!(chosen.len() + left_to_docker, published.len(), "{published:?}");
    }
    let system = single();
    let hosts: BTreeSet<_> =
        OURS.into_iter().chain(["kafka"]).flat_map(|name| ports(&system["services"][name])).collect();
    let variables = variables();
    let chosen: BTreeSet<_> =
        ["PATIENT_PORT", "BILLING_PORT", "BILLING_GRPC_PORT", "ANALYTICS_PORT", "KAFKA_PORT", "CONSOLE_PORT"]
            .map(|name| variables[name].as_str())
            .into();
    assert_eq!(hosts.iter().map(|(host, _)| *host).collect::<BTreeSet<_>>(), chosen, ".env chooses every port");
    let advertised = system["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].as_str().unwrap();
    assert!(advertised.contains(&format!("OUTSIDE://127.0.0.1:{}", variables["KAFKA_PORT"])), "{advertised}");
}

#[test]
fn containers_have_least_privilege() {
    for system in all() {
        for (name, service) in services(&system) {
            assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
            assert!(service.get("cap_add").is_none() && service.get("privileged").is_none(), "{name}");
            assert_eq!(strings(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
            assert!(service.get("network_mode").is_none() && service.get("pid").is_none(), "{name}");
            assert!(
                service.get("container_name").is_none(),
                "{name}: a container_name allows only one system on a machine"
            );
            // That image writes to its root file system.
            assert_eq!(service["read_only"], (name != "observability"), "{name}");
            if binary(service) == Some("analytics-service") {
                // For SQLite's temporary files: without it, large transactions fail with "disk I/O error".
                assert_eq!(strings(&service["tmpfs"]), ["/tmp:mode=1777"], "{name}");
            }
            let user = service["user"].as_str();
            assert!(
                !is_default(service) || user.is_some_and(|user| !["root", "0", "0:0"].contains(&user)),
                "{name}: {user:?}"
            );
            let options = &service["logging"]["options"];
            assert!(options["max-size"].is_string() && options["max-file"].is_string(), "{name} logs without bound");
        }
    }
}

#[test]
fn memory_is_limited_to_less_than_a_gibibyte_in_all() {
    let system = single();
    let limit = |service: &Json| bytes(service["mem_limit"].as_str().unwrap());
    let all: u64 = services(&system).map(|(_, service)| service).filter(|one| is_default(one)).map(limit).sum();
    assert!(all < 1024 * MIB, "{} MiB", all / MIB);
    for (name, service) in services(&scaled()) {
        assert!(service["mem_limit"].is_string(), "{name}");
    }
}

#[test]
fn the_stop_grace_period_is_longer_than_the_drain() {
    /// Seconds that a service adds to its drain for background tasks: `KAFKA_DEADLINE` and those of the database.
    const BACKGROUND: u64 = 8;
    for system in all() {
        for (name, service) in services(&system) {
            let Some(binary) = binary(service) else { continue };
            let drain = settings(binary)["SHUTDOWN_TIMEOUT"].clone().unwrap();
            let grace = seconds(service["stop_grace_period"].as_str().unwrap());
            assert!(grace > seconds(&drain) + BACKGROUND, "{name} is killed while it drains");
        }
    }
}

#[test]
fn every_variable_is_a_setting_of_its_service() {
    for system in all() {
        for (name, service) in services(&system) {
            let Some(binary) = binary(service) else { continue };
            let known = settings(binary);
            let given: Vec<_> = service["environment"].as_object().unwrap().keys().collect();
            assert!(!given.is_empty(), "{name}");
            for variable in given {
                assert!(known.contains_key(variable), "{name} has no setting {variable}");
            }
        }
    }
    let dockerfile = text("Dockerfile");
    let run_time = dockerfile.split("AS service").nth(1).unwrap();
    let set = run_time.lines().filter_map(|line| line.strip_prefix("ENV ")).flat_map(|line| line.split(' '));
    let names: Vec<_> = set.map(|pair| pair.split_once('=').unwrap().0).collect();
    assert!(names.contains(&"SERVER_ADDRESS"));
    for name in names {
        assert!(OURS.iter().any(|binary| settings(binary).contains_key(name)), "no service has a setting {name}");
    }
}

#[test]
fn hosts_of_the_user_are_added_to_the_names_of_the_containers() {
    for file in ["docker-compose.yaml", "docker-compose.scale.yaml"] {
        let text = text(file);
        let lists: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("HTTP_HOSTS: ")).collect();
        assert!(lists.len() == 1 && lists[0].ends_with(",${HTTP_HOSTS:-localhost}"), "{file}: {lists:?}");
        let names: Vec<_> = lists[0].split(',').collect();
        for name in ["patient-service", "billing-service", "analytics-service", "balancer"] {
            assert!(names.contains(&name), "{file}: {name}");
        }
        let composed = |hosts: &str| Hosts::parse(&lists[0].replace("${HTTP_HOSTS:-localhost}", hosts));
        let own = Hosts::parse(lists[0].strip_suffix(",${HTTP_HOSTS:-localhost}").unwrap());
        assert_eq!(composed("none"), own, "{file}: the default of HTTP_HOSTS");
        assert!(composed("localhost").is_ok() && composed("my.host") != own, "{file}");
    }
}

#[test]
fn versions_and_ports_agree() {
    let system = single();
    assert!(
        system["services"]["kafka"]["image"].as_str().unwrap().ends_with(&format!("/apache/kafka:{KAFKA_VERSION}"))
    );
    for database in ["patient-db", "billing-db"] {
        let image = system["services"][database]["image"].as_str().unwrap();
        assert!(image.contains(&format!("/postgres:{POSTGRES_VERSION}-")), "{image}");
    }
    let (dockerfile, manifest) = (text("Dockerfile"), text("Cargo.toml"));
    let workspace = |key: &str| {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{key} = \""))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    assert!(
        dockerfile.contains(&format!("/library/rust:{}.", workspace("rust-version"))),
        "the Dockerfile has another version of Rust"
    );
    assert!(
        dockerfile.contains(&format!("image.version=\"{}\"", workspace("version"))),
        "the label has another version"
    );
    for name in OURS {
        let stage = dockerfile.split(&format!("AS {name}\n")).nth(1).unwrap();
        let exposed: BTreeSet<_> =
            stage.lines().find_map(|line| line.strip_prefix("EXPOSE ")).unwrap().split(' ').collect();
        let published: BTreeSet<_> = ports(&system["services"][name]).into_iter().map(|(_, inside)| inside).collect();
        // The gateway alone reaches auth-service.
        assert_eq!(if name == "auth-service" { BTreeSet::new() } else { exposed.clone() }, published, "{name}");
        let known = settings(name);
        let own = ["SERVER_PORT", "GRPC_SERVER_PORT"].map(|name| known.get(name).cloned().flatten());
        assert_eq!(exposed, own.iter().flatten().map(String::as_str).collect(), "{name}");
    }
}

#[test]
fn images_have_a_version_and_a_registry_that_can_be_a_mirror() {
    let dockerfile = text("Dockerfile");
    let bases = dockerfile.lines().filter(|line| line.starts_with("ARG ") && line.contains("_IMAGE="));
    let bases: Vec<_> = bases.map(|line| line.split_once('=').unwrap().1.to_owned()).collect();
    assert!(bases.len() == 2 && bases.iter().all(|image| image.starts_with("${")), "{bases:?}");
    let stages: BTreeSet<_> = dockerfile.lines().filter_map(|line| line.split(" AS ").nth(1)).collect();
    for from in dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let base = from.split(' ').next().unwrap();
        assert!(base.ends_with("_IMAGE}") || stages.contains(base), "{from}");
    }
    assert!(!dockerfile.contains("--mount"), "older engines do not know RUN --mount");
    assert!(dockerfile.matches("cargo build").count() == dockerfile.matches("cargo build --release --locked").count());
    let both = both();
    let run = both.iter().flat_map(services).filter_map(|(_, service)| service["image"].as_str().map(str::to_owned));
    for image in bases.into_iter().chain(run) {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest" && !tag.contains('/')), "{image} has no version");
    }
    for file in ["docker-compose.yaml", "docker-compose.scale.yaml"] {
        let text = text(file);
        for image in text.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
            assert!(image.starts_with("${DOCKER_HUB:-docker.io}/"), "{image} cannot come from a mirror");
        }
    }
}

#[test]
fn data_are_in_named_volumes() {
    let volumes = |system: &Json| {
        let mut used = BTreeSet::new();
        for (name, service) in services(system) {
            for volume in strings(&service["volumes"]) {
                let (source, _) = volume.split_once(':').unwrap();
                if source.starts_with("./") {
                    assert!(volume.ends_with(":ro"), "{name} may write to {source}");
                } else {
                    assert!(used.insert(source.to_owned()), "{source} belongs to two services");
                }
            }
        }
        used
    };
    let (single, scaled) = both().map(|system| volumes(&system)).into();
    let declared = |system: Json| system["volumes"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(single, declared(self::single()));
    assert_eq!(single.union(&scaled).cloned().collect::<BTreeSet<_>>(), declared(self::scaled()));
    // Separate volumes: a single analytics-service would count again what the others have counted.
    let states = |volumes: &BTreeSet<String>| {
        volumes.iter().filter(|volume| volume.starts_with("analytics")).cloned().collect::<BTreeSet<_>>()
    };
    assert!(states(&single).is_disjoint(&states(&scaled)));
}

#[test]
fn a_scaled_system_has_replicas_and_three_members_of_the_consumer_group() {
    let system = scaled();
    assert_eq!(
        (&system["services"]["patient-service"]["scale"], &system["services"]["billing-service"]["scale"]),
        (&3.into(), &2.into())
    );
    let names = ["analytics-service", "analytics-service-2", "analytics-service-3"];
    let members: Vec<_> = services(&system).filter(|(name, _)| name.starts_with("analytics-service")).collect();
    assert_eq!(members.iter().map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(names));
    for (name, service) in members {
        let environment = &service["environment"];
        assert_eq!(environment["PARTITIONS"], "group", "{name}");
        assert_eq!(environment["KAFKA_GROUP_INSTANCE_ID"], name.as_str(), "a restart moves no partition");
        assert_eq!(environment["ADVERTISED_HTTP"], format!("{name}:4002"), "the others reach it");
        let hosts: BTreeSet<_> = environment["HTTP_HOSTS"].as_str().unwrap().split(',').collect();
        assert!(hosts.is_superset(&BTreeSet::from(names)), "{name} is reached by {hosts:?}");
    }
    // Replicas cannot publish the same fixed port.
    for name in ["patient-service", "billing-service"] {
        assert!(ports(&system["services"][name]).iter().all(|(host, _)| host.is_empty()), "{name}");
    }
    let plain = single();
    let first = &plain["services"]["analytics-service"];
    for name in &names[1..] {
        let other = &system["services"][name];
        for field in
            ["build", "user", "mem_limit", "stop_grace_period", "healthcheck", "depends_on", "logging", "restart"]
        {
            assert_eq!(first[field], other[field], "{name} differs in {field}");
        }
    }
}
