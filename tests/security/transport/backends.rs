//! PostgreSQL and Apache Kafka over TLS, and the whole system with nothing else.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use chrono::DateTime;
use config::{Environment, Reader};
use kafka::{Consumer, Error, Mechanism, Producer, Record, Security};
use serde_json::Value as Json;
use testbed::{
    broker::{Broker, Kind, SecureListener, Size},
    certificates::{Authority, Identity, Validity},
    ports,
    postgres::{Cluster, Durability, TlsListener},
    service_settings::of_kafka,
    until,
};

use super::pki::{Pki, TIMEOUT, curl, health_check, http_tls, text, until_ready};

/// PostgreSQL with a listener for TLS, and its certificate for its address.
async fn postgres(pki: &Pki) -> Cluster {
    let address = TlsListener::any_address();
    let identity = pki.issue("postgresql", &[&address.to_string(), "database.example"]);
    let tls = TlsListener { address, identity, client_authorities: pki.ca() };
    let directory = pki.path().join("postgres");
    let mut cluster = Cluster::start_with_tls(&directory, Durability::Process, tls).await.unwrap();
    pki.scratch.guard(cluster.process()).unwrap();
    for name in ["patients", "billing"] {
        cluster.create_database(name).await.unwrap();
    }
    cluster
}

/// The parameters of a URL for these files.
fn parameters(ca: PathBuf, client: &Identity) -> String {
    let Identity { certificate, key } = client;
    format!("sslrootcert={}&sslcert={}&sslkey={}", ca.display(), certificate.display(), key.display())
}

/// Starts a service on this database and waits until its health check says what is expected; returns its exit code.
async fn health(pki: &Pki, url: String, expected: &str) -> Option<i32> {
    let settings = [("DATABASE_URL", url), ("GRPC_SERVER_PORT", "0".to_owned())];
    let service = pki.start("billing-service", &settings);
    let end = Instant::now() + TIMEOUT;
    loop {
        // A new service is DOWN until it has migrated.
        let (code, answer) = health_check(&service).await;
        if answer.contains(expected) {
            return code;
        }
        assert!(Instant::now() < end, "{expected:?} is not in {answer}");
        smol::Timer::after(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_database_is_verified_in_full_and_its_client_by_certificate() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let cluster = postgres(&pki).await;
        let url = cluster.tls_url("billing").unwrap();
        let client = pki.issue("postgres", &[]);
        let good = parameters(pki.ca(), &client);
        assert_eq!(health(&pki, format!("{url}?sslmode=verify-full&{good}"), "\"UP\"").await, Some(0));

        let other = pki.path().join("other.pem");
        Authority::new("other").unwrap().write(&other).unwrap();
        let foreign = Authority::new("tests").unwrap().issue(pki.path(), "foreign", &[], Validity::Now).unwrap();
        for (url, why) in [
            (format!("{url}?sslmode=verify-full&{}", parameters(other, &client)), "UnknownIssuer"),
            (format!("{url}?sslmode=disable"), "pg_hba.conf"),
            (format!("{url}?sslmode=verify-full&{}", parameters(pki.ca(), &foreign)), "alert"),
        ] {
            assert_eq!(health(&pki, url, why).await, Some(1), "{why}");
        }
    });
}

#[test]
fn a_database_with_another_name_is_down_and_the_health_check_says_why() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let address = TlsListener::any_address();
        let identity = pki.issue("postgresql", &["database.example"]);
        let tls = TlsListener { address, identity, client_authorities: pki.ca() };
        let directory = pki.path().join("postgres");
        let mut cluster = Cluster::start_with_tls(&directory, Durability::Process, tls).await.unwrap();
        pki.scratch.guard(cluster.process()).unwrap();
        cluster.create_database("billing").await.unwrap();
        let url = cluster.tls_url("billing").unwrap();
        let files = parameters(pki.ca(), &pki.issue("postgres", &[]));
        let wrong = health(&pki, format!("{url}?sslmode=verify-full&{files}"), "not valid for name");
        assert_eq!(wrong.await, Some(1), "DOWN");
        let unchecked = health(&pki, format!("{url}?sslmode=verify-ca&{files}"), "\"UP\"");
        assert_eq!(unchecked.await, Some(0), "verify-ca does not look at the name");
    });
}

