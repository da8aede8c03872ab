//! What each service may do on a broker with access control lists: no more than it needs. What is missing is told, loses nothing,
//! and is made up for once it is granted.

use std::time::Duration;

use chrono::DateTime;
use kafka::{Consumer, Error, Permission, Producer, Record, Remedy, Resource};
use serde_json::Value as Json;
use testbed::{
    broker::{Broker, Kind, SecureListener, Size},
    certificates::Identity,
    permissions, ports,
    service::Service,
    service_settings::of_kafka,
    sql, until,
};

use super::pki::{Pki, UNREACHABLE, until_ready};

/// Apache Kafka with an authorizer, and a user for each service.
pub(super) struct Authorized {
    pub(super) pki: Pki,
    broker: Broker,
    secure: SecureListener,
}

impl Authorized {
    /// `session`: how long an authentication counts.
    pub(super) async fn start(kind: Kind, session: Option<Duration>) -> Option<Self> {
        if !kind.is_installed() {
            println!("SKIPPED: {kind} is not installed");
            return None;
        }
        let pki = Pki::new();
        let users = ["administrator", "patient-service", "analytics-service"];
        let secure = SecureListener {
            identity: pki.issue("broker", &["localhost"]),
            authority: pki.ca(),
            client: pki.issue("client", &["client.example"]),
            users: users.map(|user| (user.to_owned(), format!("password-of-{user}"))).to_vec(),
            authorize: true,
            session,
        };
        let directory = pki.path().join("broker");
        let mut broker =
            Broker::start_secure(kind, &directory, ports::free(), Size::Small, secure.clone()).await.unwrap();
        pki.scratch.guard(broker.process()).unwrap();
        Some(Self { pki, broker, secure })
    }

    /// A client as this user.
    pub(super) fn client(&self, user: &str) -> kafka::Settings {
        let mut security = self.secure.security().unwrap();
        let credentials = kafka::Credentials { username: user.to_owned(), password: format!("password-of-{user}") };
        security.sasl.as_mut().unwrap().credentials = config::Secret::new(credentials);
        let mut settings = self.broker.settings("tests");
        settings.bootstrap.0[0].host = "localhost".to_owned();
        kafka::Settings { security, deadline: Duration::from_secs(20), ..settings }
    }

    /// Grants those of the services' permissions.
    pub(super) async fn grant(&self, of: impl Fn(&Permission) -> bool) {
        let permissions: Vec<_> = permissions::of_services().into_iter().filter(of).collect();
        assert!(!permissions.is_empty());
        kafka::grant(&self.client("administrator"), &permissions).await.unwrap();
    }

    pub(super) fn start_service(&self, name: &'static str, own: Vec<(&'static str, String)>) -> Service {
        let keystore = self.pki.path().join("keystore.pem");
        let Identity { certificate, key } = self.secure.client.clone();
        std::fs::write(&keystore, Identity { certificate, key }.keystore().unwrap()).unwrap();
        let broker = ("KAFKA_BOOTSTRAP_SERVERS", format!("localhost:{}", self.broker.port()));
        let password = format!("password-of-{name}");
        let kafka = of_kafka(name, password, "SCRAM-SHA-512", &self.pki.ca(), &keystore);
        self.pki.start(name, &[&[broker], &kafka[..], &own].concat())
    }
}

fn record(value: &[u8]) -> Record {
    Record {
        key: Some(b"key".to_vec()),
        value: Some(value.to_vec()),
        headers: Vec::new(),
        timestamp: DateTime::UNIX_EPOCH,
    }
}

async fn send(settings: kafka::Settings, topic: &str) -> Result<(), Error> {
    let mut sent = Producer::new(settings, topic).send([(0, vec![record(b"no event")])].into()).await;
    sent.remove(&0).unwrap().map(drop)
}

async fn fetch(settings: kafka::Settings, topic: &str) -> Result<usize, Error> {
    let mut consumer = Consumer::new(settings, topic, 0);
    Ok(consumer.fetch(0, 1024 * 1024, Duration::from_secs(1)).await?.records.iter().count())
}

fn assert_rejected(what: &str, outcome: Result<(), Error>) {
    let Err(Error::RequestRejected(error)) = outcome else { panic!("{what}: {outcome:?}") };
    assert_eq!(error.remedy(), Remedy::Access, "{what}: {error}");
}

