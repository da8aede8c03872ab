//! Settings: ports, and servers that exist already. `.env` has the defaults.
//!
//! `up` saves its settings beside the data, so that other commands find the system that it started, whatever their own
//! environment is.

use std::{collections::BTreeMap, env, fs, num::NonZeroU16};

use anyhow::{Result, anyhow};
use config::{BootstrapServers, Environment, HostPorts, Reader, Secret, Value};
use testbed::broker::Kind;

use crate::{home, private_file};

/// In the data directory: the environment variables of `up`.
const FILE: &str = "settings.json";
/// Settings of the native system alone.
pub(crate) const NATIVE_ONLY: [&str; 3] = ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "BROKER"];
/// The variables that are saved besides our own settings: those of Docker Compose and those of the compose files. With other ones,
/// Compose would replace containers.
const COMPOSE_VARIABLES: [&str; 15] = [
    "COMPOSE_FILE",
    "COMPOSE_PROFILES",
    "COMPOSE_PROJECT_NAME",
    "BILLING_DB_PASSWORD",
    "DOCKER_HUB",
    "GCR",
    "GIT_REVISION",
    "GRAFANA_PORT",
    "GRPCUI_PORT",
    "HTTP_HOSTS",
    "KAFKA_CONSOLE_PORT",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "PATIENT_DB_PASSWORD",
];

/// The settings of the stack.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) patient_port: u16,
    pub(crate) billing_port: u16,
    pub(crate) billing_grpc_port: u16,
    pub(crate) analytics_port: u16,
    pub(crate) analytics_2_port: u16,
    pub(crate) analytics_3_port: u16,
    pub(crate) kafka_port: u16,
    pub(crate) console_port: u16,
    /// Of a secure system.
    pub(crate) auth_port: u16,
    pub(crate) gateway_port: u16,
    pub(crate) patient_operations_port: u16,
    pub(crate) billing_operations_port: u16,
    pub(crate) analytics_operations_port: u16,
    pub(crate) broker: Option<BrokerSetting>,
    pub(crate) kafka: Option<BootstrapServers>,
    pub(crate) database_url: Option<Secret<String>>,
    pub(crate) log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokerSetting(pub(crate) Kind);

impl Value for BrokerSetting {
    const EXPECTED: &'static str = "kafka or nisshi";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "kafka" => Ok(Self(Kind::Kafka)),
            "nisshi" => Ok(Self(Kind::Nisshi)),
            _ => Err("unknown broker".to_owned()),
        }
    }
}

/// A port that other commands find again: not 0, any free port.
struct Port(u16);

impl Value for Port {
    const EXPECTED: &'static str = "a port number from 1 to 65535";

    fn parse(text: &str) -> Result<Self, String> {
        let port: NonZeroU16 = text.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
        Ok(Self(port.get()))
    }
}

impl Settings {
    /// The settings in our environment, for `up`.
    pub(crate) fn from_environment() -> Result<Self> {
        Ok(Self::read(Environment::process())?.0)
    }

    /// The settings of the last `up` in this checkout; before the first one, those in our environment.
    pub(crate) fn of_checkout() -> Result<Self> {
        match saved()? {
            Some(saved) => {
                let all = saved.into_iter().fold(Environment::empty(), |all, (name, value)| all.with(name, value));
                Ok(Self::read(all)?.0)
            }
            None => Self::from_environment(),
        }
    }

    /// These settings for a system in containers, which has servers of its own.
    pub(crate) fn of_containers(&self) -> Self {
        Self { broker: None, kafka: None, database_url: None, ..self.clone() }
    }

    /// Saves the settings in our environment for later commands, without those that do not apply.
    pub(crate) fn save(without: &[&str]) -> Result<()> {
        let (_, names) = Self::read(Environment::process())?;
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let names = names.into_iter().chain(COMPOSE_VARIABLES).filter(|name| !without.contains(name));
        let saved: BTreeMap<_, _> = names.filter_map(|name| Some((name, set(name)?))).collect();
        // Some are passwords.
        private_file::write(&home::directory()?.join(FILE), &serde_json::to_string_pretty(&saved)?)
    }

