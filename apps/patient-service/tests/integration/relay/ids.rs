//! Ids of the outbox that were given before, as after a restore.

use testbed::until;

use super::*;

testbed::on_each_broker!(
    an_event_with_the_id_of_one_that_was_published_is_published_too,
    ids_that_go_back_delay_no_event,
);

/// After a restore, or a failover to a replica that lagged, ids are given a second time.
fn an_event_with_the_id_of_one_that_was_published_is_published_too(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        let database = testbed::shared_database().await;
        // Longer than the test takes, so that the deletion waits and does not fail.
        let service = service_without_relay_on(&database, "30s").await;
        let mut relay = relay_with_lease(&service, settings(kafka.clone(), &topic)).await;
        service.register("Jane Doe").await;
        let mut session = Session::open(&database).await.unwrap();
        session.execute("BEGIN; SELECT id FROM outbox FOR UPDATE").await.unwrap();
        assert_eq!(relay.step().await.unwrap(), Step { read: 1, published: 1 });
        // While its deletion waits, another event takes its place.
        session.execute("UPDATE outbox SET event_id = gen_random_uuid(); COMMIT").await.unwrap();
        let waiting = async || service.number("SELECT count(*) FROM outbox").await;
        until("it is published", async || relay.step().await.unwrap().published == 1).await;
        until("it is deleted", async || relay.step().await.unwrap().read == 0 && waiting().await == 0).await;
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
            // So that reads soon begin after a published event.
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
            until("all are published", all_published).await;
            // For longer than `late_commit`, while the database responds.
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
fn changes_are_stored_although_the_sequence_is_behind_the_outbox() {
    runtime::block_on(2, async {
        // Neither a relay nor its report of the backlog: the changes find out by themselves.
        let service = service_without_relay().await;
        let mut patients = Vec::new();
        for n in 0..5 {
            patients.push(path(&service.register(&format!("Patient {n}")).await));
        }
        let set_back = "SELECT setval('outbox_id_seq', 1, false)";
        execute(&service, set_back).await;
        service.register("Jane Doe").await;
        execute(&service, set_back).await;
        assert_eq!(service.client.put(&patients[0], &patient("John Doe")).await.unwrap().status, 200);
        execute(&service, set_back).await;
        assert_eq!(service.client.delete(&patients[0]).await.unwrap().status, 204);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 8);
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
        until("it is moved", async || service.number("SELECT last_value FROM outbox_id_seq").await > 5).await;
        service.register("Jane Doe").await;
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 6);
        service.stop().await;
    });
}
