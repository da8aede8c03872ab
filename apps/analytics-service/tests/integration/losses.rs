//! The next record is gone: the topic was made anew, or its records were deleted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::DateTime;
use codec::event::Kind::Created;
use kafka::{Producer, Record};
use serde_json::json;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, Running, record, with_topic_to_delete};

testbed::on_each_broker!(
    a_topic_made_anew_is_told_loudly_and_the_state_can_be_built_anew,
    a_topic_made_anew_while_it_is_read_is_noticed,
    a_topic_made_anew_and_filled_as_far_or_farther_while_it_is_read_is_noticed,
    a_topic_made_anew_with_the_same_records_is_noticed_at_the_start,
    with_continue_it_goes_on,
);

async fn make_anew(topic: &mut Harness, patients: usize) {
    make_anew_empty(topic).await;
    let name = topic.topic.clone();
    let events: Vec<_> = (0..patients).map(|_| (Uuid::now_v7(), Created, 1)).collect();
    topic.publish_to(&name, &events).await;
}

async fn make_anew_empty(topic: &Harness) {
    match kafka::delete_topic(&topic.kafka, &topic.topic).await {
        // A broker may have done it with an attempt that it did not acknowledge.
        Ok(()) | Err(kafka::Error::UnknownTopic) => {}
        Err(error) => panic!("{error}"),
    }
    let end = Instant::now() + Duration::from_secs(30);
    // A broker deletes a topic a little after it said so.
    while !matches!(kafka::create_topic(&topic.kafka, &topic.topic, PARTITIONS).await, Ok(true)) {
        assert!(Instant::now() < end);
        smol::Timer::after(Duration::from_millis(100)).await;
    }
}

/// Records of so many patients in a partition, with the same timestamps whenever they are made.
fn same_records(patients: u128) -> Vec<Record> {
    let timestamp = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    (1..=patients).map(|id| Record { timestamp, ..record(Uuid::from_u128(id), Created, 1) }).collect()
}

async fn until_halted(service: &Running) {
    service
        .until("each partition is halted", |summary| {
            let partitions = summary["partitions"].as_array().unwrap();
            !partitions.is_empty() && partitions.iter().all(|partition| partition["halted"].is_string())
        })
        .await;
    let readiness = service.get("/actuator/health/readiness").await;
    assert_eq!((readiness.status, &readiness.json()["components"]["intake"]["status"]), (503, &json!("DOWN")));
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

fn a_topic_made_anew_and_filled_as_far_or_farther_while_it_is_read_is_noticed(kind: broker::Kind) {
    for (before, after) in [(100, 300), (100, 100)] {
        with_topic_to_delete(kind, |mut topic| async move {
            // Two partitions stay empty: it is another topic for them too.
            topic.send(0, same_records(before)).await;
            let service = topic.start(&[]).await;
            service.until_applied(before as i64).await;
            make_anew_empty(&topic).await;
            for partition in 0..PARTITIONS {
                publish(&topic, partition, same_records(after)).await;
            }
            until_halted(&service).await;
            assert_eq!(service.summary().await["created"], before as i64, "nothing of it is counted");
            service.stop().await;
        });
    }
}

fn a_topic_made_anew_with_the_same_records_is_noticed_at_the_start(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        topic.send(0, same_records(100)).await;
        let service = topic.start(&[]).await;
        service.until_applied(100).await;
        service.stop().await;
        // A state of before knows no id, and takes the one that there is.
        forget_topic_ids(&topic).await;
        let service = topic.start(&[]).await;
        service.until("it reads again", |summary| summary["partitions"][0]["appliedOffset"] == 99).await;
        until_topic_ids(&topic, service).await;

        for records in [100, 300] {
            make_anew_empty(&topic).await;
            for partition in 0..PARTITIONS {
                publish(&topic, partition, same_records(records)).await;
            }
            let service = topic.start(&[]).await;
            until_halted(&service).await;
            assert_eq!(service.summary().await["created"], 100, "nothing of it is counted");
            service.stop().await;
        }
    });
}

/// Publishes to a topic that is new, trying until the broker takes it.
async fn publish(topic: &Harness, partition: i32, records: Vec<Record>) {
    let mut producer = Producer::new(topic.kafka.clone(), &topic.topic);
    let end = Instant::now() + Duration::from_secs(30);
    while producer.send(BTreeMap::from([(partition, records.clone())])).await.values().any(Result::is_err) {
        assert!(Instant::now() < end, "the broker takes nothing");
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

async fn state_of(topic: &Harness) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&topic.state).connect().await.unwrap()
}

async fn forget_topic_ids(topic: &Harness) {
    let mut state = state_of(topic).await;
    sqlx::query("UPDATE positions SET topic_id = NULL").execute(&mut state).await.unwrap();
    state.close().await.unwrap();
}

/// Stops the service once each partition's id is in the state.
async fn until_topic_ids(topic: &Harness, mut service: Running) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        service.stop().await;
        let mut state = state_of(topic).await;
        let noted: i64 =
            sqlx::query_scalar("SELECT count(topic_id) FROM positions").fetch_one(&mut state).await.unwrap();
        state.close().await.unwrap();
        if noted == i64::from(PARTITIONS) {
            return;
        }
        assert!(Instant::now() < end, "{noted} ids are noted");
        service = topic.start(&[]).await;
        // The service has the file to itself; it is looked at between two runs.
        service.until("it reads", |summary| summary["partitions"][0]["appliedOffset"] == 99).await;
        smol::Timer::after(Duration::from_millis(200)).await;
    }
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
