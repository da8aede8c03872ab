//! From the outbox to Kafka.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use codec::event::{EventKind, ReceivedEvent};
use kafka::{Consumer, RecordAndOffset};
use patient_service::{
    outbox::Outbox,
    relay::{BrokerState, Relay, Settings, Step, StepError},
};
use postgres::PgConnection;
use serde_json::json;
use testbed::{
    Scratch,
    broker::{self, Broker},
    sql::Session,
};

use crate::harness::{Harness, at_once, execute, id, path, patient};

testbed::on_each_broker!(
    events_arrive_in_order_with_their_headers,
    a_topic_is_created_and_keys_determine_the_partition,
    one_relay_sends_and_another_takes_over,
    a_late_commit_is_not_skipped,
    what_requests_hand_over_is_sent_once_and_in_order,
    a_broker_that_was_away_gets_everything,
    a_repeated_batch_repeats_events_and_loses_none,
    a_blocked_deletion_blocks_no_event,
    events_that_cannot_be_deleted_are_deleted_later_and_not_sent_again,
    an_event_with_the_id_of_one_that_was_published_is_published_too,
    ids_that_go_back_delay_no_event,
);

fn unique_topic() -> String {
    format!("patient-{}", uuid::Uuid::now_v7())
}

fn settings(kafka: kafka::Settings, topic: &str) -> Settings {
    let kafka = kafka::Settings { deadline: Duration::from_secs(2), ..kafka };
    Settings {
        kafka,
        topic: topic.to_owned(),
        partitions: 3,
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

/// A service whose own relay stands by for ever, because a test does the relaying.
async fn service_without_relay() -> Harness {
    service_without_relay_on(&testbed::shared_database().await, "1s").await
}

async fn service_without_relay_on(database_url: &str, database_deadline: &str) -> Harness {
    // It asks for the lease at its start, and then not before the test is over.
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

/// Takes the lease from whoever has it: another relay of the test, or the service's own, which asks at its start and may be
/// late.
async fn take_lease(service: &Harness, relay: &Relay) {
    while !relay.hold_lease().await.unwrap() {
        free_lease(service).await;
    }
}

fn relay(service: &Harness, settings: Settings) -> Relay {
    Relay::new(Outbox::new(service.database.clone()), settings, 0, BrokerState::default())
}

/// Takes the lease from whoever has it and relays until nothing is left.
async fn drain(service: &Harness, relay: &mut Relay) -> usize {
    let mut published = 0;
    while service.number("SELECT count(*) FROM outbox").await > 0 {
        take_lease(service, relay).await;
        published += relay.step().await.unwrap().published;
    }
    published
}

/// As [`drain`], when the broker may reject a step before it knows better.
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

fn events_arrive_in_order_with_their_headers(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let service = service_without_relay().await;
        let jane = service.register("Jane Doe").await;
        service.client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
        service.client.delete(&path(&jane)).await.unwrap();
        let mut relay = relay(&service, settings(kafka.clone(), &topic));
        assert_eq!(drain(&service, &mut relay).await, 3);

        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let records = read_all(&kafka, &topic, partition).await;
        let events: Vec<_> = records.iter().map(decode).collect();
        assert_eq!(
            events.iter().map(|event| event.kind).collect::<Vec<_>>(),
            [Some(EventKind::Created), Some(EventKind::Updated), Some(EventKind::Deleted)]
        );
        assert_eq!(events.iter().map(|event| event.version).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
        assert!(events.iter().all(|event| event.birth_year == Some(1990) && event.patient_id.to_string() == id(&jane)));
        for (record, name) in records.iter().zip(["PATIENT_CREATED", "PATIENT_UPDATED", "PATIENT_DELETED"]) {
            let text = |header: &str| codec::headers::text(&record.record.headers, header).unwrap();
            assert_eq!(record.record.key.as_deref(), Some(id(&jane).as_bytes()));
            assert_eq!((text("ce_type"), text("ce_specversion"), text("ce_source")), (name, "1.0", "/patient-service"));
            assert_eq!(text("content-type"), "application/protobuf");
            assert!(text("ce_id").parse::<uuid::Uuid>().is_ok());
            assert!(telemetry::TraceContext::parse(text("traceparent")).is_some());
        }
        let deletion = records[2].record.value.as_ref().unwrap();
        assert!(!String::from_utf8_lossy(deletion).contains("jane"), "a deletion tells whom, and no more");
        service.stop().await;
    });
}

fn a_topic_is_created_and_keys_determine_the_partition(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let service = service_without_relay().await;
        for n in 0..30 {
            service.register(&format!("Patient {n}")).await;
        }
        let mut relay = relay(&service, settings(kafka.clone(), &topic));
        assert_eq!(drain(&service, &mut relay).await, 30);
        assert_eq!(kafka::partitions(&kafka, &topic).await.unwrap(), 3);
        let mut count = 0;
        for partition in 0..3 {
            for record in read_all(&kafka, &topic, partition).await {
                let hash = kafka::partitioner::key_hash(record.record.key.as_ref().unwrap());
                assert_eq!(kafka::partitioner::of_hash(hash, 3), partition);
                count += 1;
            }
        }
        assert_eq!(count, 30);
        service.stop().await;
    });
}

