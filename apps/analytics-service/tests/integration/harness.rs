//! A service under test, a publisher of events, and a client.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use analytics_service::{Service, Settings};
use chrono::{NaiveDate, Utc};
use codec::{
    event::{Event, EventKind},
    headers,
};
use config::{Environment, Reader};
use kafka::partitioner::{key_hash, of_hash};
use kafka::{Producer, Record};
use runtime::{Failure, Shutdown};
use serde_json::Value as Json;
use smol::Task;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use testbed::{
    Scratch,
    broker::{self, Broker},
    http::{Client, Response},
};
use uuid::Uuid;

/// How long a test waits for a condition.
const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const PARTITIONS: i32 = 3;

/// A topic and a state file of one test.
pub(crate) struct Harness {
    pub(crate) kafka: kafka::Settings,
    pub(crate) topic: String,
    pub(crate) state: PathBuf,
    producer: Producer,
    scratch: Scratch,
}

/// A running service.
pub(crate) struct Running {
    pub(crate) client: Client,
    shutdown: Shutdown,
    task: Task<Result<(), Failure>>,
}

/// Runs a test with a topic on the shared broker.
pub(crate) fn with_topic<F: Future<Output = ()>>(kind: broker::Kind, test: impl FnOnce(Harness) -> F) {
    runtime::block_on(2, async {
        let kafka = testbed::shared_broker(kind).await;
        test(Harness::new(kafka).await).await;
    });
}

/// Runs a test that deletes topics, on a broker of its own: Nisshi may lose other topics that are written meanwhile.
pub(crate) fn with_topic_to_delete<F: Future<Output = ()>>(kind: broker::Kind, test: impl FnOnce(Harness) -> F) {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await.unwrap();
        scratch.guard(broker.process()).unwrap();
        test(Harness::new(broker.settings("test")).await).await;
    });
}

impl Harness {
    pub(crate) async fn new(kafka: kafka::Settings) -> Self {
        Self::with_configuration(kafka, &[]).await
    }

    /// With a topic that has this configuration.
    pub(crate) async fn with_configuration(kafka: kafka::Settings, configuration: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new().unwrap();
        let topic = format!("patient-{:016x}", fastrand::u64(..));
        kafka::create_topic_with(&kafka, &topic, PARTITIONS, configuration).await.unwrap();
        let producer = Producer::new(kafka.clone(), &topic);
        Self { kafka, topic, state: scratch.path().join("state.sqlite"), producer, scratch }
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub(crate) fn dead_letter_topic(&self) -> String {
        format!("{}.dlq", self.topic)
    }

    /// Executes a statement in the state of a service that does not run.
    pub(crate) async fn execute_in_state(&self, statement: &'static str) {
        let mut state = SqliteConnectOptions::new().filename(&self.state).connect().await.unwrap();
        sqlx::query(statement).execute(&mut state).await.unwrap();
        state.close().await.unwrap();
    }

    /// Starts the service on the topic and the state.
    pub(crate) async fn start(&self, settings: &[(&str, &str)]) -> Running {
        let bootstrap = &self.kafka.bootstrap.0[0];
        let mut environment = Environment::empty()
            .with("SERVER_PORT", "0")
            .with("KAFKA_BOOTSTRAP_SERVERS", bootstrap.to_string())
            .with("KAFKA_DEADLINE", "2s")
            .with("KAFKA_TOPIC", &self.topic)
            .with("KAFKA_DEAD_LETTER_TOPIC", self.dead_letter_topic())
            .with("STATE_FILE", self.state.to_str().unwrap());
        for (name, value) in settings {
            environment = environment.with(*name, *value);
        }
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        let service = Service::build(reader.finish(settings).unwrap().0).unwrap();
        let (client, shutdown) = (Client::new(service.address()), Shutdown::new());
        let task = runtime::spawn(service.run(shutdown.clone()));
        Running { client, shutdown, task }
    }

    /// Publishes records to a partition. Returns their offsets.
    pub(crate) async fn send(&mut self, partition: i32, records: Vec<Record>) -> Vec<i64> {
        self.producer.send(BTreeMap::from([(partition, records)])).await.remove(&partition).unwrap().unwrap()
    }

    /// Publishes events to a topic, and retries until the broker accepts them.
    pub(crate) async fn publish_to(&mut self, topic: &str, events: &[(Uuid, EventKind, i64)]) {
        let mut producer = Producer::new(self.kafka.clone(), topic);
        for (patient_id, kind, version) in events {
            let partition = of_hash(key_hash(patient_id.to_string().as_bytes()), PARTITIONS);
            let end = Instant::now() + TIMEOUT;
            let batch = || BTreeMap::from([(partition, vec![record(*patient_id, *kind, *version)])]);
            while producer.send(batch()).await.values().any(Result::is_err) {
                assert!(Instant::now() < end, "the broker accepts nothing");
                smol::Timer::after(Duration::from_millis(50)).await;
            }
        }
    }

    /// Publishes events to the partitions of their patients.
    pub(crate) async fn publish(&mut self, events: &[(Uuid, EventKind, i64)]) {
        let mut batches = BTreeMap::<i32, Vec<Record>>::new();
        for (patient_id, kind, version) in events {
            let partition = of_hash(key_hash(patient_id.to_string().as_bytes()), PARTITIONS);
            batches.entry(partition).or_default().push(record(*patient_id, *kind, *version));
        }
        for result in self.producer.send(batches).await.into_values() {
            result.unwrap();
        }
    }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.task.await.unwrap();
    }

