//! Helpers of several tests.

use std::time::{Duration, Instant};

use serde_json::Value as Json;
use testbed::{
    Scratch,
    audit::{Acknowledged, Auditor, Report},
    broker::{Broker, Kind},
    http::{Client, Response},
    service::Service,
    system::{BackingServices, System},
    until,
    writers::{WriterStats, Writers},
};
use uuid::Uuid;

/// Timeout of a condition.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A system on the shared servers.
pub(crate) async fn system(kind: Kind, replicas: usize, extra: &[(&str, &str)]) -> System {
    start(BackingServices::shared(kind).await, replicas, extra).await
}

/// A system with these databases, broker and topic.
pub(crate) async fn start(backing_services: BackingServices, replicas: usize, extra: &[(&str, &str)]) -> System {
    System::start(backing_services, replicas, extra).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A broker of the test's own, with these settings in addition.
pub(crate) async fn own_broker(kind: Kind, settings: &str) -> (Scratch, Broker) {
    let scratch = Scratch::new().unwrap();
    let started = Broker::start_on_free_port(kind, &scratch.path().join("broker"), settings).await;
    let mut broker = started.unwrap_or_else(|error| panic!("{error}"));
    scratch.guard(broker.process()).unwrap();
    (scratch, broker)
}

/// The broker for a test that does not depend on the kind of broker: the one that starts fastest.
pub(crate) fn any_broker() -> Kind {
    let requested = std::env::var("BROKER").unwrap_or_default();
    if requested != "kafka" && Kind::Nisshi.is_installed() { Kind::Nisshi } else { Kind::Kafka }
}

/// Apache Kafka if it is installed, for a test whose load is too high for Nisshi on a busy machine.
pub(crate) fn fast_broker() -> Kind {
    let requested = std::env::var("BROKER").unwrap_or_default();
    if requested != "nisshi" && Kind::Kafka.is_installed() { Kind::Kafka } else { Kind::Nisshi }
}

/// Selects a service of a system.
pub(crate) fn patients(system: &mut System) -> &mut Service {
    &mut system.patients[0]
}

/// Selects a service of a system.
pub(crate) fn billing(system: &mut System) -> &mut Service {
    &mut system.billing
}

/// Selects a service of a system.
pub(crate) fn analytics(system: &mut System) -> &mut Service {
    &mut system.analytics
}

/// The body of a patient with a unique email.
pub(crate) fn patient() -> Json {
    testbed::patient::unique_body("Jane Doe")
}

/// Registers a patient and records it; returns the body of the response.
pub(crate) async fn register(client: &Client, acknowledged: &Acknowledged) -> Json {
    let response = client.post("/patients", &patient()).await.unwrap();
    assert_eq!(response.status, 201, "{}", response.text());
    let patient = response.json();
    acknowledged.stored(id(&patient), 1);
    patient
}

/// Registers patients one after the other; returns the sorted times.
pub(crate) async fn register_many(client: &Client, acknowledged: &Acknowledged, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        register(client, acknowledged).await;
        times.push(started.elapsed());
    }
    times.sort();
    times
}

/// The id of a patient in a response.
pub(crate) fn id(patient: &Json) -> Uuid {
    patient["id"].as_str().unwrap().parse().unwrap()
}

/// Waits for a random time up to this many milliseconds, so that a fault is injected at any instant.
pub(crate) async fn random_pause(milliseconds: u64) {
    smol::Timer::after(Duration::from_millis(fastrand::u64(..milliseconds))).await;
}

/// The value of a metric; `name` includes the labels. None if there is no such metric yet.
pub(crate) async fn metric(service: &Service, name: &str) -> Option<f64> {
    service.client().get("/metrics").await.ok()?.metric(name)
}

/// Waits until a metric has the expected value.
pub(crate) async fn until_metric(service: &Service, name: &str, expected: impl Fn(f64) -> bool) {
    until(name, async || metric(service, name).await.is_some_and(&expected)).await;
}

/// The number of lines with this message in a service's log.
pub(crate) fn logged(service: &Service, message: &str) -> usize {
    let has_it = |line: &&str| serde_json::from_str::<Json>(line).is_ok_and(|line| line["message"] == message);
    service.log().lines().filter(has_it).count()
}

/// The status code of the readiness probe, and the status of one component: `(200, "DEGRADED")`.
pub(crate) async fn readiness(service: &Service, component: &str) -> (u16, String) {
    match service.client().with_timeout(Duration::from_secs(5)).get("/actuator/health/readiness").await {
        Ok(response) => {
            let status = response.json()["components"][component]["status"].clone();
            (response.status, status.as_str().unwrap_or_default().to_owned())
        }
        Err(_) => (0, String::new()),
    }
}

/// Waits until the readiness probe has this status code, and this status of a component.
pub(crate) async fn until_readiness(service: &Service, component: &str, status: u16, word: &str) {
    let expected = (status, word.to_owned());
    until(&format!("{component} is {word}"), async || readiness(service, component).await == expected).await;
}

/// Whether a response is a 503 problem with `Retry-After`.
pub(crate) fn is_unavailable(response: &Response) -> bool {
    response.status == 503
        && response.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok())
        && response.header("content-type") == Some("application/problem+json")
}

/// Stops the writers, waits until the system has caught up, and audits it: nothing is lost, and no response was unexpected.
pub(crate) async fn stop_and_audit(writers: Writers, system: &System) -> (WriterStats, Report) {
    let (written, acknowledged) = writers.stop().await;
    assert!(written.unexpected.is_empty(), "{written}");
    let report = audit(system, &acknowledged).await;
    println!("{written}\n{report}");
    (written, report)
}

/// Waits until the system has caught up, and audits it: nothing is lost.
pub(crate) async fn audit(system: &System, acknowledged: &Acknowledged) -> Report {
    let auditor = Auditor::of(system);
    if let Err(error) = auditor.until_drained(TIMEOUT).await {
        let log = system.analytics.log();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        panic!("{error}\nanalytics, the newest line first:\n{}", lines.join("\n"));
    }
    auditor.audit(acknowledged).await.unwrap_or_else(|error| panic!("{error}")).expect_no_loss()
}

/// The same by an auditor that knows of other analytics-services than the system's own.
pub(crate) async fn audit_by(auditor: &Auditor, acknowledged: &Acknowledged) -> Report {
    auditor.until_drained(TIMEOUT).await.unwrap_or_else(|error| panic!("{error}"));
    auditor.audit(acknowledged).await.unwrap_or_else(|error| panic!("{error}")).expect_no_loss()
}
