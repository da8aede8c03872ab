//! The memory of analytics-service with undecodable records, and of patient-service with long lists, stays below the limit in
//! docker-compose.yaml.

use std::{collections::BTreeMap, path::PathBuf};

use chrono::Utc;
use kafka::{
    Producer, Record,
    testing::{Codec, batch, send_batch, set_topic_setting},
};
use serde_json::Value as Json;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, sqlite::SqliteConnectOptions};
use testbed::{
    Scratch,
    broker::Kind,
    service::{Launch, Service},
    sql, until,
};

use crate::support::{TIMEOUT, logged, metric, until_readiness};

testbed::on_each_broker!(undecodable_records_cost_little_memory, a_state_with_many_dates_is_opened_in_little_memory);

// Nisshi takes seconds to read such batches, in which it answers no other test.
mod on_kafka_alone {
    use testbed::broker::Kind::Kafka;

    #[test]
    fn headers_that_are_compressed_cost_little_memory() {
        super::headers_that_are_compressed_cost_little_memory(Kafka);
    }

    #[test]
    fn many_partitions_cost_little_memory() {
        super::many_partitions_cost_little_memory(Kafka);
    }
}

/// An invalid name of a topic.
const NO_TOPIC: &str = "no topic";

/// The memory limit of a service in docker-compose.yaml.
const MEMORY: u64 = 64 << 20;
const PARTITIONS: i32 = 3;
/// More than the maximum of dead letters that wait for their topic.
const RECORDS: usize = 90;
const RECORD_BYTES: usize = 900_000;

struct Fixture {
    kafka: kafka::Settings,
    topic: String,
    scratch: Scratch,
}

impl Fixture {
    /// An empty topic.
    async fn empty(kind: Kind, partitions: i32) -> Self {
        let kafka = kafka::Settings { deadline: TIMEOUT, ..testbed::shared_broker(kind).await };
        let topic = format!("patient-{:016x}", fastrand::u64(..));
        kafka::create_topic(&kafka, &topic, partitions).await.unwrap();
        Self { kafka, topic, scratch: Scratch::new().unwrap() }
    }

    /// A topic with many large undecodable records.
    async fn new(kind: Kind) -> Self {
        Self::with_partitions(kind, PARTITIONS).await
    }

    async fn with_partitions(kind: Kind, partitions: i32) -> Self {
        let fixture = Self::empty(kind, partitions).await;
        let mut producer = Producer::new(fixture.kafka.clone(), &fixture.topic);
        for number in 0..RECORDS {
            let record = undecodable(vec![0xff; RECORD_BYTES], 0);
            let partition = number as i32 % partitions;
            producer.send(BTreeMap::from([(partition, vec![record])])).await.remove(&partition).unwrap().unwrap();
        }
        fixture
    }

    fn dead_letter_topic(&self) -> String {
        format!("{}.dlq", self.topic)
    }

    fn state_file(&self) -> PathBuf {
        self.scratch.path().join("analytics.sqlite")
    }

    async fn start(&self) -> Service {
        let mut service = self.launch(&self.dead_letter_topic());
        service.until_ready().await.unwrap();
        service
    }

    fn launch(&self, dead_letter_topic: &str) -> Service {
        let environment = [
            ("KAFKA_BOOTSTRAP_SERVERS", self.kafka.bootstrap.0[0].to_string()),
            ("KAFKA_TOPIC", self.topic.clone()),
            ("KAFKA_DEAD_LETTER_TOPIC", dead_letter_topic.to_owned()),
            ("STATE_FILE", self.state_file().display().to_string()),
        ];
        Launch::new("analytics-service", self.scratch.path(), environment).start_guarded(&self.scratch).unwrap()
    }
}

/// A record with this value, and with empty headers.
fn undecodable(value: Vec<u8>, headers: usize) -> Record {
    let headers = vec![(Vec::new(), None); headers];
    Record { key: None, value: Some(value), headers, timestamp: Utc::now() }
}

fn created() -> Record {
    Record { key: None, value: Some(testbed::patient::created()), headers: Vec::new(), timestamp: Utc::now() }
}

/// All dead letters.
async fn letters(service: &Service) -> Vec<Json> {
    service.client().get("/analytics/dead-letters?limit=1000").await.unwrap().json().as_array().unwrap().clone()
}

async fn until_forwarded(service: &Service, records: usize) {
    let forwarded = async || {
        let letters = letters(service).await;
        letters.len() == records && letters.iter().all(|letter| letter["forwarded"] == true)
    };
    until("every record is a forwarded dead letter", forwarded).await;
}

