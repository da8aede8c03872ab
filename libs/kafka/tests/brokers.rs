//! The client against real brokers.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "brokers/bombs.rs"]
mod bombs;
#[path = "brokers/damage.rs"]
mod damage;
#[path = "brokers/members.rs"]
mod members;
#[path = "brokers/progress.rs"]
mod progress;
#[path = "brokers/quotas.rs"]
mod quotas;
#[path = "brokers/topics.rs"]
mod topics;
#[path = "brokers/transactions.rs"]
mod transactions;
#[path = "brokers/truncation.rs"]
mod truncation;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kafka::{Consumer, Error, Producer, Record, Records, Settings, create_topic, delete_topic, partitions};
use testbed::{
    Scratch, Signal,
    broker::{Broker, Kind},
};

testbed::on_each_version!(
    records_come_back_in_order,
    headers_keep_their_order_duplicates_and_null_values,
    a_fetch_begins_in_the_middle_of_a_batch,
    a_fetch_at_the_end_waits_for_the_next_record,
    a_missing_topic_is_an_error,
    a_topic_is_created_once,
    a_frozen_broker_costs_the_deadline_and_is_used_again_later,
    a_restarted_broker_is_used_again,
    a_restart_of_the_broker_between_two_sends_is_no_error,
    a_recreated_topic_has_another_id,
);

const WAIT: Duration = Duration::from_millis(200);

fn record(value: impl Into<Vec<u8>>) -> Record {
    let headers = vec![(b"traceparent".to_vec(), Some(b"00-1".to_vec()))];
    Record { key: Some(b"key".to_vec()), value: Some(value.into()), headers, timestamp: chrono::Utc::now() }
}

fn numbered(range: std::ops::Range<u32>) -> Vec<Record> {
    range.map(|n| record(n.to_string())).collect()
}

async fn topic(settings: &Settings, partitions: i32) -> String {
    let topic = format!("test-{:016x}", fastrand::u64(..));
    create_topic(settings, &topic, partitions).await.unwrap();
    topic
}

async fn send(producer: &mut Producer, partition: i32, records: Vec<Record>) -> Result<Vec<i64>, Error> {
    producer.send(BTreeMap::from([(partition, records)])).await.remove(&partition).unwrap()
}

async fn read(consumer: &mut Consumer, mut offset: i64, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let fetched = consumer.fetch(offset, 1 << 20, WAIT).await.unwrap();
        offset = fetched.next;
        values.extend(values_of(&fetched.records));
    }
    values
}

fn values_of(records: &Records) -> impl Iterator<Item = String> {
    records.iter().map(|r| String::from_utf8(r.value.unwrap().to_vec()).unwrap())
}

fn records_come_back_in_order(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 2).await;
        let mut producer = Producer::new(settings.clone(), &topic);
        assert_eq!(producer.partitions().await.unwrap(), 2);
        for batch in 0..10 {
            let offsets = send(&mut producer, 1, numbered(batch * 10..(batch + 1) * 10)).await.unwrap();
            assert_eq!(offsets, (i64::from(batch) * 10..(i64::from(batch) + 1) * 10).collect::<Vec<_>>());
        }
        let mut consumer = Consumer::new(settings.clone(), &topic, 1);
        assert_eq!(consumer.offsets().await.unwrap(), 0..100);
        let fetched = consumer.fetch(0, 1 << 20, WAIT).await.unwrap();
        assert_eq!(fetched.high_watermark, 100);
        let first = fetched.records.iter().next().unwrap();
        assert_eq!(first.key, Some(&b"key"[..]));
        assert_eq!(first.header("traceparent"), Some("00-1"));
        assert_eq!(read(&mut consumer, 0, 100).await, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(Consumer::new(settings, &topic, 0).offsets().await.unwrap(), 0..0);
    });
}