async fn services_do_what_they_are_granted(kind: Kind) {
    let Some(system) = Authorized::start(kind, None).await else { return };
    let database = testbed::shared_database().await;
    let own = vec![("DATABASE_URL", database.clone()), ("BILLING_SERVICE_ADDRESS", UNREACHABLE.to_owned())];
    let patients = system.start_service("patient-service", own);
    let state = system.pki.path().join("state.sqlite").display().to_string();
    let analytics = system.start_service("analytics-service", vec![("STATE_FILE", state)]);
    until_ready(&patients).await;
    let client = patients.client();
    let registered = client.post("/patients", &testbed::patient::unique_body("Ann")).await.unwrap();
    assert_eq!(registered.status, 201, "{}", registered.text());

    // Without a permission, each says which one is missing.
    let says = |service: &Service, words: &[&str]| {
        let log = service.log();
        let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.is_some()
    };
    let advice = "until the permission (ACL) or credential is granted";
    until("patient-service says that it may not see the topic", async || {
        says(&patients, &["events cannot be published", "TopicAuthorizationFailed", advice])
    })
    .await;
    until("analytics-service says it too", async || says(&analytics, &["TopicAuthorizationFailed", advice])).await;

    // It may create the topic, and not write to it.
    system.grant(|one| one.user == "patient-service" && one.operation != kafka::Operation::Write).await;
    let administrator = system.client("administrator");
    until("the topic is created", async || kafka::partitions(&administrator, "patient").await.is_ok()).await;
    until("its readiness says that it may not write", async || {
        let health = client.get("/actuator/health/readiness").await.unwrap().text();
        health.contains("partition ") && health.contains("TopicAuthorizationFailed")
    })
    .await;
    system.grant(|one| one.user == "patient-service").await;
    until("the event is published", async || sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap() == 0)
        .await;
    let dead_letters = "SELECT count(*) FROM outbox_dead_letters";
    assert_eq!(sql::number(&database, dead_letters).await.unwrap(), 0, "the event only waited");

    // analytics-service reads, and keeps what it may not write to the topic of dead letters.
    send(administrator.clone(), "patient").await.unwrap();
    system
        .grant(|one| one.user == "analytics-service" && one.resource == Resource::Topic && one.name == "patient")
        .await;
    let summary = async || -> Json { analytics.client().get("/analytics/summary").await.unwrap().json() };
    until("the patient is counted", async || summary().await["activePatients"] == 1).await;
    until("the dead letter waits", async || {
        says(&analytics, &["dead letters cannot be forwarded; they wait in the state", "TopicAuthorizationFailed"])
    })
    .await;
    until("the progress is not committed", async || {
        says(&analytics, &["progress is not committed", "GroupAuthorizationFailed"])
    })
    .await;
    system.grant(|one| one.user == "analytics-service").await;
    until("the dead letter is forwarded", async || {
        fetch(administrator.clone(), "patient.dlq").await.is_ok_and(|count| count == 1)
    })
    .await;
    until("the progress is committed", async || {
        says(&analytics, &["progress is committed to the consumer group again"])
    })
    .await;
    until_ready(&analytics).await;

    // What belongs to the others is not for them.
    let (writer, reader) = (system.client("patient-service"), system.client("analytics-service"));
    for (what, outcome) in [
        ("patient-service reads events", fetch(writer.clone(), "patient").await.map(drop)),
        ("patient-service reads dead letters", fetch(writer.clone(), "patient.dlq").await.map(drop)),
        ("patient-service deletes the topic", kafka::delete_topic(&writer, "patient").await),
        ("patient-service creates another", kafka::create_topic(&writer, "others", 1).await.map(drop)),
        ("analytics-service writes events", send(reader.clone(), "patient").await),
        ("analytics-service reads dead letters", fetch(reader.clone(), "patient.dlq").await.map(drop)),
        ("analytics-service grants itself more", kafka::grant(&reader, &permissions::of_services()).await),
    ] {
        assert_rejected(what, outcome);
    }
}

#[test]
fn each_service_does_what_it_is_granted_and_loses_nothing_until_it_is() {
    runtime::block_on(2, services_do_what_they_are_granted(Kind::Kafka));
}

#[test]
fn each_service_does_what_it_is_granted_on_an_older_kafka() {
    runtime::block_on(2, services_do_what_they_are_granted(Kind::OlderKafka));
}
