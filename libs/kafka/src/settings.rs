use std::time::Duration;

use config::{BootstrapServers, HostPorts, Reader};

use crate::Security;

/// Settings of a Kafka client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap brokers.
    pub bootstrap: HostPorts,
    /// The time of a call, with connecting and retries.
    pub deadline: Duration,
    /// The client id in requests, by which brokers apply quotas.
    pub client_id: &'static str,
    /// TLS and SASL.
    pub security: Security,
}

impl Settings {
    /// Reads `KAFKA_BOOTSTRAP_SERVERS`, `KAFKA_DEADLINE`, `KAFKA_SECURITY_PROTOCOL` and what belongs to it.
    pub fn read(reader: &mut Reader, client_id: &'static str) -> Self {
        let names: &[&str] = &["KAFKA_BOOTSTRAP_SERVERS", "SPRING_KAFKA_BOOTSTRAP_SERVERS"];
        let BootstrapServers(bootstrap) = reader.variable(names, "bootstrap brokers of Kafka").or("localhost:9092");
        Self {
            bootstrap,
            deadline: reader
                .variable(&["KAFKA_DEADLINE"], "time for a call to Kafka, with connecting and retries")
                .or("5s"),
            client_id,
            security: Security::read(reader),
        }
    }
}
