//! What several tests need.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use testbed::{
    audit::{Acknowledged, Places, Report},
    broker::Kind,
    http::{Answer, Client},
    service::Service,
    system::{Ground, System},
    writers::{Writers, Written},
};
use uuid::Uuid;

/// How long a test waits for what is going to happen.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A system on the shared servers.
pub(crate) async fn system(kind: Kind, replicas: usize, extra: &[(&str, &str)]) -> System {
    start(Ground::shared(kind).await, replicas, extra).await
}

/// A system on this ground.
pub(crate) async fn start(ground: Ground, replicas: usize, extra: &[(&str, &str)]) -> System {
    System::start(ground, replicas, extra).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The broker for a test to which it does not matter which one it is.
pub(crate) fn some_broker() -> Kind {
    let wish = std::env::var("BROKER").unwrap_or_default();
    if wish != "kafka" && Kind::Nisshi.is_installed() { Kind::Nisshi } else { Kind::Kafka }
}

/// Apache Kafka where it can be had, for a test whose load is too much for Nisshi on a busy machine.
pub(crate) fn fast_broker() -> Kind {
    let wish = std::env::var("BROKER").unwrap_or_default();
    if wish != "nisshi" && Kind::Kafka.is_installed() { Kind::Kafka } else { Kind::Nisshi }
}

/// Picks a service of a system.
pub(crate) fn patients(system: &mut System) -> &mut Service {
    &mut system.patients[0]
}

/// Picks a service of a system.
pub(crate) fn billing(system: &mut System) -> &mut Service {
    &mut system.billing
}

/// Picks a service of a system.
pub(crate) fn analytics(system: &mut System) -> &mut Service {
    &mut system.analytics
}

/// A patient as a client sends one, with an email of its own.
pub(crate) fn patient() -> Json {
    json!({
        "name": "Jane Doe",
        "email": format!("{}@example.org", Uuid::now_v7()),
        "address": "1 Main Street",
        "dateOfBirth": "1990-12-31",
    })
}

/// Registers a patient, notes it, and gives it as answered.
pub(crate) async fn register(client: &Client, acknowledged: &Acknowledged) -> Json {
    let answer = client.post("/patients", &patient()).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let patient = answer.json();
    acknowledged.stored(id(&patient), 1);
    patient
}

/// Registers patients one after the other; gives the times that it took, the shortest first.
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

/// The id of a patient as answered.
pub(crate) fn id(patient: &Json) -> Uuid {
    patient["id"].as_str().unwrap().parse().unwrap()
}

/// Waits for something that is going to happen.
pub(crate) async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !happened().await {
        assert!(Instant::now() < end, "it has not happened: {what}");
        smol::Timer::after(Duration::from_millis(10)).await;
    }
}

/// Lets a random time pass, up to so many milliseconds, so that a fault strikes at any instant.
pub(crate) async fn any_instant(milliseconds: u64) {
    smol::Timer::after(Duration::from_millis(fastrand::u64(..milliseconds))).await;
}

/// The value of a metric, named with its labels as it is shown; none while it is not shown.
pub(crate) async fn metric(service: &Service, name: &str) -> Option<f64> {
    let text = service.client().get("/metrics").await.ok()?.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a metric has the wanted value.
pub(crate) async fn until_metric(service: &Service, name: &str, wanted: impl Fn(f64) -> bool) {
    until(name, async || metric(service, name).await.is_some_and(&wanted)).await;
}

/// How many lines of a service's log have this message.
pub(crate) fn logged(service: &Service, message: &str) -> usize {
    let has_it = |line: &&str| serde_json::from_str::<Json>(line).is_ok_and(|line| line["message"] == message);
    service.log().lines().filter(has_it).count()
}

/// The status of a service and of one of its components, as operators see it: `(200, "DEGRADED")`.
pub(crate) async fn readiness(service: &Service, component: &str) -> (u16, String) {
    match service.client().with_limit(Duration::from_secs(5)).get("/actuator/health/readiness").await {
        Ok(answer) => {
            let status = answer.json()["components"][component]["status"].clone();
            (answer.status, status.as_str().unwrap_or_default().to_owned())
        }
        Err(_) => (0, String::new()),
    }
}

/// Waits until operators see a component of a service so.
pub(crate) async fn until_readiness(service: &Service, component: &str, status: u16, word: &str) {
    let wanted = (status, word.to_owned());
    until(&format!("{component} is {word}"), async || readiness(service, component).await == wanted).await;
}

/// Whether an answer says that the service cannot now, and when to come back.
pub(crate) fn is_unavailable(answer: &Answer) -> bool {
    answer.status == 503
        && answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok())
        && answer.header("content-type") == Some("application/problem+json")
}

/// Lets writers finish, the system catch up, and compares: nothing was lost, and no answer was strange.
pub(crate) async fn stop_and_audit(writers: Writers, system: &System) -> (Written, Report) {
    let (written, acknowledged) = writers.stop().await;
    assert!(written.strange.is_empty(), "{written}");
    let report = audit(system, &acknowledged).await;
    println!("{written}\n{report}");
    (written, report)
}

/// Lets the system catch up, and compares: nothing was lost.
pub(crate) async fn audit(system: &System, acknowledged: &Acknowledged) -> Report {
    let places = Places::of(system);
    if let Err(error) = places.until_drained(TIMEOUT).await {
        let log = system.analytics.log();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        panic!("{error}\nanalytics, the newest line first:\n{}", lines.join("\n"));
    }
    places.audit(acknowledged).await.unwrap_or_else(|error| panic!("{error}")).expect_no_loss()
}
