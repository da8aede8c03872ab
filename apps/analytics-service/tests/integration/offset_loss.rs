//! The next record does not exist any more: the topic was recreated, or retention deleted it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::DateTime;
use codec::event::EventKind::{self, Created};
use kafka::{Producer, Record};
use serde_json::json;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use testbed::{broker, until};
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, Running, record, with_topic_to_delete};

testbed::on_each_broker!(
    a_recreated_topic_halts_ingest_until_the_state_is_deleted,
    a_topic_that_is_recreated_while_it_is_read_halts_ingest,
    a_topic_that_is_recreated_and_refilled_while_it_is_read_halts_ingest,
    a_topic_that_was_recreated_with_the_same_records_halts_ingest_at_the_start,
    on_offset_loss_continue_resumes_at_the_earliest_offset,
);

/// A service that has applied the 40 events on the topic.
async fn start_and_apply_40(topic: &mut Harness) -> Running {
    topic.publish(&created(40)).await;
    let service = topic.start(&[]).await;
    service.until_applied(40).await;
    service
}

fn created(patients: usize) -> Vec<(Uuid, EventKind, i64)> {
    (0..patients).map(|_| (Uuid::now_v7(), Created, 1)).collect()
}

async fn recreate(topic: &mut Harness, patients: usize) {
    recreate_empty(topic).await;
    let name = topic.topic.clone();
    topic.publish_to(&name, &created(patients)).await;
}

async fn recreate_empty(topic: &Harness) {
    match kafka::delete_topic(&topic.kafka, &topic.topic).await {
        // An attempt without a response may have deleted it.
        Ok(()) | Err(kafka::Error::UnknownTopic) => {}
        Err(error) => panic!("{error}"),
    }
    // A broker deletes a topic a little after its response.
    until("the topic is created again", async || {
        matches!(kafka::create_topic(&topic.kafka, &topic.topic, PARTITIONS).await, Ok(true))
    })
    .await;
}

/// Records of patients, with the same timestamps at every call.
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
    assert_eq!((readiness.status, &readiness.json()["components"]["ingest"]["status"]), (503, &json!("DOWN")));
}

fn a_recreated_topic_halts_ingest_until_the_state_is_deleted(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let service = start_and_apply_40(&mut topic).await;
        service.stop().await;

        // With more records than before, offsets alone would look right.
        for patients in [5, 100] {
            recreate(&mut topic, patients).await;
            let service = topic.start(&[]).await;
            until_halted(&service).await;
            assert_eq!(service.summary().await["activePatients"], 40, "nothing was reset");
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

fn a_topic_that_is_recreated_while_it_is_read_halts_ingest(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let service = start_and_apply_40(&mut topic).await;
        recreate(&mut topic, 3).await;
        until_halted(&service).await;
        service.stop().await;
    });
}

fn a_topic_that_is_recreated_and_refilled_while_it_is_read_halts_ingest(kind: broker::Kind) {
    for (before, after) in [(100, 300), (100, 100)] {
        with_topic_to_delete(kind, |mut topic| async move {
            // Two partitions stay empty, and have to be halted too.
            topic.send(0, same_records(before)).await;
            let service = topic.start(&[]).await;
            service.until_applied(before as i64).await;
            recreate_empty(&topic).await;
            for partition in 0..PARTITIONS {
                publish(&topic, partition, same_records(after)).await;
            }
            until_halted(&service).await;
            assert_eq!(service.summary().await["created"], before as i64, "nothing of the new topic is counted");
            service.stop().await;
        });
    }
}

fn a_topic_that_was_recreated_with_the_same_records_halts_ingest_at_the_start(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        topic.send(0, same_records(100)).await;
        let service = topic.start(&[]).await;
        service.until_applied(100).await;
        service.stop().await;
        // A state of an older version has no topic id, and takes the current one.
        forget_topic_ids(&topic).await;
        let service = topic.start(&[]).await;
        service.until("it reads again", |summary| summary["partitions"][0]["appliedOffset"] == 99).await;
        until_topic_ids(&topic, service).await;

        for records in [100, 300] {
            recreate_empty(&topic).await;
            for partition in 0..PARTITIONS {
                publish(&topic, partition, same_records(records)).await;
            }
            let service = topic.start(&[]).await;
            until_halted(&service).await;
            assert_eq!(service.summary().await["created"], 100, "nothing of the new topic is counted");
            service.stop().await;
        }
    });
}

/// Publishes to a new topic, and retries until the broker accepts it.
async fn publish(topic: &Harness, partition: i32, records: Vec<Record>) {
    let mut producer = Producer::new(topic.kafka.clone(), &topic.topic);
    until("the broker accepts them", async || {
        producer.send(BTreeMap::from([(partition, records.clone())])).await.values().all(Result::is_ok)
    })
    .await;
}

async fn state_of(topic: &Harness) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&topic.state).connect().await.unwrap()
}

async fn forget_topic_ids(topic: &Harness) {
    let mut state = state_of(topic).await;
    sqlx::query("UPDATE positions SET topic_id = NULL").execute(&mut state).await.unwrap();
    state.close().await.unwrap();
}

/// Stops the service once the state has the topic id of each partition.
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
        assert!(Instant::now() < end, "{noted} ids are saved");
        service = topic.start(&[]).await;
        // The service locks the file, so it is read between two runs.
        service.until("it reads", |summary| summary["partitions"][0]["appliedOffset"] == 99).await;
        smol::Timer::after(Duration::from_millis(200)).await;
    }
}

fn on_offset_loss_continue_resumes_at_the_earliest_offset(kind: broker::Kind) {
    with_topic_to_delete(kind, |mut topic| async move {
        let service = start_and_apply_40(&mut topic).await;
        service.stop().await;
        recreate(&mut topic, 5).await;
        let service = topic.start(&[("ON_OFFSET_LOSS", "continue")]).await;
        assert_eq!(service.until_applied(5).await["activePatients"], 45);
        service.stop().await;
        let service = topic.start(&[]).await;
        assert_eq!(service.until_applied(5).await["activePatients"], 45, "it resumes at its position");
        service.stop().await;
    });
}