    /// Ends the service like a kill: without a shutdown.
    pub(crate) async fn kill(self) {
        self.task.cancel().await;
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(path).await.unwrap()
    }

    pub(crate) async fn summary(&self) -> Json {
        self.get("/analytics/summary").await.json()
    }

    /// What this instance alone has counted.
    pub(crate) async fn own_summary(&self) -> Json {
        self.get("/analytics/summary?scope=instance").await.json()
    }

    /// Waits until the summary meets a condition, and returns it.
    pub(crate) async fn until(&self, condition: &str, mut is_met: impl FnMut(&Json) -> bool) -> Json {
        let end = Instant::now() + TIMEOUT;
        loop {
            let summary = self.summary().await;
            if is_met(&summary) {
                return summary;
            }
            assert!(Instant::now() < end, "not met: {condition}; {summary}");
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the applied offsets of all partitions add up to this number of records.
    pub(crate) async fn until_applied(&self, records: i64) -> Json {
        let applied = |summary: &Json| {
            let partitions = summary["partitions"].as_array().unwrap();
            partitions.iter().map(|partition| partition["appliedOffset"].as_i64().unwrap() + 1).sum::<i64>()
        };
        self.until(&format!("{records} records are applied"), |summary| applied(summary) == records).await
    }
}

/// An event as patient-service publishes it.
pub(crate) fn record(patient_id: Uuid, kind: EventKind, version: i64) -> Record {
    let date = |text: &str| text.parse::<NaiveDate>().unwrap();
    let event = Event {
        id: Uuid::now_v7(),
        patient_id,
        kind,
        version,
        time: Utc::now(),
        name: "Jane Doe",
        email: "jane@example.org",
        registered_date: date("2024-02-29"),
        date_of_birth: date("1990-12-31"),
    };
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    Record {
        key: Some(patient_id.to_string().into_bytes()),
        value: Some(event.encode()),
        headers: headers::event_headers(event.id, kind, event.time, Some(traceparent)),
        timestamp: Utc::now(),
    }
}

/// A record without key and headers, as the original services publish.
pub(crate) fn foreign(value: impl Into<Vec<u8>>) -> Record {
    Record { key: None, value: Some(value.into()), headers: Vec::new(), timestamp: Utc::now() }
}
