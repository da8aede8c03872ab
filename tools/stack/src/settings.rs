//! What can be set from outside: ports, and parts that are there already. `.env` has the defaults.
//!
//! `up` keeps what it was given beside the data, so that other commands find the system that it has started, whatever their
//! own environment says.

use std::{collections::BTreeMap, env, fs};

use config::{Environment, HostPorts, Reader, Secret, Value};
use testbed::broker::Kind;

use crate::{Failure, Outcome, home, private_file};

/// In the folder of the data: the variables that `up` was given.
const FILE: &str = "settings.json";
/// What is kept besides our own variables: the name under which Compose knows the containers.
const OF_COMPOSE: [&str; 1] = ["COMPOSE_PROJECT_NAME"];

/// The settings of the stack.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) patient_port: u16,
    pub(crate) billing_port: u16,
    pub(crate) billing_grpc_port: u16,
    pub(crate) analytics_port: u16,
    pub(crate) analytics_2_port: u16,
    pub(crate) kafka_port: u16,
    pub(crate) console_port: u16,
    pub(crate) broker: Option<BrokerKind>,
    pub(crate) kafka: Option<HostPorts>,
    pub(crate) database_url: Option<Secret<String>>,
    pub(crate) log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokerKind(pub(crate) Kind);

impl Value for BrokerKind {
    const EXPECTED: &'static str = "kafka or nisshi";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "kafka" => Ok(Self(Kind::Kafka)),
            "nisshi" => Ok(Self(Kind::Nisshi)),
            _ => Err("it is neither".to_owned()),
        }
    }
}

impl Settings {
    /// What `up` is given.
    pub(crate) fn from_environment() -> Outcome<Self> {
        Ok(Self::read(Environment::process())?.0)
    }

    /// Those of the system that this checkout runs, or has run last; before the first `up`, the environment's.
    pub(crate) fn of_checkout() -> Outcome<Self> {
        match kept()? {
            Some(kept) => {
                let all = kept.into_iter().fold(Environment::empty(), |all, (name, value)| all.with(name, value));
                Ok(Self::read(all)?.0)
            }
            None => Self::from_environment(),
        }
    }

    /// Keeps the environment's for later commands.
    pub(crate) fn keep() -> Outcome {
        let (_, names) = Self::read(Environment::process())?;
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let kept: BTreeMap<_, _> =
            names.into_iter().chain(OF_COMPOSE).filter_map(|name| Some((name, set(name)?))).collect();
        // The URL of a database may hold a password.
        private_file::write(&home::directory()?.join(FILE), &serde_json::to_string_pretty(&kept)?)
    }

    fn read(environment: Environment) -> Outcome<(Self, Vec<&'static str>)> {
        let mut reader = Reader::new(environment);
        let settings = Self {
            patient_port: reader.variable(&["PATIENT_PORT"], "HTTP port of patient-service").or("4000"),
            billing_port: reader.variable(&["BILLING_PORT"], "HTTP port of billing-service").or("4001"),
            billing_grpc_port: reader.variable(&["BILLING_GRPC_PORT"], "gRPC port of billing-service").or("9001"),
            analytics_port: reader.variable(&["ANALYTICS_PORT"], "HTTP port of analytics-service").or("4002"),
            analytics_2_port: reader
                .variable(&["ANALYTICS_2_PORT"], "HTTP port of the second analytics-service of a scaled system")
                .or("4003"),
            kafka_port: reader.variable(&["KAFKA_PORT"], "port of the broker").or("9092"),
            console_port: reader.variable(&["CONSOLE_PORT"], "port of the console").or("4010"),
            broker: reader.variable(&["BROKER"], "which broker to run").optional(),
            kafka: reader.variable(&["KAFKA_BOOTSTRAP_SERVERS"], "a broker that is there already").optional(),
            database_url: reader.variable(&["DATABASE_URL"], "a PostgreSQL server that is there already").optional(),
            log_level: reader.variable(&["LOG_LEVEL"], "the least severe lines to log").or("info"),
        };
        let (settings, report) = reader.finish(settings)?;
        Ok((settings, report.variables().iter().flat_map(|variable| variable.names().to_vec()).collect()))
    }

    /// Those of these variables alone.
    #[cfg(test)]
    pub(crate) fn of(environment: Environment) -> Outcome<Self> {
        Ok(Self::read(environment)?.0)
    }

    /// Whether a part is given, or chosen, that only the native way knows.
    pub(crate) fn names_parts(&self) -> bool {
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

    /// Where the console is, for a browser.
    pub(crate) fn console_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.console_port)
    }

    /// Of every analytics-service: a scaled system has two.
    pub(crate) fn analytics_addresses(&self, scaled: bool) -> Vec<String> {
        let second = scaled.then(|| format!("127.0.0.1:{}", self.analytics_2_port));
        std::iter::once(self.analytics_address()).chain(second).collect()
    }

    /// Where clients on this machine reach Kafka.
    pub(crate) fn kafka_address(&self) -> String {
        match &self.kafka {
            Some(HostPorts(brokers)) => brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            None => format!("127.0.0.1:{}", self.kafka_port),
        }
    }
}

/// The variables that `up` was given, if there has been one.
pub(crate) fn kept() -> Outcome<Option<BTreeMap<String, String>>> {
    let file = home::directory()?.join(FILE);
    match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Failure(format!("{} is damaged ({error}). Remove it, and then: just up", file.display()))),
        Err(_) => Ok(None),
    }
}