fn assert_little_memory(service: &mut Service) {
    let most = service.process().peak_memory();
    println!("{} KiB at most", most / 1024);
    assert!(most > 0 && most < MEMORY, "{} KiB at most", most / 1024);
}

fn undecodable_records_cost_little_memory(kind: Kind) {
    runtime::block_on(2, async {
        let fixture = Fixture::new(kind).await;
        let mut service = fixture.start().await;
        until_forwarded(&service, RECORDS).await;
        let letters = letters(&service).await;
        assert!(letters.iter().all(|letter| letter["valueBytes"] == RECORD_BYTES), "{letters:?}");
        assert_little_memory(&mut service);
    });
}

/// A batch of a few kilobytes, each of whose records takes two megabytes.
fn headers_that_are_compressed_cost_little_memory(kind: Kind) {
    const HEADERS: usize = 43_600;
    const COMPRESSED: usize = 20;
    runtime::block_on(2, async {
        let fixture = Fixture::empty(kind, 1).await;
        let batch = batch(Codec::Zstd, &vec![undecodable(b"no event".to_vec(), HEADERS); COMPRESSED]);
        send_batch(&fixture.kafka, &fixture.topic, 0, batch).await.unwrap();
        let mut service = fixture.start().await;
        until_forwarded(&service, COMPRESSED).await;
        assert_little_memory(&mut service);
    });
}

/// Large records that are not events on some of them, and events whose batches are much larger when decompressed on the others.
fn many_partitions_cost_little_memory(kind: Kind) {
    const UNDECODABLE_ON: i32 = 60;
    const EVENTS_ON: i32 = 24;
    const EVENTS: usize = 13_000;
    runtime::block_on(2, async {
        let fixture = Fixture::with_partitions(kind, UNDECODABLE_ON).await;
        let mut service = fixture.start().await;
        until_forwarded(&service, RECORDS).await;
        assert_little_memory(&mut service);
        service.stop().await;

        let fixture = Fixture::empty(kind, EVENTS_ON).await;
        let batch = batch(Codec::Zstd, &vec![created(); EVENTS]);
        for partition in 0..EVENTS_ON {
            send_batch(&fixture.kafka, &fixture.topic, partition, batch.clone()).await.unwrap();
        }
        let mut service = fixture.start().await;
        let all = EVENTS as i64 * i64::from(EVENTS_ON);
        until("every event is read", async || {
            let summary = service.client().get("/analytics/summary").await.unwrap().json();
            let positions = summary["partitions"].as_array().unwrap();
            positions.iter().map(|partition| partition["appliedOffset"].as_i64().unwrap() + 1).sum::<i64>() == all
        })
        .await;
        assert_little_memory(&mut service);
    });
}

#[test]
fn dead_letters_that_the_broker_rejects_cost_little_memory() {
    // Nisshi accepts batches of any size.
    if !Kind::Kafka.is_installed() {
        return;
    }
    runtime::block_on(2, async {
        let fixture = Fixture::new(Kind::Kafka).await;
        kafka::create_topic(&fixture.kafka, &fixture.dead_letter_topic(), 1).await.unwrap();
        set_topic_setting(&fixture.kafka, &fixture.dead_letter_topic(), "max.message.bytes", "1000").await.unwrap();
        let mut service = fixture.start().await;
        until("every record is a dead letter", async || letters(&service).await.len() == RECORDS).await;
        until("they are rejected", async || {
            logged(&service, "a dead letter is rejected by its topic; the record is on the topic of events only")
                + logged(&service, "dead letters cannot be forwarded; they wait in the state")
                > 0
        })
        .await;
        assert_little_memory(&mut service);
    });
}

#[test]
fn dead_letters_without_a_topic_are_bounded_and_reported() {
    // Nisshi creates topics with any name.
    if !Kind::Kafka.is_installed() {
        return;
    }
    runtime::block_on(2, async {
        let fixture = Fixture::new(Kind::Kafka).await;
        let mut service = fixture.launch(NO_TOPIC);
        until_readiness(&service, "deadLetters", 503, "DOWN").await;
        let waiting = metric(&service, "dead_letters_waiting").await.unwrap() as usize;
        assert!((60..RECORDS).contains(&waiting), "{waiting} wait");
        assert_eq!(letters(&service).await.len(), waiting);
        let message = "too many dead letters wait for their topic; ingest has stopped until they are forwarded";
        assert_eq!(logged(&service, message), 1, "{}", service.log());
        assert_little_memory(&mut service);
        service.stop().await;

        // With a valid topic, they are forwarded, and the remaining records are read.
        let mut service = fixture.start().await;
        until_forwarded(&service, RECORDS).await;
        assert_eq!(metric(&service, "dead_letters_waiting_bytes").await, Some(0.0));
        until_readiness(&service, "deadLetters", 200, "UP").await;
        assert_little_memory(&mut service);
    });
}