fn one_relay_sends_and_another_takes_over(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        kafka::create_topic(&kafka, &topic, 3).await.unwrap();
        let service = service_without_relay().await;
        let (mut first, mut second) =
            (relay(&service, settings(kafka.clone(), &topic)), relay(&service, settings(kafka.clone(), &topic)));
        service.register("Jane Doe").await;
        take_lease(&service, &first).await;
        assert!(!second.hold_lease().await.unwrap());
        assert!(matches!(second.step().await, Err(StepError::NotLeased)));
        assert_eq!(first.step().await.unwrap(), Step { read: 1, published: 1 });

        // The first is frozen: it does not keep its lease, and somebody else gets it after a while.
        service.until("the lease has run out", async || second.hold_lease().await.unwrap()).await;
        assert!(matches!(first.step().await, Err(StepError::NotLeased)), "it knows by its own clock");
        service.register("John Doe").await;
        assert_eq!(second.step().await.unwrap(), Step { read: 1, published: 1 });
        service.stop().await;
    });
}

/// The service's own relay, which sends most first events without reading them, between others that it reads.
fn what_requests_hand_over_is_sent_once_and_in_order(kind: broker::Kind) {
    const PATIENTS: usize = 100;
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        kafka::create_topic(&kafka, &topic, 3).await.unwrap();
        let address = kafka.bootstrap.0[0].to_string();
        let variables = [("KAFKA_BOOTSTRAP_SERVERS", &*address), ("KAFKA_TOPIC", &*topic)];
        let service = Harness::start(&testbed::shared_database().await, &variables).await;
        let has_lease = async || service.number("SELECT count(*) FROM relay_leases").await == 1;
        service.until("the relay has its lease", has_lease).await;
        // Another replica's event now and then, which nobody hands over.
        let others = {
            let database = service.database.clone();
            runtime::spawn(async move {
                for _ in 0..20 {
                    let insert = async |connection: &mut PgConnection| {
                        let statement = "WITH new AS (SELECT gen_random_uuid() AS id)
                            INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value)
                            SELECT id, 0, gen_random_uuid(), 'PATIENT_CREATED', 'another' FROM new";
                        postgres::query(statement).execute(connection).await
                    };
                    database.run(insert).await.unwrap();
                    smol::Timer::after(Duration::from_millis(5)).await;
                }
            })
        };
        let (client, changed) = (service.client.clone(), 3);
        at_once(PATIENTS, move |n| {
            let client = client.clone();
            async move {
                let answer = client.post("/patients", &patient(&format!("Patient {n}"))).await.unwrap();
                assert_eq!(answer.status, 201);
                if n % changed == 0 {
                    let path = path(&answer.json());
                    assert_eq!(client.put(&path, &patient(&format!("Changed {n}"))).await.unwrap().status, 200);
                    assert_eq!(client.delete(&path).await.unwrap().status, 204);
                }
            }
        })
        .await;
        others.await;
        service.until("nothing is left", async || service.number("SELECT count(*) FROM outbox").await == 0).await;
        let (mut versions, mut of_others) = (HashMap::<uuid::Uuid, Vec<i64>>::new(), 0);
        for partition in 0..3 {
            for record in read_all(&kafka, &topic, partition).await {
                match ReceivedEvent::decode(record.record.value.as_ref().unwrap()) {
                    Ok(event) => versions.entry(event.patient_id).or_default().push(event.version.unwrap()),
                    Err(_) => of_others += 1,
                }
            }
        }
        assert_eq!((versions.len(), of_others), (PATIENTS, 20));
        for versions in versions.values() {
            assert!(matches!(versions[..], [1] | [1, 2, 3]), "{versions:?}");
        }
        assert_eq!(versions.values().filter(|versions| versions.len() == 3).count(), PATIENTS.div_ceil(changed));
        service.stop().await;
    });
}

