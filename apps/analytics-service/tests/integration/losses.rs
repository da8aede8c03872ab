//! The next record is gone: the topic was made anew, or its records were deleted.

use codec::event::Kind::Created;
use serde_json::json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, with_topic_to_delete};

testbed::on_each_broker!(
    a_topic_made_anew_is_told_loudly_and_the_state_can_be_built_anew,
    a_topic_made_anew_while_it_is_read_is_noticed,
    with_continue_it_goes_on,
);

async fn make_anew(topic: &mut Harness, patients: usize) {
    match kafka::delete_topic(&topic.kafka, &topic.topic).await {
        // A broker may have done it with an attempt that it did not acknowledge.
        Ok(()) | Err(kafka::Error::UnknownTopic) => {}
        Err(error) => panic!("{error}"),
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // A broker deletes a topic a little after it said so.
    while !matches!(kafka::create_topic(&topic.kafka, &topic.topic, PARTITIONS).await, Ok(true)) {
        assert!(std::time::Instant::now() < end);
        smol::Timer::after(std::time::Duration::from_millis(100)).await;
    }
    let name = topic.topic.clone();
    let events: Vec<_> = (0..patients).map(|_| (Uuid::now_v7(), Created, 1)).collect();
    topic.publish_to(&name, &events).await;
}

fn a_topic_made_anew_is_told_loudly_and_the_state_can_be_built_anew(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let events: Vec<_> = (0..40).map(|_| (Uuid::now_v7(), Created, 1)).collect();
        topic.publish(&events).await;
        let service = topic.start(&[]).await;
        service.until_applied(40).await;
        service.stop().await;

        // With more records than before, offsets alone would look right.
        for patients in [5, 100] {
            make_anew(&mut topic, patients).await;
            let service = topic.start(&[]).await;
            service
                .until("it is halted", |summary| {
                    let partitions = summary["partitions"].as_array().unwrap();
                    !partitions.is_empty() && partitions.iter().all(|partition| partition["halted"].is_string())
                })
                .await;
            let readiness = service.get("/actuator/health/readiness").await;
            assert_eq!(
                (readiness.status, readiness.json()["components"]["intake"]["status"].clone()),
                (503, json!("DOWN"))
            );
            assert_eq!(service.summary().await["activePatients"], 40, "nothing was reset silently");
            service.stop().await;
        }

        for file in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
            let _ = std::fs::remove_file(topic.state.with_file_name(file));
        }
        let service = topic.start(&[]).await;
        assert_eq!(service.until_applied(100).await["activePatients"], 100);
        service.stop().await;
    });
}

fn a_topic_made_anew_while_it_is_read_is_noticed(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let events: Vec<_> = (0..40).map(|_| (Uuid::now_v7(), Created, 1)).collect();
        topic.publish(&events).await;
        let service = topic.start(&[]).await;
        service.until_applied(40).await;
        make_anew(&mut topic, 3).await;
        service
            .until("it is halted", |summary| {
                summary["partitions"].as_array().unwrap().iter().all(|partition| partition["halted"].is_string())
            })
            .await;
        service.stop().await;
    });
}

fn with_continue_it_goes_on(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let events: Vec<_> = (0..40).map(|_| (Uuid::now_v7(), Created, 1)).collect();
        topic.publish(&events).await;
        let service = topic.start(&[]).await;
        service.until_applied(40).await;
        service.stop().await;
        make_anew(&mut topic, 5).await;
        let service = topic.start(&[("ON_OFFSET_LOSS", "continue")]).await;
        assert_eq!(service.until_applied(5).await["activePatients"], 45);
        service.stop().await;
        let service = topic.start(&[]).await;
        assert_eq!(service.until_applied(5).await["activePatients"], 45, "and it knows where it is");
        service.stop().await;
    });
}
