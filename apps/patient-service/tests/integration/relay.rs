//! From the outbox to Kafka.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use codec::event::{EventKind, ReceivedEvent};
use kafka::{Consumer, RecordAndOffset};
use patient_service::{
    outbox::Outbox,
    relay::{BrokerState, CleanupPolicy, Relay, Settings, Step, StepError},
};
use postgres::PgConnection;
use testbed::{
    Scratch,
    broker::{self, Broker},
    sql::Session,
};

use crate::harness::{Harness, at_once, execute, id, path, patient};

mod delivery;
mod ids;
mod lease;
mod rejections;

fn unique_topic() -> String {
    format!("patient-{}", uuid::Uuid::now_v7())
}

fn settings(kafka: kafka::Settings, topic: &str) -> Settings {
    let kafka = kafka::Settings { deadline: Duration::from_secs(2), ..kafka };
    Settings {
        kafka,
        topic: topic.to_owned(),
        partitions: 3,
        cleanup_policy: CleanupPolicy::Compact,
        shards: 1,
        // Longer than a step takes on a busy machine.
        lease: Duration::from_secs(3),
        late_commit: Duration::from_secs(10),
    }
}

/// Nobody listens there.
fn no_broker() -> kafka::Settings {
    let nobody = config::HostPort { host: "127.0.0.1".to_owned(), port: 9 };
    kafka::Settings {
        bootstrap: config::HostPorts(vec![nobody]),
        deadline: Duration::from_secs(1),
        client_id: "test",
        security: kafka::Security::default(),
    }
}

/// A service whose own relay stands by, because the test runs relays of its own.
async fn service_without_relay() -> Harness {
    service_without_relay_on(&testbed::shared_database().await, "1s").await
}

async fn service_without_relay_on(database_url: &str, database_deadline: &str) -> Harness {
    // Its relay tries to take the lease at its start, and the next time after the test.
    let settings = [("RELAY_LEASE", "1h"), ("DATABASE_DEADLINE", database_deadline)];
    let service = Harness::start(database_url, &settings).await;
    let hold = async |connection: &mut PgConnection| {
        let statement = "INSERT INTO relay_leases VALUES (0, gen_random_uuid(), 'infinity')
            ON CONFLICT (shard) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at";
        postgres::query(statement).execute(connection).await
    };
    service.database.run(hold).await.unwrap();
    service
}

async fn free_lease(service: &Harness) {
    execute(service, "DELETE FROM relay_leases").await;
}

/// Takes the lease from whoever has it: another relay of the test, or the service's own, which may take it at its start.
async fn take_lease(service: &Harness, relay: &Relay) {
    while !relay.acquire_or_renew_lease().await.unwrap() {
        free_lease(service).await;
    }
}

fn relay(service: &Harness, settings: Settings) -> Relay {
    Relay::new(Outbox::new(service.database.clone()), settings, 0, BrokerState::default())
}

/// A relay that has the lease for longer than a test takes.
async fn relay_with_lease(service: &Harness, settings: Settings) -> Relay {
    let relay = relay(service, Settings { lease: Duration::from_secs(60), ..settings });
    take_lease(service, &relay).await;
    relay
}

/// Apache Kafka that rejects records of more than 1,500 bytes.
async fn broker_of_small_records(scratch: &Scratch) -> Broker {
    let directory = scratch.path().join("broker");
    let extra = "message.max.bytes=1500";
    let mut broker = Broker::start_on_free_port(broker::Kind::Kafka, &directory, extra).await.unwrap();
    scratch.guard(broker.process()).unwrap();
    broker
}

/// Takes the lease from whoever has it, and publishes until the outbox is empty.
async fn drain(service: &Harness, relay: &mut Relay) -> usize {
    let mut published = 0;
    while service.number("SELECT count(*) FROM outbox").await > 0 {
        take_lease(service, relay).await;
        published += relay.step().await.unwrap().published;
    }
    published
}

/// As [`drain`], with steps that may fail at first.
async fn until_drained(service: &Harness, relay: &mut Relay) {
    let end = Instant::now() + Duration::from_secs(60);
    while service.number("SELECT count(*) FROM outbox").await > 0 {
        assert!(Instant::now() < end, "events are left");
        take_lease(service, relay).await;
        let _ = relay.step().await;
    }
}

/// How many records a topic of three partitions has.
async fn count_all(kafka: &kafka::Settings, topic: &str) -> usize {
    let mut count = 0;
    for partition in 0..3 {
        count += read_all(kafka, topic, partition).await.len();
    }
    count
}

async fn read_all(kafka: &kafka::Settings, topic: &str, partition: i32) -> Vec<RecordAndOffset> {
    let mut consumer = Consumer::new(kafka.clone(), topic, partition);
    let end = consumer.offsets().await.unwrap().end;
    let (mut records, mut next) = (Vec::new(), 0);
    while next < end {
        let fetched = consumer.fetch(next, 1 << 20, Duration::from_millis(100)).await.unwrap();
        records.extend(fetched.records.iter().map(|record| record.to_record()));
        next = fetched.next;
    }
    records
}

fn decode(record: &RecordAndOffset) -> ReceivedEvent {
    ReceivedEvent::decode(record.record.value.as_ref().unwrap()).unwrap()
}