fn a_late_commit_is_not_skipped(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let service = service_without_relay().await;
        let mut relay = relay(&service, settings(kafka.clone(), &topic));
        service.register("Jane Doe").await;
        // An id is taken, and the event of a larger one is committed first.
        let taken = service.number("SELECT nextval(pg_get_serial_sequence('outbox', 'id'))").await;
        service.register("John Doe").await;
        assert_eq!(drain(&service, &mut relay).await, 2);
        // What was sent counts as handled once it is deleted and something comes after it.
        service.register("Jim Doe").await;
        assert_eq!(drain(&service, &mut relay).await, 1);
        let late = async |connection: &mut PgConnection| {
            let statement =
                "INSERT INTO outbox (id, patient_id, key_hash, event_id, event_type, value) OVERRIDING SYSTEM VALUE
                VALUES ($1, gen_random_uuid(), 0, gen_random_uuid(), 'PATIENT_CREATED', 'late')";
            postgres::query(statement).bind(taken).execute(connection).await
        };
        service.database.run(late).await.unwrap();
        let started = Instant::now();
        assert_eq!(drain(&service, &mut relay).await, 1);
        // The reading of everything every 30 s would find it too.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        service.stop().await;
    });
}

fn a_broker_that_was_away_gets_everything(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let scratch = Scratch::new().unwrap();
        let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await.unwrap();
        scratch.guard(broker.process()).unwrap();
        let (address, kafka) = (broker.address(), broker.settings("test"));
        let variables: Vec<(&str, &str)> = vec![("KAFKA_BOOTSTRAP_SERVERS", &address), ("KAFKA_DEADLINE", "2s")];
        let service = Harness::start(&testbed::shared_database().await, &variables).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;
        let jane = service.register("Jane Doe").await;
        service.until("the first event is published", async || waiting().await == 0).await;

        broker.process().kill().await;
        for n in 0..5 {
            let started = Instant::now();
            assert_eq!(service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap().status, 200);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        }
        assert_eq!(waiting().await, 5);
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        service.until("all events are published", async || waiting().await == 0).await;

        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let mut versions: Vec<_> =
            read_all(&kafka, "patient", partition).await.iter().map(|r| decode(r).version.unwrap()).collect();
        // A batch whose acknowledgement was lost comes again, whole and in order.
        versions.dedup();
        let mut first_seen = HashMap::new();
        for version in versions {
            let next = first_seen.len() as i64 + 1;
            first_seen.entry(version).or_insert(next);
        }
        assert!(first_seen.len() == 6 && first_seen.iter().all(|(version, order)| version == order), "{first_seen:?}");
        service.stop().await;
    });
}