/// Apache Kafka with SASL_SSL alone; none if it is not installed.
async fn kafka(pki: &Pki, kind: Kind) -> Option<(Broker, SecureListener)> {
    if !kind.is_installed() {
        println!("SKIPPED: {kind} is not installed");
        return None;
    }
    let secure = SecureListener {
        identity: pki.issue("broker", &["localhost"]),
        authority: pki.ca(),
        client: pki.issue("client", &["client.example"]),
        users: vec![("services".to_owned(), "hunter2".to_owned())],
        authorize: false,
        session: None,
    };
    let directory = pki.path().join("broker");
    let mut broker = Broker::start_secure(kind, &directory, ports::free(), Size::Small, secure.clone()).await.unwrap();
    pki.scratch.guard(broker.process()).unwrap();
    Some((broker, secure))
}

/// The settings of a service for Apache Kafka with SASL_SSL.
fn kafka_settings(pki: &Pki, broker: &Broker, mechanism: Mechanism, password: &str) -> Vec<(&'static str, String)> {
    let keystore = pki.path().join("keystore.pem");
    let client = Identity { certificate: pki.path().join("client.crt"), key: pki.path().join("client.key") };
    std::fs::write(&keystore, client.keystore().unwrap()).unwrap();
    let broker = ("KAFKA_BOOTSTRAP_SERVERS", format!("localhost:{}", broker.port()));
    let kafka = of_kafka("services", password.to_owned(), mechanism.name(), &pki.ca(), &keystore);
    [&[broker], &kafka[..]].concat()
}

fn read(settings: Vec<(&'static str, String)>) -> kafka::Settings {
    let environment = settings.into_iter().fold(Environment::empty(), |all, (name, value)| all.with(name, value));
    let mut reader = Reader::new(environment);
    let settings = kafka::Settings::read(&mut reader, "tests");
    let settings = kafka::Settings { deadline: Duration::from_secs(20), ..settings };
    reader.finish(settings).unwrap().0
}

async fn topics_and_records_pass(kind: Kind) {
    let pki = Pki::new();
    let Some((broker, _)) = kafka(&pki, kind).await else { return };
    for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512, Mechanism::Plain] {
        let settings = read(kafka_settings(&pki, &broker, mechanism, "hunter2"));
        let topic = format!("topic-{}", mechanism.name());
        // By rskafka, and then by connections of our own.
        assert!(kafka::create_topic(&settings, &topic, 1).await.unwrap(), "{mechanism:?}");
        let value = Some(b"over TLS".to_vec());
        let record = Record { key: None, value, headers: Vec::new(), timestamp: DateTime::UNIX_EPOCH };
        let mut sent = Producer::new(settings.clone(), &topic).send([(0, vec![record])].into()).await;
        sent.remove(&0).unwrap().unwrap_or_else(|error| panic!("{mechanism:?}: {error}"));
        let mut consumer = Consumer::new(settings, &topic, 0);
        let fetched = consumer.fetch(0, 1024 * 1024, Duration::from_secs(5)).await.unwrap();
        assert_eq!(fetched.records.iter().count(), 1, "{mechanism:?}");

        let error = kafka::partitions(&read(kafka_settings(&pki, &broker, mechanism, "wrong")), &topic).await;
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::RequestRejected(error) if error.name() == "SaslAuthenticationFailed"),
            "{error}"
        );
    }
    let good = read(kafka_settings(&pki, &broker, Mechanism::ScramSha256, "hunter2"));
    for (security, why) in [
        (Security { tls: None, ..good.security.clone() }, "speaks TLS"),
        (Security { sasl: None, ..good.security.clone() }, ""),
        (
            Security {
                tls: Some(tls::Connector::new("kafka", tls::ClientSettings::default(), &[]).unwrap()),
                ..good.security.clone()
            },
            "UnknownIssuer",
        ),
    ] {
        let error = kafka::partitions(&kafka::Settings { security, ..good.clone() }, "topic").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)) && error.to_string().contains(why), "{why}: {error}");
    }
}

