//! Brokers on which an authentication counts for a limited time (KIP-368).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::DateTime;
use kafka::{Consumer, GroupProgress, Producer, Record};
use testbed::{broker::Kind, patient::unique_body, sql, until};

use super::{
    permissions::Authorized,
    pki::{UNREACHABLE, until_ready},
};

/// How long an authentication counts, and how long the connections are used: several times as long.
const SESSION: Duration = Duration::from_secs(3);
const LENGTH: Duration = Duration::from_secs(13);
const PAUSE: Duration = Duration::from_millis(100);

/// Without a second authentication, the broker closes the connection at the first call after the session has ended, and that call
/// fails: a fetch and a commit always, a batch if its second attempt fails too.
async fn no_call_fails(kind: Kind) {
    let Some(system) = Authorized::start(kind, Some(SESSION)).await else { return };
    let settings = system.client("administrator");
    assert!(kafka::create_topic(&settings, "topic", 1).await.unwrap());
    let record = |value: usize| Record {
        key: None,
        value: Some(value.to_string().into_bytes()),
        headers: Vec::new(),
        timestamp: DateTime::UNIX_EPOCH,
    };
    let mut producer = Producer::new(settings.clone(), "topic");
    let mut consumer = Consumer::new(settings.clone(), "topic", 0);
    let mut progress = GroupProgress::new(settings.clone(), "group", "topic");
    // The first commit waits until the topic of the groups is there.
    until("the coordinator is available", async || progress.commit(&BTreeMap::from([(0, 0)])).await.is_ok()).await;
    let (started, mut sent, mut next) = (Instant::now(), 0, 0);
    while started.elapsed() < LENGTH {
        let mut outcome = producer.send([(0, vec![record(sent)])].into()).await;
        outcome.remove(&0).unwrap().unwrap_or_else(|error| panic!("after {:?}: {error}", started.elapsed()));
        sent += 1;
        let fetched = consumer.fetch(next, 1024 * 1024, Duration::from_secs(1)).await;
        next = fetched.unwrap_or_else(|error| panic!("after {:?}: {error}", started.elapsed())).next;
        let committed = progress.commit(&BTreeMap::from([(0, next)])).await;
        committed.unwrap_or_else(|error| panic!("after {:?}: {error}", started.elapsed()));
        smol::Timer::after(PAUSE).await;
    }
    let fetched = consumer.fetch(0, 1024 * 1024, Duration::from_secs(1)).await.unwrap();
    let values: Vec<_> = fetched.records.iter().map(|record| record.value.unwrap_or_default().to_vec()).collect();
    let expected: Vec<_> = (0..sent).map(|value| value.to_string().into_bytes()).collect();
    assert_eq!(values, expected, "each once and in order");

    // A connection that was idle for longer than the session.
    smol::Timer::after(SESSION + Duration::from_secs(1)).await;
    consumer.fetch(0, 1024 * 1024, Duration::from_secs(1)).await.unwrap();
    progress.commit(&BTreeMap::from([(0, 0)])).await.unwrap();
}

#[test]
fn no_call_fails_where_clients_have_to_authenticate_again() {
    runtime::block_on(2, no_call_fails(Kind::Kafka));
}

#[test]
fn no_call_fails_where_clients_have_to_authenticate_again_on_an_older_kafka() {
    runtime::block_on(2, no_call_fails(Kind::OlderKafka));
}

#[test]
fn services_authenticate_again_and_lose_nothing() {
    runtime::block_on(2, async {
        let Some(system) = Authorized::start(Kind::Kafka, Some(SESSION)).await else { return };
        system.grant(|_| true).await;
        let database = testbed::shared_database().await;
        let own = vec![("DATABASE_URL", database.clone()), ("BILLING_SERVICE_ADDRESS", UNREACHABLE.to_owned())];
        let patients = system.start_service("patient-service", own);
        let state = system.pki.path().join("state.sqlite").display().to_string();
        let analytics = system.start_service("analytics-service", vec![("STATE_FILE", state)]);
        until_ready(&patients).await;
        until_ready(&analytics).await;
        let (started, mut registered, client) = (Instant::now(), 0, patients.client());
        while started.elapsed() < LENGTH {
            let response = client.post("/patients", &unique_body("Ann")).await.unwrap();
            assert_eq!(response.status, 201, "{}", response.text());
            registered += 1;
            smol::Timer::after(PAUSE).await;
        }
        until("every patient is counted", async || {
            analytics.client().get("/analytics/summary").await.unwrap().json()["activePatients"] == registered
        })
        .await;
        until("the outbox is empty", async || {
            sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap() == 0
        })
        .await;
        assert_eq!(sql::number(&database, "SELECT count(*) FROM outbox_dead_letters").await.unwrap(), 0);
        // The broker was there all the time, and nobody thought otherwise after the first connection.
        let trouble =
            |log: &str| log.lines().filter(|line| line.contains("SaslAuth") || line.contains("closed")).count();
        assert_eq!((trouble(&patients.log()), trouble(&analytics.log())), (0, 0), "{}", analytics.log());
    });
}