fn a_repeated_batch_repeats_events_and_loses_none(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let service = service_without_relay().await;
        let jane = service.register("Jane Doe").await;
        let copy = async |connection: &mut PgConnection| {
            postgres::query("CREATE TABLE copy AS SELECT * FROM outbox").execute(connection).await
        };
        service.database.run(copy).await.unwrap();
        let mut first = relay(&service, settings(kafka.clone(), &topic));
        drain(&service, &mut first).await;
        // As after a crash between the acknowledgement and the deletion.
        let restore = async |connection: &mut PgConnection| {
            postgres::query("INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT * FROM copy").execute(connection).await
        };
        service.database.run(restore).await.unwrap();
        let mut second = relay(&service, settings(kafka.clone(), &topic));
        drain(&service, &mut second).await;
        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let records = read_all(&kafka, &topic, partition).await;
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].record.value, records[1].record.value);
        let ids: Vec<_> = records.iter().map(|record| codec::headers::text(&record.record.headers, "ce_id")).collect();
        assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
        service.stop().await;
    });
}

fn a_blocked_deletion_blocks_no_event(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let database = testbed::shared_database().await;
        // Longer than the test takes, so that the deletion waits and does not fail.
        let service = service_without_relay_on(&database, "30s").await;
        let mut relay = relay(&service, Settings { lease: Duration::from_secs(60), ..settings(kafka.clone(), &topic) });
        take_lease(&service, &relay).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;

        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 });
        service.register("John Doe").await;
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 }, "the first is not read again");
        assert_eq!(waiting().await, 2, "nothing could be deleted");

        session.execute("ROLLBACK").await.unwrap();
        service.until("both are deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
        assert_eq!(count_all(&kafka, &topic).await, 2);
        service.stop().await;
    });
}

fn events_that_cannot_be_deleted_are_deleted_later_and_not_sent_again(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let database = testbed::shared_database().await;
        let service = service_without_relay_on(&database, "1s").await;
        let mut relay = relay(&service, Settings { lease: Duration::from_secs(60), ..settings(kafka.clone(), &topic) });
        take_lease(&service, &relay).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;

        // One row is locked for longer than a deletion takes, the other is deleted around it.
        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        service.register("John Doe").await;
        assert_eq!(relay.step().await.unwrap(), Step { read: 2, published: 2 });
        let one_left = async || relay.step().await.unwrap().read == 0 && waiting().await == 1;
        service.until("the one that nobody has locked is deleted", one_left).await;
        session.execute("ROLLBACK").await.unwrap();
        service.until("both are deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;

        // Deletions fail.
        let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'as the test wants it'; END $$;
            CREATE TRIGGER fail BEFORE DELETE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION fail()";
        session.execute(fail).await.unwrap();
        service.register("Jim Doe").await;
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 });
        for _ in 0..20 {
            assert_eq!(relay.step().await.unwrap(), Step::default());
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        assert_eq!(waiting().await, 1);
        session.execute("DROP TRIGGER fail ON outbox").await.unwrap();
        service.until("it is deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
        assert_eq!(count_all(&kafka, &topic).await, 3, "each was sent once");
        service.stop().await;
    });
}

/// After a restore, or a failover to a replica that lagged, ids are given a second time.
fn an_event_with_the_id_of_one_that_was_published_is_published_too(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let database = testbed::shared_database().await;
        // Longer than the test takes, so that the deletion waits and does not fail.
        let service = service_without_relay_on(&database, "30s").await;
        let mut relay = relay(&service, Settings { lease: Duration::from_secs(60), ..settings(kafka.clone(), &topic) });
        take_lease(&service, &relay).await;
        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 });
        // While its deletion waits, another event takes its place.
        session.execute("UPDATE outbox SET event_id = gen_random_uuid(); COMMIT").await.unwrap();
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;
        service.until("it is published", async || relay.step().await.unwrap().published == 1).await;
        service.until("it is deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
        assert_eq!(count_all(&kafka, &topic).await, 2);
        service.stop().await;
    });
}

