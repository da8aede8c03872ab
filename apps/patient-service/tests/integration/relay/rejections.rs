//! What the broker rejects or delays: events too large or too old, quotas. On Kafka alone: Nisshi takes records of any size.

use std::collections::BTreeMap;

use patient_service::relay::RelayWaker;
use runtime::Shutdown;
use testbed::until;

use super::*;

#[test]
fn acknowledgements_of_other_partitions_count_although_a_dead_letter_fails() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let broker = broker_of_small_records(&scratch).await;
        let (kafka, topic) = (broker.settings("test"), unique_topic());
        let service = service_without_relay().await;
        let mut relay = relay_with_lease(&service, settings(kafka.clone(), &topic)).await;
        // One that is too large, and a good one behind it, on one partition; others on all three.
        let jane = service.register("Jane Doe").await;
        execute(&service, "UPDATE outbox SET value = decode(repeat('00', 3000), 'hex')").await;
        service.client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
        let in_its_partition = "SELECT count(*) FROM outbox
            WHERE key_hash % 3 = (SELECT key_hash % 3 FROM outbox ORDER BY id LIMIT 1)";
        let mut registered = 0;
        while registered < 12 || service.number(in_its_partition).await < 3 {
            service.register(&format!("Patient {registered}")).await;
            registered += 1;
        }
        let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'as the test wants it'; END $$";
        execute(&service, fail).await;
        let trigger = "CREATE TRIGGER fail BEFORE INSERT ON outbox_dead_letters FOR EACH ROW EXECUTE FUNCTION fail()";
        execute(&service, trigger).await;
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;
        assert!(relay.step().await.unwrap().published > 0);
        // The partition of the one that is too large waits; the others get all of theirs.
        let for_others = "SELECT count(*) FROM outbox
            WHERE key_hash % 3 <> (SELECT key_hash % 3 FROM outbox ORDER BY id LIMIT 1)";
        let mut is_tried = false;
        let others_done = async || {
            is_tried |= matches!(relay.step().await, Err(StepError::Database(_)));
            is_tried && service.number(for_others).await == 0
        };
        until("the others are published and deleted", others_done).await;
        let sent = count_all(&kafka, &topic).await;
        assert_eq!(sent as i64, registered + 2 - waiting().await);
        let mut failures = 0;
        let failed_again = async || {
            let step = relay.step().await;
            assert!(matches!(step, Ok(Step { published: 0, .. }) | Err(StepError::Database(_))), "{step:?}");
            failures += usize::from(step.is_err());
            failures == 3
        };
        until("the dead letter fails again", failed_again).await;
        assert_eq!(count_all(&kafka, &topic).await, sent, "none was sent again");

        execute(&service, "DROP TRIGGER fail ON outbox_dead_letters").await;
        let drained = async || {
            let _ = relay.step().await;
            waiting().await == 0
        };
        until("the rest goes on", drained).await;
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 1);
        assert_eq!(count_all(&kafka, &topic).await as i64, registered + 1, "each was sent once");
        service.stop().await;
    });
}

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

/// A rejected batch is halved, and its rejection counts towards the quota.
#[test]
fn a_quota_between_two_halves_of_a_batch_does_not_delay_the_shutdown() {
    const CLIENT: &str = "rejected-relay";
    runtime::block_on(2, async {
        let (kafka, topic, accepting) =
            (testbed::shared_broker(broker::Kind::Kafka).await, unique_topic(), unique_topic());
        let throttled = kafka::Settings { client_id: CLIENT, ..kafka.clone() };
        for name in [&topic, &accepting] {
            kafka::create_topic(&kafka, name, 1).await.unwrap();
        }
        kafka::testing::set_topic_setting(&kafka, &topic, "max.message.bytes", "1").await.unwrap();
        let service = service_without_relay().await;
        for n in 0..8 {
            service.register(&format!("Patient {n}")).await;
        }
        // The quota is in force a moment after it was set, and then delays the relay's second request by minutes.
        kafka::testing::set_quotas(&kafka, CLIENT, Some(10.0), None).await.unwrap();
        let mut producer = kafka::Producer::new(throttled.clone(), &accepting);
        let record = kafka::Record {
            key: None,
            value: Some(vec![0; 10_000]),
            headers: Vec::new(),
            timestamp: chrono::Utc::now(),
        };
        while producer.throttled().is_empty() {
            producer.send(BTreeMap::from([(0, vec![record.clone()])])).await.remove(&0).unwrap().unwrap();
        }
        let responses = async || {
            let metrics = service.get("/metrics").await;
            metrics.metric("kafka_throttled_total{request=\"Produce\"}").unwrap_or_default()
        };
        let before = responses().await;
        let relay = relay(&service, Settings { partitions: 1, ..settings(throttled, &topic) });
        take_lease(&service, &relay).await;
        let shutdown = Shutdown::new();
        let running = runtime::spawn(relay.run(RelayWaker::new(1), shutdown.clone()));
        until("its first request is throttled", async || responses().await > before).await;
        shutdown.trigger();
        runtime::timeout(Duration::from_secs(20), running).await.unwrap();
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 8);
        service.stop().await;
    });
}