#[test]
fn topics_and_records_pass_over_sasl_ssl() {
    runtime::block_on(2, topics_and_records_pass(Kind::Kafka));
}

#[test]
fn topics_and_records_pass_over_sasl_ssl_of_an_older_kafka() {
    runtime::block_on(2, topics_and_records_pass(Kind::OlderKafka));
}

#[test]
fn a_patient_is_registered_billed_and_counted_over_tls_alone() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let Some((broker, _)) = kafka(&pki, Kind::Kafka).await else { return };
        let cluster = postgres(&pki).await;
        let (server, client) = (pki.issue("server", &["localhost"]), pki.issue("postgres", &["patient-service"]));
        let files = parameters(pki.ca(), &client);
        let database = |name: &str| {
            // On loopback TLS is not the default.
            [("DATABASE_URL", format!("{}?sslmode=verify-full&{files}", cluster.tls_url(name).unwrap()))]
        };
        let kafka = kafka_settings(&pki, &broker, Mechanism::ScramSha512, "hunter2");
        let (ca, grpc_port) = (pki.ca().display().to_string(), ports::free());
        let (server_crt, server_key) = (server.certificate.display().to_string(), server.key.display().to_string());
        let (client_crt, client_key) = (client.certificate.display().to_string(), client.key.display().to_string());
        let grpc = [
            ("GRPC_SERVER_PORT", grpc_port.to_string()),
            ("GRPC_SERVER_TLS_CERTIFICATE", server_crt),
            ("GRPC_SERVER_TLS_KEY", server_key),
            ("GRPC_SERVER_TLS_CLIENT_CA", ca.clone()),
            ("GRPC_CLIENT_SANS", "patient-service".to_owned()),
        ];
        let billing_client = [
            ("BILLING_SERVICE_ADDRESS", format!("https://localhost:{grpc_port}")),
            ("BILLING_TLS_CA", ca.clone()),
            ("BILLING_TLS_CERTIFICATE", client_crt),
            ("BILLING_TLS_KEY", client_key),
            ("BILLING_DEADLINE", "20s".to_owned()),
        ];
        let http = http_tls(&server).to_vec();
        let state = [("STATE_FILE", pki.path().join("state.sqlite").display().to_string())];
        let billing = pki.start("billing-service", &[&http[..], &database("billing"), &grpc].concat());
        let patients =
            pki.start("patient-service", &[&http[..], &database("patients"), &billing_client, &kafka].concat());
        let analytics = pki.start("analytics-service", &[&http[..], &state, &kafka].concat());
        for service in [&billing, &patients, &analytics] {
            until_ready(service).await;
        }
        let url = |port: u16, path: &str| format!("https://localhost:{port}{path}");
        let body = testbed::patient::unique_body("Jane Doe").to_string();
        let registered = curl(&["--cacert", &ca, "--json", &body, &url(patients.launch().port, "/patients")]).await;
        let registered = text(&registered);
        let patient: Json = serde_json::from_str(&registered).unwrap_or_else(|error| panic!("{error}: {registered}"));
        assert!(registered.contains("ACTIVE"), "its account is opened over mTLS: {patient}");
        let summary = url(analytics.launch().port, "/analytics/summary");
        until("analytics has counted it", async || {
            text(&curl(&["--cacert", &ca, &summary]).await).contains("\"activePatients\":1,")
        })
        .await;
        for service in [&billing, &patients, &analytics] {
            assert!(
                !service.log().contains("hunter2") && !service.log().contains("Jane"),
                "{}",
                service.launch().label
            );
        }
    });
}