fn ids_that_go_back_delay_no_event(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let service = service_without_relay().await;
        let settings = Settings {
            lease: Duration::from_secs(60),
            // Soon after an event is published, reading begins behind it.
            late_commit: Duration::from_millis(100),
            ..settings(kafka.clone(), &topic)
        };
        let mut relay = relay(&service, settings);
        take_lease(&service, &relay).await;
        let ways = [
            "SELECT setval('outbox_id_seq', 1, false)",
            "SELECT setval('outbox_id_seq', 1, true)",
            "ALTER SEQUENCE outbox_id_seq RESTART",
            "TRUNCATE outbox RESTART IDENTITY",
        ];
        for (number, way) in ways.into_iter().enumerate() {
            for n in 0..3 {
                service.register(&format!("Patient {number} {n}")).await;
            }
            let waiting = async || service.number("SELECT count(*) FROM outbox").await;
            let all_published = async || relay.step().await.unwrap().read == 0 && waiting().await == 0;
            service.until("all are published", all_published).await;
            // The time of `late_commit`, in which the database answers.
            for _ in 0..4 {
                smol::Timer::after(Duration::from_millis(50)).await;
                relay.step().await.unwrap();
            }
            execute(&service, way).await;
            service.register(&format!("Patient {number} after it")).await;
            assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 }, "{way}");
        }
        service.stop().await;
    });
}

#[test]
fn a_sequence_that_is_behind_the_outbox_is_moved_past_it() {
    runtime::block_on(2, async {
        // No broker: events wait.
        let service = Harness::start(&testbed::shared_database().await, &[]).await;
        for n in 0..5 {
            service.register(&format!("Patient {n}")).await;
        }
        execute(&service, "SELECT setval('outbox_id_seq', 1, false)").await;
        service.until("it is moved", async || service.number("SELECT last_value FROM outbox_id_seq").await > 5).await;
        service.register("Jane Doe").await;
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 6);
        service.stop().await;
    });
}

/// PostgreSQL's clock was set back or forward after the holder died, or has stopped to mean anything.
#[test]
fn the_lease_of_a_dead_holder_is_taken_over_after_its_duration_whatever_its_expiry() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        let lease = Duration::from_secs(1);
        let dead = [
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() + interval '59 minutes'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() + interval '3 days'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = 'infinity'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() - interval '3 days'",
        ];
        for dead in dead {
            let relay = relay(&service, Settings { lease, ..settings(no_broker(), "none") });
            execute(&service, dead).await;
            let started = Instant::now();
            assert!(!relay.hold_lease().await.unwrap(), "it may be alive: {dead}");
            service.until("it is taken over", async || relay.hold_lease().await.unwrap()).await;
            let took = started.elapsed();
            assert!(took >= lease && took < lease + Duration::from_secs(2), "{took:?}: {dead}");
        }
        service.stop().await;
    });
}

/// PostgreSQL's clock was set forward while the holder renews its lease.
#[test]
fn a_renewed_lease_stays_with_its_holder_whatever_its_expiry() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        let lease = Duration::from_secs(2);
        let relays = [0, 1].map(|_| relay(&service, Settings { lease, ..settings(no_broker(), "none") }));
        take_lease(&service, &relays[0]).await;
        let end = Instant::now() + lease * 3;
        while Instant::now() < end {
            execute(&service, "UPDATE relay_leases SET expires_at = now() - interval '1 hour'").await;
            assert!(!relays[1].hold_lease().await.unwrap());
            assert!(relays[0].hold_lease().await.unwrap());
            smol::Timer::after(Duration::from_millis(100)).await;
        }
        service.stop().await;
    });
}

/// Otherwise a gauge of 0 would hide that events wait for as long as the lease lasts.
#[test]
fn the_backlog_is_reported_while_nobody_renews_the_lease() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        for n in 0..7 {
            service.register(&format!("Patient {n}")).await;
        }
        let pending = async || service.get("/metrics").await.text().contains("outbox_pending{shard=\"0\"} 7\n");
        service.until("the outbox is told", pending).await;
        service.stop().await;
    });
}

mod on_kafka_alone {
    use super::*;

