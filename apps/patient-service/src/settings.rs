use std::time::Duration;

use config::{Authority, Bounded, HostPort, Reader};
use grpc::{ClientTls, Target};

use crate::relay;

const BILLING_PORT: &str = "BILLING_SERVICE_GRPC_PORT";
const DEFAULT_BILLING_PORT: u16 = 9001;

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP server.
    pub http: web::Settings,
    /// The database.
    pub database: postgres::Settings,
    /// The client of the billing service.
    pub billing: grpc::ClientSettings,
    /// The relays.
    pub relay: relay::Settings,
    /// How long an `Idempotency-Key` is kept.
    pub key_retention: Duration,
    /// OpenTelemetry.
    pub otlp: otlp::Settings,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let http = web::Settings::read(reader, "4000");
        let database =
            postgres::Settings::read(reader, "postgres://patients:password@localhost:5432/patients", "patient-service");
        let billing = read_billing(reader);
        let kafka = kafka::Settings::read(reader, "patient-service");
        let topic = reader.variable(&["KAFKA_TOPIC"], "topic of patient events").or("patient");
        let partitions: Bounded<1, 10_000> =
            reader.variable(&["KAFKA_TOPIC_PARTITIONS"], "partitions of the topic if it has to be created").or("3");
        let about =
            "cleanup.policy of the topic if it has to be created; delete if others publish records without a key";
        let cleanup_policy = reader.variable(&["KAFKA_TOPIC_CLEANUP_POLICY"], about).or("compact");
        let shards: Bounded<1, 64> = reader
            .variable(&["OUTBOX_SHARDS"], "shards of the outbox, each sent by one replica; the same on all replicas")
            .or("1");
        let lease = reader
            .variable(
                &["RELAY_LEASE"],
                "time without a renewal after which another replica takes over the lease of a relay",
            )
            .or("3s");
        let relay = relay::Settings {
            kafka,
            topic,
            partitions: partitions.get() as i32,
            cleanup_policy,
            shards: shards.get() as i32,
            lease,
            // An insert has at most two statements, two pauses and the commit after it has taken its id.
            late_commit: database.deadline * 5,
        };
        let key_retention = reader
            .variable(&["IDEMPOTENCY_KEY_RETENTION"], "time for which an Idempotency-Key is remembered")
            .or("24h");
        let otlp = otlp::Settings::read(reader, "patient-service");
        Self { http, database, billing, relay, key_retention, otlp }
    }
}

fn read_billing(reader: &mut Reader) -> grpc::ClientSettings {
    let Target { authority: Authority { host, port: port_in_address }, is_tls } =
        reader.variable(&["BILLING_SERVICE_ADDRESS"], "where the billing service is").or("localhost");
    let about = "gRPC port of the billing service, if its address has none; 9001 if neither has one";
    let port: Option<Bounded<1, 65_535>> = reader.variable(&[BILLING_PORT], about).optional();
    let port = port.map(|port| port.get() as u16);
    if let (Some(in_address), Some(port)) = (port_in_address, port)
        && in_address != port
    {
        let why = format!("BILLING_SERVICE_ADDRESS has the port {in_address} and this one is {port}");
        reader.reject(BILLING_PORT, "the port of BILLING_SERVICE_ADDRESS, or none", why);
    }
    let address = HostPort { host, port: port_in_address.or(port).unwrap_or(DEFAULT_BILLING_PORT) };
    let deadline =
        reader.variable(&["BILLING_DEADLINE"], "time for a call to the billing service with its retries").or("1s");
    let tls = read_billing_tls(reader, is_tls);
    grpc::ClientSettings { peer: "billing-service", service: billing_api::SERVICE, address, deadline, tls }
}

fn read_billing_tls(reader: &mut Reader, is_tls: bool) -> Option<ClientTls> {
    let used = if is_tls { Ok(()) } else { Err("the scheme of BILLING_SERVICE_ADDRESS is not https") };
    let variables = tls::ClientVariables {
        ca: &["BILLING_TLS_CA"],
        certificate: &["BILLING_TLS_CERTIFICATE"],
        key: &["BILLING_TLS_KEY"],
    };
    let files = tls::ClientSettings::read(reader, variables, used);
    let about = "name that the billing service's certificate must have, instead of the host of its address";
    let server_name: Option<Authority> =
        reader.variable(&["BILLING_TLS_SERVER_NAME"], about).used_if(is_tls).optional();
    is_tls.then_some(ClientTls { files, server_name: server_name.map(|name| name.host) })
}