fn headers_keep_their_order_duplicates_and_null_values(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
        let headers = vec![
            header(b"b", Some(b"1")),
            header(b"a", Some(b"2")),
            header(b"b", Some(b"")),
            header(b"a", None),
            header(b"", Some(b"no name")),
        ];
        let sent = Record { headers, ..record("value") };
        send(&mut Producer::new(settings.clone(), &topic), 0, vec![sent.clone()]).await.unwrap();
        let fetched = Consumer::new(settings, &topic, 0).fetch(0, 1 << 20, WAIT).await.unwrap();
        assert_eq!(fetched.records.iter().next().unwrap().to_record().record.headers, sent.headers);
    });
}

fn a_fetch_begins_in_the_middle_of_a_batch(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        send(&mut Producer::new(settings.clone(), &topic), 0, numbered(0..10)).await.unwrap();
        let fetched = Consumer::new(settings, &topic, 0).fetch(7, 1 << 20, WAIT).await.unwrap();
        assert_eq!(fetched.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(fetched.next, 10);
    });
}

fn a_fetch_at_the_end_waits_for_the_next_record(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        let fetched = consumer.fetch(0, 1 << 20, WAIT).await.unwrap();
        assert!(fetched.records.is_empty());
        assert_eq!((fetched.next, fetched.high_watermark), (0, 0));
        let waiting = runtime::spawn(async move { read(&mut consumer, 0, 1).await });
        send(&mut Producer::new(settings, &topic), 0, vec![record("late")]).await.unwrap();
        assert_eq!(waiting.await, ["late"]);
    });
}

fn a_missing_topic_is_an_error(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        assert!(matches!(partitions(&settings, "missing").await, Err(Error::UnknownTopic)));
        let mut producer = Producer::new(settings.clone(), "missing");
        assert!(matches!(producer.partitions().await, Err(Error::UnknownTopic)));
        let sent = send(&mut producer, 0, numbered(0..1)).await;
        assert!(matches!(sent, Err(Error::UnknownTopic)), "{sent:?}");
        let fetched = Consumer::new(settings, "missing", 0).fetch(0, 1 << 20, WAIT).await;
        assert!(matches!(fetched, Err(Error::UnknownTopic)), "{fetched:?}");
    });
}

fn a_topic_is_created_once(kind: Kind) {
    runtime::block_on(2, async move {
        // Where Nisshi deletes a topic, it can lose others that are written meanwhile.
        let (_scratch, _broker, settings, _) = own_broker(kind, "").await;
        let settings = Settings { deadline: Duration::from_secs(10), ..settings };
        let topic = format!("test-{:016x}", fastrand::u64(..));
        assert!(create_topic(&settings, &topic, 3).await.unwrap());
        assert!(!create_topic(&settings, &topic, 5).await.unwrap());
        assert_eq!(partitions(&settings, &topic).await.unwrap(), 3);
        delete_topic(&settings, &topic).await.unwrap();
        assert!(matches!(partitions(&settings, &topic).await, Err(Error::UnknownTopic)));
    });
}

/// A broker for one test, settings with a short deadline, and a topic.
async fn own_broker(kind: Kind, extra: &str) -> (Scratch, Broker, Settings, String) {
    let scratch = Scratch::new().unwrap();
    let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), extra).await.unwrap();
    scratch.guard(broker.process()).unwrap();
    let topic = topic(&broker.settings("test"), 1).await;
    let settings = Settings { deadline: Duration::from_secs(2), ..broker.settings("test") };
    (scratch, broker, settings, topic)
}

