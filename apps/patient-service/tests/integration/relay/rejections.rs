//! What the broker rejects or delays: events too large or too old, quotas. On Kafka alone: Nisshi takes records of any size.

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
        for n in 0..12 {
            service.register(&format!("Patient {n}")).await;
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
        let others_done = async || {
            let _ = relay.step().await;
            service.number(for_others).await == 0
        };
        until("the others are published and deleted", others_done).await;
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
        until("the rest goes on", drained).await;
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
        let mut relay = relay(&service, settings(kafka.clone(), &topic));
        assert_eq!(drain(&service, &mut relay).await, 12);
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters WHERE error LIKE '%TooLarge%'").await, 1);
        let partition = kafka::partitioner::of_hash(kafka::partitioner::key_hash(id(&jane).as_bytes()), 3);
        let versions: Vec<_> =
            read_all(&kafka, &topic, partition).await.iter().map(|r| decode(r).version.unwrap()).collect();
        assert_eq!(versions, (1..=11).collect::<Vec<_>>());
        assert_eq!(json!(versions.len()), 11);
        service.stop().await;
    });
}