    fn read(environment: Environment) -> Result<(Self, Vec<&'static str>)> {
        let mut reader = Reader::new(environment);
        let mut port = |names: &'static [&'static str], about: &'static str, default: &'static str| {
            let Port(port) = reader.variable(names, about).or(default);
            port
        };
        let settings = Self {
            patient_port: port(&["PATIENT_PORT"], "HTTP port of patient-service", "4000"),
            billing_port: port(&["BILLING_PORT"], "HTTP port of billing-service", "4001"),
            billing_grpc_port: port(&["BILLING_GRPC_PORT"], "gRPC port of billing-service", "9001"),
            analytics_port: port(&["ANALYTICS_PORT"], "HTTP port of analytics-service", "4002"),
            analytics_2_port: port(
                &["ANALYTICS_2_PORT"],
                "HTTP port of the second analytics-service of a scaled system",
                "4003",
            ),
            analytics_3_port: port(
                &["ANALYTICS_3_PORT"],
                "HTTP port of the third analytics-service of a scaled system",
                "4006",
            ),
            kafka_port: port(&["KAFKA_PORT"], "port of the broker", "9092"),
            console_port: port(&["CONSOLE_PORT"], "port of the console", "4010"),
            gateway_port: port(&["GATEWAY_PORT"], "port of the gateway", "4004"),
            auth_port: port(&["AUTH_PORT"], "port of auth-service", "4005"),
            patient_operations_port: port(&["PATIENT_OPERATIONS_PORT"], "operations port of patient-service", "4100"),
            billing_operations_port: port(&["BILLING_OPERATIONS_PORT"], "operations port of billing-service", "4101"),
            analytics_operations_port: port(
                &["ANALYTICS_OPERATIONS_PORT"],
                "operations port of analytics-service",
                "4102",
            ),
            broker: reader.variable(&["BROKER"], "the broker to run").optional(),
            kafka: reader.variable(&["KAFKA_BOOTSTRAP_SERVERS"], "an existing broker to use").optional(),
            database_url: reader.variable(&["DATABASE_URL"], "an existing PostgreSQL server to use").optional(),
            log_level: reader.variable(&["LOG_LEVEL"], "the minimum level of log lines").or("info"),
        };
        let (settings, report) = reader.finish(settings)?;
        Ok((settings, report.variables().iter().flat_map(|variable| variable.names().to_vec()).collect()))
    }

    /// The settings from these variables.
    #[cfg(test)]
    pub(crate) fn of(environment: Environment) -> Result<Self> {
        Ok(Self::read(environment)?.0)
    }

    /// Whether a setting is set that applies to the native system alone.
    pub(crate) fn names_backing_services(&self) -> bool {
        self.broker.is_some() || self.kafka.is_some() || self.database_url.is_some()
    }

    pub(crate) fn patient_address(&self) -> String {
        format!("127.0.0.1:{}", self.patient_port)
    }

    pub(crate) fn billing_address(&self) -> String {
        format!("127.0.0.1:{}", self.billing_port)
    }

    pub(crate) fn analytics_address(&self) -> String {
        format!("127.0.0.1:{}", self.analytics_port)
    }

    /// The address of auth-service, as tokens name their issuer.
    pub(crate) fn auth_address(&self) -> String {
        format!("localhost:{}", self.auth_port)
    }

    /// The address of the gateway.
    pub(crate) fn gateway_address(&self) -> String {
        format!("localhost:{}", self.gateway_port)
    }

    /// The URL of the console.
    pub(crate) fn console_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.console_port)
    }

    /// The addresses of every analytics-service: a scaled system has three.
    pub(crate) fn analytics_addresses(&self, scaled: bool) -> Vec<String> {
        let others = [self.analytics_2_port, self.analytics_3_port].map(|port| format!("127.0.0.1:{port}"));
        std::iter::once(self.analytics_address()).chain(others.into_iter().filter(|_| scaled)).collect()
    }

    /// The address of Kafka for clients on this machine.
    pub(crate) fn kafka_address(&self) -> String {
        match &self.kafka {
            Some(BootstrapServers(HostPorts(brokers))) => {
                brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }
            None => format!("127.0.0.1:{}", self.kafka_port),
        }
    }
}

/// The saved environment variables of `up`; none before the first `up`.
pub(crate) fn saved() -> Result<Option<BTreeMap<String, String>>> {
    let file = home::directory()?.join(FILE);
    match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| anyhow!("{} is damaged ({error}). Remove it, and then: just up", file.display())),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_that_commands_find_again() {
        let read = |port: &str| Settings::of(Environment::empty().with("PATIENT_PORT".to_owned(), port.to_owned()));
        assert_eq!(read("65535").unwrap().patient_port, 65535);
        for wrong in ["0", "65536", "-1", "http"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("PATIENT_PORT: expected a port number from 1 to 65535"), "{error}");
        }
    }

    #[test]
    fn every_variable_of_the_compose_files_is_saved() {
        let files = [
            include_str!("../../../docker-compose.yaml"),
            include_str!("../../../docker-compose.override.yaml"),
            include_str!("../../../docker-compose.scale.yaml"),
            include_str!("../../../docker-compose.secure.yaml"),
        ];
        // `up` sets them itself, each time.
        let own = ["CONSOLE_AGENT_TOKEN", "SECURE_FILES"];
        let (_, names) = Settings::read(Environment::empty()).unwrap();
        let saved: Vec<_> = names.into_iter().chain(COMPOSE_VARIABLES).chain(own).collect();
        let mentioned = files.iter().flat_map(|file| file.split("${").skip(1));
        for name in mentioned.map(|rest| rest.split([':', '}']).next().unwrap()) {
            assert!(saved.contains(&name), "{name}");
        }
    }
}