    #[test]
    fn acknowledgements_of_other_partitions_count_although_a_dead_letter_fails() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let extra = "message.max.bytes=1500";
            let mut broker =
                Broker::start_on_free_port(broker::Kind::Kafka, &scratch.path().join("broker"), extra).await.unwrap();
            scratch.guard(broker.process()).unwrap();
            let (kafka, topic) = (broker.settings("test"), unique_topic());
            let service = service_without_relay().await;
            let mut relay =
                relay(&service, Settings { lease: Duration::from_secs(60), ..settings(kafka.clone(), &topic) });
            take_lease(&service, &relay).await;
            // One that is too large, and a good one behind it, on one partition; others on all three.
            let jane = service.register("Jane Doe").await;
            execute(&service, "UPDATE outbox SET value = decode(repeat('00', 3000), 'hex')").await;
            service.client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
            for n in 0..12 {
                service.register(&format!("Patient {n}")).await;
            }
            let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'as the test wants it'; END $$";
            execute(&service, fail).await;
            let trigger =
                "CREATE TRIGGER fail BEFORE INSERT ON outbox_dead_letters FOR EACH ROW EXECUTE FUNCTION fail()";
            execute(&service, trigger).await;
            let waiting = async || service.number("SELECT count(*) FROM outbox").await;
            assert!(relay.step().await.unwrap().published > 0);
            // The partition of the one that is too large waits; the others get all of theirs.
            let for_others = "SELECT count(*) FROM outbox
                WHERE key_hash % 3 <> (SELECT key_hash % 3 FROM outbox ORDER BY id LIMIT 1)";
            let others_done = async || {
                let _ = relay.step().await;
                service.number(for_others).await == 0
            };
            service.until("the others are published and deleted", others_done).await;
            let sent = count_all(&kafka, &topic).await;
            assert_eq!(sent as i64, 14 - waiting().await);
            for _ in 0..20 {
                let step = relay.step().await;
                assert!(matches!(step, Ok(Step { published: 0, .. }) | Err(StepError::Database(_))), "{step:?}");
                smol::Timer::after(Duration::from_millis(20)).await;
            }
            assert_eq!(count_all(&kafka, &topic).await, sent, "none was sent again");