async fn until_sent(producer: &mut Producer) {
    let started = Instant::now();
    while let Err(error) = send(producer, 0, vec![record("after")]).await {
        assert!(started.elapsed() < Duration::from_secs(60), "{error}");
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

fn a_frozen_broker_costs_the_deadline_and_is_used_again_later(kind: Kind) {
    runtime::block_on(2, async move {
        let (_scratch, mut broker, settings, topic) = own_broker(kind, "").await;
        let mut producer = Producer::new(settings.clone(), &topic);
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        send(&mut producer, 0, vec![record("before")]).await.unwrap();
        assert_eq!(read(&mut consumer, 0, 1).await, ["before"]);

        broker.process().signal(Signal::STOP);
        for _ in 0..2 {
            let started = Instant::now();
            assert!(send(&mut producer, 0, vec![record("frozen")]).await.is_err());
            assert!(consumer.fetch(1, 1 << 20, WAIT).await.is_err());
            assert!(started.elapsed() < settings.deadline * 3, "{:?}", started.elapsed());
        }
        broker.process().signal(Signal::CONT);
        until_sent(&mut producer).await;
        // What timed out may have been stored as well. A controller that was frozen for long may have no leader for a moment.
        let (mut values, mut next, thawed) = (Vec::new(), 1, Instant::now());
        while values.last().map(String::as_str) != Some("after") {
            match consumer.fetch(next, 1 << 20, WAIT).await {
                Ok(fetched) => {
                    next = fetched.next;
                    values.extend(values_of(&fetched.records));
                }
                Err(error) => assert!(thawed.elapsed() < Duration::from_secs(60), "{error}"),
            }
        }
        assert!(values.iter().all(|value| value == "frozen" || value == "after"), "{values:?}");
    });
}

fn a_restarted_broker_is_used_again(kind: Kind) {
    runtime::block_on(2, async move {
        let (scratch, mut broker, settings, topic) = own_broker(kind, "").await;
        let mut producer = Producer::new(settings.clone(), &topic);
        let mut consumer = Consumer::new(settings, &topic, 0);
        send(&mut producer, 0, vec![record("before")]).await.unwrap();
        broker.process().kill().await;
        let started = Instant::now();
        assert!(send(&mut producer, 0, vec![record("lost")]).await.is_err());
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        until_sent(&mut producer).await;
        assert_eq!(read(&mut consumer, 0, 2).await, ["before", "after"]);
    });
}

fn a_restart_of_the_broker_between_two_sends_is_no_error(kind: Kind) {
    runtime::block_on(2, async move {
        let (scratch, mut broker, settings, topic) = own_broker(kind, "").await;
        // Time enough for a broker that has just been started.
        let settings = Settings { deadline: Duration::from_secs(20), ..settings };
        let mut producer = Producer::new(settings.clone(), &topic);
        send(&mut producer, 0, vec![record("before")]).await.unwrap();
        broker.process().kill().await;
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        let mut consumer = Consumer::new(settings, &topic, 0);
        let started = Instant::now();
        while let Err(error) = consumer.offsets().await {
            assert!(started.elapsed() < Duration::from_secs(60), "{error}");
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        assert_eq!(send(&mut producer, 0, vec![record("after")]).await.unwrap(), [1]);
    });
}

/// Both for a consumer that reads the topic and for one that expects its id.
fn a_recreated_topic_has_another_id(kind: Kind) {
    runtime::block_on(2, async move {
        let (_scratch, _broker, settings, topic) = own_broker(kind, "").await;
        let mut producer = Producer::new(settings.clone(), &topic);
        send(&mut producer, 0, numbered(0..3)).await.unwrap();
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        assert_eq!(read(&mut consumer, 0, 3).await, ["0", "1", "2"]);
        let before = consumer.topic_id();
        println!("{kind}: topic id {before:?}, leader epoch {:?}", consumer.leader_epoch());
        assert!(before.is_some(), "{kind} has topic ids");

        let settings = Settings { deadline: Duration::from_secs(10), ..settings };
        delete_topic(&settings, &topic).await.unwrap();
        while !matches!(create_topic(&settings, &topic, 1).await, Ok(true)) {
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        let mut producer = Producer::new(settings.clone(), &topic);
        send(&mut producer, 0, numbered(10..14)).await.unwrap();

        let started = Instant::now();
        loop {
            match consumer.fetch(3, 1 << 20, WAIT).await {
                Err(Error::TopicChanged { expected, found }) => {
                    assert!(Some(expected) == before && expected != found);
                    break;
                }
                Err(Error::UnknownTopicId | Error::UnknownTopic | Error::Unavailable(_)) => {}
                other => panic!("{other:?}"),
            }
            assert!(started.elapsed() < Duration::from_secs(30));
        }
        let mut expecting = Consumer::new(settings, &topic, 0);
        expecting.expect_topic_id(before);
        let changed = expecting.fetch(3, 1 << 20, WAIT).await;
        assert!(matches!(changed, Err(Error::TopicChanged { .. })), "{changed:?}");
        consumer.expect_topic_id(None);
        assert_eq!(read(&mut consumer, 0, 4).await, ["10", "11", "12", "13"]);
        assert!(consumer.topic_id() != before && consumer.topic_id().is_some());
    });
}

mod on_kafka_alone {
    use super::*;

    #[test]
    fn compressed_batches_are_read() {
        read_compressed(Kind::Kafka);
    }

    /// The broker compresses, by `compression.type`. Nisshi does not.
    pub(super) fn read_compressed(kind: Kind) {
        runtime::block_on(2, async {
            for compression in ["gzip", "lz4", "snappy", "zstd"] {
                let extra = format!("compression.type={compression}");
                let (scratch, _broker, settings, topic) = own_broker(kind, &extra).await;
                let sent: Vec<_> = (0..1000).map(|n| record(format!("{n} {}", "x".repeat(100)))).collect();
                send(&mut Producer::new(settings.clone(), &topic), 0, sent).await.unwrap();
                let mut consumer = Consumer::new(settings, &topic, 0);
                let read = read(&mut consumer, 0, 1000).await;
                assert!(
                    read.iter().enumerate().all(|(n, value)| value.starts_with(&format!("{n} x"))),
                    "{compression}"
                );
                let stored = std::fs::metadata(log_of(scratch.path(), &topic)).unwrap().len();
                assert!(stored < 50_000, "{compression}: the broker has not compressed it: {stored} bytes");
            }
        });
    }

    /// The first log segment of the topic.
    fn log_of(directory: &Path, topic: &str) -> PathBuf {
        let mut waiting = vec![directory.to_owned()];
        while let Some(directory) = waiting.pop() {
            if directory.ends_with(format!("{topic}-0")) {
                return directory.join(format!("{:020}.log", 0));
            }
            let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
            waiting.extend(entries.filter(|path| path.is_dir()));
        }
        panic!("the broker has no such topic");
    }

    /// Nisshi accepts records of any size.
    #[test]
    fn a_record_that_is_too_large_is_rejected_for_good() {
        runtime::block_on(2, async {
            let (_scratch, _broker, settings, topic) = own_broker(Kind::Kafka, "message.max.bytes=2000").await;
            let mut producer = Producer::new(settings, &topic);
            let rejected = send(&mut producer, 0, vec![record(vec![b'x'; 4000])]).await;
            assert!(matches!(rejected, Err(Error::RecordRejected(_))), "{rejected:?}");
            assert_eq!(send(&mut producer, 0, vec![record("small")]).await.unwrap(), [0]);
        });
    }

    /// As in a cluster with fewer brokers than its default replication factor.
    #[test]
    fn a_topic_that_the_broker_configuration_forbids_is_rejected() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let extra = "default.replication.factor=3";
            let mut broker =
                Broker::start_on_free_port(Kind::Kafka, &scratch.path().join("broker"), extra).await.unwrap();
            scratch.guard(broker.process()).unwrap();
            let settings = Settings { deadline: Duration::from_secs(10), ..broker.settings("test") };
            let error = create_topic(&settings, "topic", 1).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::RequestRejected(_)), "{text}");
            assert!(text.contains("InvalidReplicationFactor") && text.contains("configuration"), "{text}");
        });
    }

    /// Nisshi returns an empty result instead.
    #[test]
    fn an_offset_beyond_the_end_is_out_of_range() {
        runtime::block_on(2, async {
            let settings = testbed::shared_broker(Kind::Kafka).await;
            let topic = topic(&settings, 1).await;
            let mut consumer = Consumer::new(settings, &topic, 0);
            let fetched = consumer.fetch(5, 1 << 20, WAIT).await;
            assert!(matches!(fetched, Err(Error::OffsetOutOfRange)), "{fetched:?}");
        });
    }
}

mod on_older_kafka_alone {
    use super::*;

    /// It rejects zstd below version 10 of Fetch.
    #[test]
    fn compressed_batches_are_read() {
        on_kafka_alone::read_compressed(Kind::OlderKafka);
    }
}
