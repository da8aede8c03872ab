//! What can be set from outside: ports, and parts that are there already. `.env` has the defaults.

use config::{Environment, HostPorts, Reader, Secret, Value};
use testbed::broker::Kind;

use crate::Outcome;

/// The settings of the stack.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) patient_port: u16,
    pub(crate) billing_port: u16,
    pub(crate) billing_grpc_port: u16,
    pub(crate) analytics_port: u16,
    pub(crate) analytics_2_port: u16,
    pub(crate) kafka_port: u16,
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
    pub(crate) fn from_environment() -> Outcome<Self> {
        let mut reader = Reader::new(Environment::process());
        let settings = Self {
            patient_port: reader.variable(&["PATIENT_PORT"], "HTTP port of patient-service").or("4000"),
            billing_port: reader.variable(&["BILLING_PORT"], "HTTP port of billing-service").or("4001"),
            billing_grpc_port: reader.variable(&["BILLING_GRPC_PORT"], "gRPC port of billing-service").or("9001"),
            analytics_port: reader.variable(&["ANALYTICS_PORT"], "HTTP port of analytics-service").or("4002"),
            analytics_2_port: reader
                .variable(&["ANALYTICS_2_PORT"], "HTTP port of the second analytics-service of a scaled system")
                .or("4003"),
            kafka_port: reader.variable(&["KAFKA_PORT"], "port of the broker").or("9092"),
            broker: reader.variable(&["BROKER"], "which broker to run").optional(),
            kafka: reader.variable(&["KAFKA_BOOTSTRAP_SERVERS"], "a broker that is there already").optional(),
            database_url: reader.variable(&["DATABASE_URL"], "a PostgreSQL server that is there already").optional(),
            log_level: reader.variable(&["LOG_LEVEL"], "the least severe lines to log").or("info"),
        };
        Ok(reader.finish(settings)?.0)
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
