//! Dead letters that their topic rejects, or that the state does not take as forwarded.

use std::time::{Duration, Instant};

use kafka::{Consumer, Record, testing::set_topic_setting};
use serde_json::Value as Json;
use testbed::{broker, until};

use crate::harness::{Harness, Running, foreign, with_topic};

// Nisshi accepts records of any size.
testbed::on_each_kafka!(
    dead_letters_wait_while_their_topic_rejects_everything,
    a_dead_letter_that_its_topic_rejects_is_forwarded_without_its_content,
    a_dead_letter_without_a_key_blocks_no_other_if_its_topic_is_compacted,
    dead_letters_that_cannot_be_marked_as_forwarded_are_reported_and_sent_again_after_pauses
);

/// A service with dead letters for a topic that takes records of so many bytes.
async fn start(topic: &mut Harness, max_bytes: &str, records: Vec<Record>) -> Running {
    start_with(topic, ("max.message.bytes", max_bytes), records).await
}

/// A service with dead letters for a topic with this setting.
async fn start_with(topic: &mut Harness, (name, value): (&str, &str), records: Vec<Record>) -> Running {
    kafka::create_topic(&topic.kafka, &topic.dead_letter_topic(), 1).await.unwrap();
    set_topic_setting(&topic.kafka, &topic.dead_letter_topic(), name, value).await.unwrap();
    let count = records.len() as i64;
    for record in records {
        topic.send(0, vec![record]).await;
    }
    let service = topic.start(&[]).await;
    service.until_applied(count).await;
    service
}

/// Whether each dead letter is forwarded, by offset.
async fn is_forwarded(service: &Running) -> Vec<bool> {
    let letters = service.get("/analytics/dead-letters").await.json();
    letters.as_array().unwrap().iter().rev().map(|letter| letter["forwarded"] == true).collect()
}

async fn status(service: &Running) -> Json {
    service.get("/actuator/health/readiness").await.json()["components"]["deadLetters"].clone()
}

/// The key, the value, and the error, of each dead letter on the topic.
async fn forwarded(topic: &Harness) -> Vec<(Option<Vec<u8>>, Option<Vec<u8>>, String)> {
    let mut consumer = Consumer::new(topic.kafka.clone(), topic.dead_letter_topic(), 0);
    let fetched = consumer.fetch(0, 1 << 20, Duration::from_millis(100)).await.unwrap();
    let record = |record: Record| {
        let error = codec::headers::text(&record.headers, "dead-letter-error").unwrap_or_default().to_owned();
        (record.key, record.value, error)
    };
    fetched.records.iter().map(|found| record(found.to_record().record)).collect()
}

fn dead_letters_wait_while_their_topic_rejects_everything(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        // As if it were in MiB.
        let service = start(&mut topic, "1", vec![foreign("one"), foreign("two")]).await;
        until("it is reported", async || status(&service).await["status"] == "DEGRADED").await;
        assert!(status(&service).await.to_string().contains("MessageTooLarge"), "{}", status(&service).await);
        assert_eq!(is_forwarded(&service).await, [false, false]);
        set_topic_setting(&topic.kafka, &topic.dead_letter_topic(), "max.message.bytes", "1048588").await.unwrap();
        until("they are forwarded", async || is_forwarded(&service).await == [true, true]).await;
        let values: Vec<_> = forwarded(&topic).await.into_iter().map(|(_, value, _)| value.unwrap()).collect();
        assert_eq!(values, [b"one", b"two"]);
        until("it is over", async || status(&service).await["status"] == "UP").await;
        service.stop().await;
    });
}

fn a_dead_letter_that_its_topic_rejects_is_forwarded_without_its_content(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let large = foreign(vec![0xff; 3_000]);
        let large_key = Record { key: Some(vec![0xff; 3_000]), ..foreign("key") };
        let service = start(&mut topic, "1000", vec![foreign("one"), large, large_key, foreign("two")]).await;
        until("they are forwarded", async || is_forwarded(&service).await == [true; 4]).await;
        let found = forwarded(&topic).await;
        let values: Vec<_> = found.iter().map(|(_, value, _)| value.as_deref()).collect();
        assert_eq!(values, [Some(&b"one"[..]), None, None, Some(b"two")]);
        for (.., error) in &found[1..3] {
            assert!(
                error.contains("no PatientEvent") && error.ends_with("which is on the topic of events only"),
                "{error}"
            );
        }
        service.stop().await;
    });
}

fn a_dead_letter_without_a_key_blocks_no_other_if_its_topic_is_compacted(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let with_key = |value: &str| Record { key: Some(b"key".to_vec()), ..foreign(value) };
        let records = vec![with_key("one"), foreign("no key"), with_key("two")];
        let service = start_with(&mut topic, ("cleanup.policy", "compact"), records).await;
        until("they are forwarded", async || is_forwarded(&service).await == [true; 3]).await;
        let found = forwarded(&topic).await;
        let (key, keyless) = (Some(&b"key"[..]), Some(&b"0-1"[..]));
        let contents: Vec<_> = found.iter().map(|(key, value, _)| (key.as_deref(), value.as_deref())).collect();
        assert_eq!(contents, [(key, Some(&b"one"[..])), (keyless, None), (key, Some(b"two"))]);
        assert!(found[1].2.ends_with("which is on the topic of events only"), "{}", found[1].2);
        assert_eq!(status(&service).await["status"], "UP");
        service.stop().await;
    });
}

/// As on a full disk.
fn dead_letters_that_cannot_be_marked_as_forwarded_are_reported_and_sent_again_after_pauses(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let service = start(&mut topic, "1048588", vec![foreign("one")]).await;
        until("the first one is forwarded", async || is_forwarded(&service).await == [true]).await;
        service.stop().await;
        let fail = "CREATE TRIGGER fail BEFORE UPDATE ON dead_letters
            BEGIN SELECT raise(ABORT, 'as the test wants it'); END";
        topic.execute_in_state(fail).await;
        topic.send(0, vec![foreign("two")]).await;
        let service = topic.start(&[]).await;
        until("it is reported", async || status(&service).await["status"] == "DEGRADED").await;
        let status_now = status(&service).await.to_string();
        assert!(status_now.contains("cannot be marked: as the test wants it"), "{status_now}");
        let sent_before = forwarded(&topic).await.len();
        let begun = Instant::now();
        until("it is sent again", async || forwarded(&topic).await.len() >= sent_before + 3).await;
        // Of 200 ms, 400 ms and so on, at least half; the first one may be nearly over.
        assert!(begun.elapsed() > Duration::from_millis(300), "{:?}", begun.elapsed());
        assert_eq!(is_forwarded(&service).await, [true, false]);
        service.stop().await;

        topic.execute_in_state("DROP TRIGGER fail").await;
        let service = topic.start(&[]).await;
        until("it is marked", async || is_forwarded(&service).await == [true, true]).await;
        assert_eq!(status(&service).await["status"], "UP");
        service.stop().await;
    });
}