fn a_state_with_many_dates_is_opened_in_little_memory(kind: Kind) {
    runtime::block_on(2, async {
        let fixture = Fixture::empty(kind, PARTITIONS).await;
        let is_open = async |service: &Service| {
            let summary = service.client().get("/analytics/summary").await.unwrap().json();
            summary["partitions"].as_array().is_some_and(|partitions| partitions.len() == PARTITIONS as usize)
        };
        let mut service = fixture.start().await;
        until("the state is open", async || is_open(&service).await).await;
        service.stop().await;
        // Twelve partitions, each with every date from 1900 to 2014.
        let fill = "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 503999)
            INSERT INTO registrations (partition, date, patients) SELECT n % 12, n / 12 - 25567, 1 FROM numbers";
        let mut state = SqliteConnectOptions::new().filename(fixture.state_file()).connect().await.unwrap();
        state.execute(fill).await.unwrap();
        state.close().await.unwrap();
        let mut service = fixture.start().await;
        until("the state is open", async || is_open(&service).await).await;
        let series = service.client().get("/analytics/registrations?interval=year").await.unwrap().json();
        let years = series.as_array().unwrap();
        let registrations: i64 = years.iter().map(|year| year["registrations"].as_i64().unwrap()).sum();
        assert_eq!((years.len(), registrations), (115, 42_000 * i64::from(PARTITIONS)));
        assert_little_memory(&mut service);
    });
}

/// As large as they may be: of four bytes for each character, and of control characters, which take six in JSON.
const LARGE_PATIENTS: &str = r"INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
    SELECT gen_random_uuid(), repeat(letter, 95) || n, n || repeat('x', 58) || '@' || repeat(repeat('y', 60) || '.', 4) || 'example',
        repeat(letter, 255), '1990-12-31', '2024-02-29'
    FROM generate_series(10000, 10999) AS n, LATERAL (SELECT CASE n % 2 WHEN 0 THEN E'\U0001F600' ELSE E'\x01' END) AS text (letter)";
/// The longest lists, each requested by so many clients at once, so often one after the other.
const LISTS: [&str; 2] = ["/patients?limit=1000", "/patients?page=1&size=1000&sort=-name"];
const CLIENTS: usize = 16;
const ROUNDS: usize = 2;
/// The maximum for lists; a debug build takes 16 MiB more from its start on.
const LIST_MEMORY: u64 = if cfg!(debug_assertions) { MEMORY + (16 << 20) } else { MEMORY };

#[test]
fn long_lists_at_once_cost_little_memory() {
    runtime::block_on(2, async {
        let (scratch, database) = (Scratch::new().unwrap(), testbed::shared_database().await);
        let nowhere = "127.0.0.1:9".to_owned();
        let environment = [
            ("DATABASE_URL", database.clone()),
            ("BILLING_SERVICE_ADDRESS", nowhere.clone()),
            ("KAFKA_BOOTSTRAP_SERVERS", nowhere),
            // So that a slow machine makes all lists too.
            ("DATABASE_ACQUIRE_DEADLINE", "60s".to_owned()),
            ("DATABASE_DEADLINE", "60s".to_owned()),
        ];
        let launch = Launch::new("patient-service", scratch.path(), environment);
        let mut service = launch.start_guarded(&scratch).unwrap();
        service.until_ready().await.unwrap();
        sql::execute(&database, LARGE_PATIENTS).await.unwrap();
        for _ in 0..ROUNDS {
            let list = |path| {
                let client = service.client();
                runtime::spawn(async move { client.get(path).await.unwrap() })
            };
            let lists: Vec<_> = (0..CLIENTS).flat_map(|_| LISTS.map(list)).collect();
            for list in lists {
                let response = list.await;
                assert_eq!(response.status, 200, "{}", response.text());
            }
        }
        let most = service.process().peak_memory();
        assert!(most > 0 && most < LIST_MEMORY, "{} KiB at most", most / 1024);
    });
}
