//! What is committed is published: in order, at least once, and whatever holds the relay up.

use testbed::until;

use super::*;

testbed::on_each_broker!(
    events_arrive_in_order_with_their_headers,
    a_topic_is_created_and_keys_determine_the_partition,
    what_requests_hand_over_is_sent_once_and_in_order,
    a_late_commit_is_not_skipped,
    a_broker_that_was_away_gets_everything,
    a_repeated_batch_repeats_events_and_loses_none,
    a_blocked_deletion_blocks_no_event,
    events_that_cannot_be_deleted_are_deleted_later_and_not_sent_again,
);

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
        assert_eq!(events.iter().map(|event| event.birth_year).collect::<Vec<_>>(), [Some(1990), Some(1990), None]);
        assert!(
            events.iter().all(|event| event.registered_date.is_some() && event.patient_id.to_string() == id(&jane))
        );
        for (record, name) in records.iter().zip(["PATIENT_CREATED", "PATIENT_UPDATED", "PATIENT_DELETED"]) {
            let text = |header: &str| codec::headers::text(&record.record.headers, header).unwrap();
            assert_eq!(record.record.key.as_deref(), Some(id(&jane).as_bytes()));
            assert_eq!((text("ce_type"), text("ce_specversion"), text("ce_source")), (name, "1.0", "/patient-service"));
            assert_eq!(text("content-type"), "application/protobuf");
            assert!(text("ce_id").parse::<uuid::Uuid>().is_ok());
            assert!(telemetry::TraceContext::parse(text("traceparent")).is_some());
        }
        let deletion = records[2].record.value.as_ref().unwrap();
        assert!(
            !String::from_utf8_lossy(deletion).contains("jane"),
            "the event of a deletion has neither name nor email"
        );
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
        until("the relay has its lease", has_lease).await;
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
        until("nothing is left", async || service.number("SELECT count(*) FROM outbox").await == 0).await;
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
        // The low watermark passes the sent events with the next step that publishes.
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
        // The full read every 30 s would find it too.
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
        until("the first event is published", async || waiting().await == 0).await;

        broker.process().kill().await;
        for n in 0..5 {
            let started = Instant::now();
            assert_eq!(service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap().status, 200);
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        assert_eq!(waiting().await, 5);
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        until("all events are published", async || waiting().await == 0).await;

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
        let mut relay = relay_with_lease(&service, settings(kafka.clone(), &topic)).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;

        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 });
        service.register("John Doe").await;
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 }, "the first is not read again");
        assert_eq!(waiting().await, 2, "nothing could be deleted");

        session.execute("ROLLBACK").await.unwrap();
        until("both are deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
        assert_eq!(count_all(&kafka, &topic).await, 2);
        service.stop().await;
    });
}

fn events_that_cannot_be_deleted_are_deleted_later_and_not_sent_again(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let database = testbed::shared_database().await;
        let service = service_without_relay_on(&database, "1s").await;
        let mut relay = relay_with_lease(&service, settings(kafka.clone(), &topic)).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;

        // One row is locked for longer than a deletion takes, the other is deleted around it.
        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        service.register("John Doe").await;
        assert_eq!(relay.step().await.unwrap(), Step { read: 2, published: 2 });
        let one_left = async || relay.step().await.unwrap().read == 0 && waiting().await == 1;
        until("the one that nobody has locked is deleted", one_left).await;
        session.execute("ROLLBACK").await.unwrap();
        until("both are deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;

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
        until("it is deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
        assert_eq!(count_all(&kafka, &topic).await, 3, "each was sent once");
        service.stop().await;
    });
}
