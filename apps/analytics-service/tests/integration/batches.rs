//! Batches that are not what they seem: parts of transactions, and those that cannot be read.

use std::time::{Duration, Instant};

use codec::event::Kind::{Created, Updated};
use kafka::testing::{Codec, TransactionalProducer, bomb, send_batch};
use serde_json::json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{record, with_topic};

// Nisshi gives what was aborted like anything else, and no batch that is larger than asked for.
testbed::on_each_kafka!(
    what_was_aborted_does_not_count_and_leaves_no_lag,
    a_transaction_that_is_not_ended_is_told_while_it_holds_a_partition_up,
    a_bomb_is_a_dead_letter_and_holds_up_nothing,
    of_a_record_that_is_too_large_to_be_kept_a_dead_letter_has_the_offset
);

fn what_was_aborted_does_not_count_and_leaves_no_lag(kind: broker::Kind) {
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

fn a_transaction_that_is_not_ended_is_told_while_it_holds_a_partition_up(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let mut producer =
            TransactionalProducer::new(topic.kafka.clone(), &topic.topic, Duration::from_secs(300)).await.unwrap();
        producer.send(&topic.topic, 0, &[record(Uuid::now_v7(), Created, 1)]).await.unwrap();
        topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        let held_up = format!("kafka_records_held_up{{partition=\"0\",topic=\"{}\"}} ", topic.topic);
        let until_held_up = async |records: i64| {
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                let page = service.get("/metrics").await.text();
                let value = page.lines().find_map(|line| line.strip_prefix(&held_up)).map(str::to_owned);
                if value == Some(records.to_string()) {
                    return;
                }
                assert!(Instant::now() < end, "{value:?} records are held up, not {records}");
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        };
        until_held_up(2).await;
        assert_eq!(service.summary().await["created"], 0, "what comes after it may not be read yet");
        producer.end(true).await.unwrap();
        assert_eq!(service.until_applied(3).await["created"], 2);
        until_held_up(0).await;
        service.stop().await;
    });
}

fn a_bomb_is_a_dead_letter_and_holds_up_nothing(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let kafka = kafka::Settings { deadline: Duration::from_secs(30), ..topic.kafka.clone() };
        send_batch(&kafka, &topic.topic, 0, bomb(Codec::Zstd, 100 << 20)).await.unwrap();
        topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        let summary = service.until_applied(2).await;
        assert_eq!(summary["created"], 1);
        let letters = service.get("/analytics/dead-letters").await.json();
        let error = letters[0]["error"].as_str().unwrap();
        assert_eq!((&letters[0]["partition"], &letters[0]["offset"]), (&json!(0), &json!(0)));
        assert!(error.contains("the batch of offsets 0 to 0") && error.contains("16 MiB"), "{error}");
        service.stop().await;
    });
}

fn of_a_record_that_is_too_large_to_be_kept_a_dead_letter_has_the_offset(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let kafka = kafka::Settings { deadline: Duration::from_secs(30), ..topic.kafka.clone() };
        send_batch(&kafka, &topic.topic, 0, bomb(Codec::Zstd, 4 << 20)).await.unwrap();
        topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        let summary = service.until_applied(2).await;
        assert_eq!(summary["created"], 1);
        let letters = service.get("/analytics/dead-letters").await.json();
        let error = letters[0]["error"].as_str().unwrap();
        assert_eq!((&letters[0]["offset"], &letters[0]["valueBytes"]), (&json!(0), &json!(0)));
        assert!(error.contains("bytes none are kept"), "{error}");
        service.stop().await;
    });
}
