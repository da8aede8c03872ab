//! Batches of transactions, and batches that cannot be read.

use std::time::{Duration, Instant};

use codec::event::EventKind::{Created, Updated};
use kafka::testing::{Codec, TransactionalProducer, bomb, send_batch};
use serde_json::{Value as Json, json};
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, record, with_topic};

// Nisshi returns aborted records like others, and never a batch above the fetch size.
testbed::on_each_kafka!(
    records_of_an_aborted_transaction_are_not_counted_and_leave_no_lag,
    an_open_transaction_is_reported_while_it_blocks_a_partition,
    a_decompression_bomb_is_dead_lettered_and_blocks_nothing,
    a_dead_letter_of_a_record_that_is_too_large_has_only_its_offset
);

fn records_of_an_aborted_transaction_are_not_counted_and_leave_no_lag(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let (aborted, committed) = (Uuid::now_v7(), Uuid::now_v7());
        let mut producer =
            TransactionalProducer::new(topic.kafka.clone(), &topic.topic, Duration::from_secs(60)).await.unwrap();
        let events: Vec<_> = (1..4).map(|version| record(aborted, Updated, version)).collect();
        producer.send(&topic.topic, 0, &events).await.unwrap();
        producer.end(false).await.unwrap();
        producer.send(&topic.topic, 0, &[record(committed, Created, 1)]).await.unwrap();
        producer.end(true).await.unwrap();
        let service = topic.start(&[]).await;
        // Four events and two markers.
        let summary = service.until_applied(6).await;
        assert_eq!(
            (&summary["activePatients"], &summary["created"], &summary["updated"]),
            (&json!(1), &json!(1), &json!(0))
        );
        assert!(summary["partitions"].as_array().unwrap().iter().all(|partition| partition["lag"] == 0), "{summary}");
        service.stop().await;
    });
}

fn an_open_transaction_is_reported_while_it_blocks_a_partition(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let mut producer =
            TransactionalProducer::new(topic.kafka.clone(), &topic.topic, Duration::from_secs(300)).await.unwrap();
        producer.send(&topic.topic, 0, &[record(Uuid::now_v7(), Created, 1)]).await.unwrap();
        topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        let blocked = format!("kafka_records_held_up{{partition=\"0\",topic=\"{}\"}}", topic.topic);
        let until_blocked = async |records: i64| {
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                let value = service.get("/metrics").await.metric(&blocked);
                if value == Some(records as f64) {
                    return;
                }
                assert!(Instant::now() < end, "{value:?} records are blocked, not {records}");
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        };
        until_blocked(2).await;
        assert_eq!(service.summary().await["created"], 0, "later records may not be read yet");
        producer.end(true).await.unwrap();
        assert_eq!(service.until_applied(3).await["created"], 2);
        until_blocked(0).await;
        service.stop().await;
    });
}

/// The dead letter of a record whose value decompresses to this many bytes. A later event has to be counted.
async fn dead_letter_of_bomb(mut topic: Harness, bytes: usize) -> Json {
    let kafka = kafka::Settings { deadline: Duration::from_secs(30), ..topic.kafka.clone() };
    send_batch(&kafka, &topic.topic, 0, bomb(Codec::Zstd, bytes)).await.unwrap();
    topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
    let service = topic.start(&[]).await;
    assert_eq!(service.until_applied(2).await["created"], 1);
    let dead_letter = service.get("/analytics/dead-letters").await.json()[0].take();
    service.stop().await;
    dead_letter
}

fn a_decompression_bomb_is_dead_lettered_and_blocks_nothing(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let dead_letter = dead_letter_of_bomb(topic, 100 << 20).await;
        let error = dead_letter["error"].as_str().unwrap();
        assert_eq!((&dead_letter["partition"], &dead_letter["offset"]), (&json!(0), &json!(0)));
        assert!(error.contains("the batch of offsets 0 to 0") && error.contains("16 MiB"), "{error}");
    });
}

fn a_dead_letter_of_a_record_that_is_too_large_has_only_its_offset(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let dead_letter = dead_letter_of_bomb(topic, 4 << 20).await;
        let error = dead_letter["error"].as_str().unwrap();
        assert_eq!((&dead_letter["offset"], &dead_letter["valueBytes"]), (&json!(0), &json!(0)));
        assert!(error.contains("bytes none are kept"), "{error}");
    });
}