/// Nisshi takes records of any size.
#[test]
fn an_event_that_is_too_large_is_dead_lettered_and_blocks_no_other() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let broker = broker_of_small_records(&scratch).await;
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
        let mut relay = relay_with_lease(&service, settings(kafka.clone(), &topic)).await;
        let mut published = 0;
        let her_first = async || {
            take_lease(&service, &relay).await;
            published += relay.step().await.unwrap().published;
            service.number("SELECT count(*) FROM outbox").await == 11
        };
        until("her first event is published", her_first).await;
        let mut rejections = 0;
        let rejected_again = async || {
            take_lease(&service, &relay).await;
            let step = relay.step().await.unwrap();
            assert_eq!(step.published, 0, "hers wait until the broker has accepted another one");
            // A step reads nothing while her partition is paused.
            rejections += usize::from(step.read > 0);
            rejections == 3
        };
        until("her event is rejected again", rejected_again).await;
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 0);
        service.register("John Doe").await;
        assert_eq!(published + drain(&service, &mut relay).await, 12);
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters WHERE error LIKE '%TooLarge%'").await, 1);
        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let records = read_all(&kafka, &topic, partition).await;
        let hers = records.iter().map(decode).filter(|event| event.patient_id.to_string() == id(&jane));
        assert_eq!(hers.map(|event| event.version).collect::<Vec<_>>(), (1..=11).map(Some).collect::<Vec<_>>());
        service.stop().await;
    });
}

#[test]
fn a_topic_that_rejects_every_event_is_reported_and_dead_letters_none() {
    runtime::block_on(2, async {
        let (kafka, topic) = (testbed::shared_broker(broker::Kind::Kafka).await, unique_topic());
        kafka::create_topic(&kafka, &topic, 3).await.unwrap();
        // As if it were in MiB.
        kafka::testing::set_topic_setting(&kafka, &topic, "max.message.bytes", "1").await.unwrap();
        let service = service_without_relay().await;
        let jane = service.register("Jane Doe").await;
        for n in 0..3 {
            service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap();
        }
        for n in 0..8 {
            service.register(&format!("Patient {n}")).await;
        }
        let state = BrokerState::default();
        let outbox = Outbox::new(service.database.clone());
        let relay = Relay::new(outbox, settings(kafka.clone(), &topic), 0, state.clone());
        take_lease(&service, &relay).await;
        let shutdown = Shutdown::new();
        let running = runtime::spawn(relay.run(RelayWaker::new(1), shutdown.clone()));
        until("it is reported", async || state.error().is_some()).await;
        let error = state.error().unwrap();
        for word in ["MessageTooLarge", "max.message.bytes", &topic] {
            assert!(error.contains(word), "{error}");
        }
        let in_a_row = |error: String| error.split_once(" events in a row")?.0.rsplit(' ').next()?.parse().ok();
        let tried = async || state.error().and_then(in_a_row).is_some_and(|count: u32| count > 20);
        until("more are rejected than there are events", tried).await;
        let rejected = async || service.number("SELECT count(*) FROM outbox_dead_letters").await;
        assert_eq!((rejected().await, service.number("SELECT count(*) FROM outbox").await), (0, 12));

        kafka::testing::set_topic_setting(&kafka, &topic, "max.message.bytes", "1048588").await.unwrap();
        until("all are published", async || service.number("SELECT count(*) FROM outbox").await == 0).await;
        until("it is over", async || state.error().is_none()).await;
        shutdown.trigger();
        running.await;
        assert_eq!(rejected().await, 0);
        assert_eq!(count_all(&kafka, &topic).await, 12);
        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let records = read_all(&kafka, &topic, partition).await;
        let mut versions: Vec<_> = records.iter().map(decode).collect();
        versions.retain(|event| event.patient_id.to_string() == id(&jane));
        assert_eq!(versions.iter().map(|event| event.version).collect::<Vec<_>>(), [1, 2, 3, 4].map(Some));
        service.stop().await;
    });
}