            execute(&service, "DROP TRIGGER fail ON outbox_dead_letters").await;
            let drained = async || {
                let _ = relay.step().await;
                waiting().await == 0
            };
            service.until("the rest goes on", drained).await;
            assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 1);
            assert_eq!(count_all(&kafka, &topic).await, 13, "each was sent once");
            service.stop().await;
        });
    }

    /// Nisshi takes records of any size.
    /// As with a clock that is wrong. Nothing of it is the events' fault.
    #[test]
    fn events_with_a_timestamp_that_the_topic_rejects_stay_pending_until_it_accepts_them() {
        runtime::block_on(2, async {
            let (kafka, topic) = (testbed::shared_broker(broker::Kind::Kafka).await, unique_topic());
            kafka::create_topic(&kafka, &topic, 3).await.unwrap();
            let before = "message.timestamp.before.max.ms";
            // Every record is older when it arrives, unless it is there within the millisecond.
            kafka::testing::set_topic_setting(&kafka, &topic, before, "0").await.unwrap();
            let service = service_without_relay().await;
            let jane = service.register("Jane Doe").await;
            let mut relay = relay(&service, settings(kafka.clone(), &topic));
            let (mut changes, mut rejections) = (1, 0);
            let end = Instant::now() + Duration::from_secs(60);
            while rejections < 3 {
                assert!(Instant::now() < end, "the topic takes every record");
                if service.number("SELECT count(*) FROM outbox").await < 5 {
                    service.client.put(&path(&jane), &patient(&format!("Jane {changes}"))).await.unwrap();
                    changes += 1;
                }
                take_lease(&service, &relay).await;
                if let Err(StepError::Kafka(error)) = relay.step().await {
                    let text = error.to_string();
                    for word in ["InvalidTimestamp", "clock", before, "message.timestamp.after.max.ms"] {
                        assert!(text.contains(word), "{text}");
                    }
                    assert_eq!(error.cause(), "InvalidTimestamp");
                    rejections += 1;
                }
            }
            assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 0);
            assert!(service.number("SELECT count(*) FROM outbox").await > 0);

            kafka::testing::set_topic_setting(&kafka, &topic, before, "3600000").await.unwrap();
            until_drained(&service, &mut relay).await;
            let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
            let versions: Vec<_> =
                read_all(&kafka, &topic, partition).await.iter().map(|r| decode(r).version.unwrap()).collect();
            assert_eq!(versions, (1..=changes).collect::<Vec<_>>());
            assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 0);
            service.stop().await;
        });
    }

    /// The broker takes what it is sent and then reads nothing for longer than the deadline of a call.
    #[test]
    fn a_producer_quota_delays_events_and_repeats_none() {
        const EVENTS: usize = 130;
        runtime::block_on(2, async {
            let (kafka, topic) = (testbed::shared_broker(broker::Kind::Kafka).await, unique_topic());
            kafka::create_topic(&kafka, &topic, 3).await.unwrap();
            kafka::testing::set_quotas(&kafka, "throttled-relay", Some(2048.0), None).await.unwrap();
            let throttled = kafka::Settings { client_id: "throttled-relay", ..kafka.clone() };
            let service = service_without_relay().await;
            let mut relay = relay(&service, settings(throttled, &topic));
            let (mut registered, mut silent) = (0, 0);
            let end = Instant::now() + Duration::from_secs(180);
            // The quota is in force a moment after it was set.
            while registered < EVENTS || silent == 0 || service.number("SELECT count(*) FROM outbox").await > 0 {
                assert!(Instant::now() < end, "{registered} registered, {silent} steps were silent");
                // Many at once, and then some for as long as the broker is silent.
                let more = match registered {
                    0 => EVENTS - 30,
                    _ => usize::from(registered < EVENTS || silent == 0),
                };
                for _ in 0..more {
                    service.register(&format!("Patient {registered}")).await;
                    registered += 1;
                }
                take_lease(&service, &relay).await;
                let step = relay.step().await.expect("throttled is not unavailable");
                silent += usize::from(step.read == 0);
            }
            let mut events = Vec::new();
            for partition in 0..3 {
                events.extend(read_all(&kafka, &topic, partition).await.iter().map(|r| decode(r).patient_id));
            }
            assert_eq!(events.len(), registered, "no event came twice");
            events.sort_unstable();
            events.dedup();
            assert_eq!(events.len(), registered);
            service.stop().await;
        });
    }

    #[test]
    fn an_event_that_is_too_large_is_dead_lettered_and_blocks_no_other() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let extra = "message.max.bytes=1500";
            let mut broker =
                Broker::start_on_free_port(broker::Kind::Kafka, &scratch.path().join("broker"), extra).await.unwrap();
            scratch.guard(broker.process()).unwrap();
            let (kafka, topic) = (broker.settings("test"), unique_topic());
            let service = service_without_relay().await;
            let jane = service.register("Jane Doe").await;
            let large = async |connection: &mut PgConnection| {
                let statement = "INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value)
                    SELECT patient_id, key_hash, gen_random_uuid(), event_type, decode(repeat('00', 3000), 'hex') FROM outbox";
                postgres::query(statement).execute(connection).await
            };
            service.database.run(large).await.unwrap();
            for n in 0..10 {
                service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap();
            }
            let mut relay = relay(&service, settings(kafka.clone(), &topic));
            assert_eq!(drain(&service, &mut relay).await, 12);
            assert_eq!(
                service.number("SELECT count(*) FROM outbox_dead_letters WHERE error LIKE '%TooLarge%'").await,
                1
            );
            let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
            let versions: Vec<_> =
                read_all(&kafka, &topic, partition).await.iter().map(|r| decode(r).version.unwrap()).collect();
            assert_eq!(versions, (1..=11).collect::<Vec<_>>());
            assert_eq!(json!(versions.len()), 11);
            service.stop().await;
        });
    }
}
