//! Consumers and producers against fake brokers, for behaviour that is rare in real ones.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "connections/broker.rs"]
mod broker;
#[path = "connections/checksums.rs"]
mod checksums;
#[path = "connections/deadlines.rs"]
mod deadlines;
#[path = "connections/epochs.rs"]
mod epochs;
#[path = "connections/members.rs"]
mod members;
#[path = "connections/outdated.rs"]
mod outdated;
#[path = "connections/topic_ids.rs"]
mod topic_ids;
#[path = "connections/unreachable.rs"]
mod unreachable;
#[path = "connections/versions.rs"]
mod versions;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use config::HostPort;
use kafka::{Consumer, Error, Fetched, Malformed, Producer, Record};
use kafka_protocol::messages::ApiKey;

use self::broker::{ReceivedRequest, broker, loopback, settings, unresponsive};

const NOT_LEADER: i16 = 6;
const UNKNOWN_TOPIC: i16 = 3;

fn consumer(brokers: Vec<HostPort>) -> Consumer {
    Consumer::new(settings(brokers), "topic", 0)
}

async fn send(producer: &mut Producer) -> Result<Vec<i64>, Error> {
    let record = Record { key: None, value: None, headers: Vec::new(), timestamp: chrono::Utc::now() };
    producer.send(BTreeMap::from([(0, vec![record])])).await.remove(&0).unwrap()
}

async fn fetch(consumer: &mut Consumer) -> Result<Fetched, Error> {
    consumer.fetch(0, 1 << 20, Duration::from_millis(10)).await
}

fn response(correlation: i32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&(4 + body.len() as i32).to_be_bytes(), &correlation.to_be_bytes(), &body[..]].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat()
}

/// Metadata in version 4: the topic with one partition, led by the broker with this host and port.
fn metadata_response(correlation: i32, host: &str, port: u16) -> Vec<u8> {
    let (one, node, none) = (1_i32.to_be_bytes(), 7_i32.to_be_bytes(), (-1_i16).to_be_bytes());
    let broker: [&[u8]; 4] = [&node, &text(host), &i32::from(port).to_be_bytes(), &none];
    let partition: [&[u8]; 5] = [&[0; 2], &[0; 4], &node, &[0; 4], &[0; 4]];
    let topic: [&[u8]; 5] = [&[0; 2], &text("topic"), &[0], &one, &partition.concat()];
    response(correlation, &[&[0; 4], &one, &broker.concat(), &none, &node, &one, &topic.concat()])
}

/// A response to Fetch in version 4: no records, high watermark 0, or an error code.
fn fetch_response(correlation: i32, error: i16) -> Vec<u8> {
    let one = 1_i32.to_be_bytes();
    let partition: [&[u8]; 6] = [&[0; 4], &error.to_be_bytes(), &[0; 8], &[0; 8], &(-1_i32).to_be_bytes(), &[0; 4]];
    response(correlation, &[&[0; 4], &one, &text("topic"), &one, &partition.concat()])
}

/// A response to Produce in version 3: offset 7, or an error code.
fn produce_response(correlation: i32, error: i16) -> Vec<u8> {
    let one = 1_i32.to_be_bytes();
    let partition: [&[u8]; 4] = [&[0; 4], &error.to_be_bytes(), &7_i64.to_be_bytes(), &[0xff; 8]];
    response(correlation, &[&one, &text("topic"), &one, &partition.concat(), &[0; 4]])
}

#[test]
fn a_send_is_retried_while_a_leader_is_elected() {
    runtime::block_on(2, async {
        for (not_yet, in_time) in [(3, true), (u16::MAX, false)] {
            let requests = Arc::new(AtomicU16::new(0));
            let count = requests.clone();
            let response = move |received: &ReceivedRequest| {
                let is_elected = count.fetch_add(1, SeqCst) >= not_yet;
                produce_response(received.correlation, if is_elected { 0 } else { NOT_LEADER })
            };
            let (leader, _leader) = broker(response).await;
            let (bootstrap, _bootstrap) =
                broker(move |received| metadata_response(received.correlation, "127.0.0.1", leader.port)).await;
            let started = Instant::now();
            let sent = send(&mut Producer::new(settings(vec![bootstrap]), "topic")).await;
            assert_eq!(sent.as_ref().ok(), in_time.then(|| vec![7]).as_ref(), "{sent:?}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
    });
}

#[test]
fn a_consumer_follows_a_leader_change() {
    runtime::block_on(2, async {
        let (old, _old) = broker(|received| fetch_response(received.correlation, NOT_LEADER)).await;
        let (new, _new) = broker(|received| fetch_response(received.correlation, 0)).await;
        let leader = Arc::new(AtomicU16::new(old.port));
        let current = leader.clone();
        // Advertised by a host name, as in most clusters.
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "localhost", current.load(SeqCst))).await;
        let mut consumer = consumer(vec![bootstrap]);
        for _ in 0..2 {
            let moved = fetch(&mut consumer).await;
            assert!(matches!(moved, Err(Error::Unavailable(_))), "{moved:?}");
        }
        leader.store(new.port, SeqCst);
        let fetched = fetch(&mut consumer).await.unwrap();
        assert_eq!((fetched.next, fetched.high_watermark, fetched.records.is_empty()), (0, 0, true));
    });
}

#[test]
fn one_available_bootstrap_broker_is_enough() {
    runtime::block_on(2, async {
        let gone = loopback(testbed::ports::free());
        let (unresponsive, _listener) = unresponsive().await;
        let (leader, _leader) = broker(|received| fetch_response(received.correlation, 0)).await;
        let port = leader.port;
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "127.0.0.1", port)).await;
        fetch(&mut consumer(vec![gone.clone(), unresponsive, bootstrap])).await.unwrap();
        let unavailable = fetch(&mut consumer(vec![gone])).await;
        assert!(matches!(unavailable, Err(Error::Unavailable(_))), "{unavailable:?}");
    });
}

#[test]
fn an_unresponsive_leader_costs_the_deadline() {
    runtime::block_on(2, async {
        let (unresponsive, _listener) = unresponsive().await;
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "127.0.0.1", unresponsive.port)).await;
        let mut consumer = consumer(vec![bootstrap]);
        for timeout in [fetch(&mut consumer).await.err(), consumer.offsets().await.err()] {
            assert!(matches!(timeout, Some(Error::Timeout(_))), "{timeout:?}");
        }
        let started = Instant::now();
        assert!(fetch(&mut consumer).await.is_err());
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    });
}

#[test]
fn a_malformed_response_is_an_error_and_the_next_call_reconnects() {
    type Wrong = fn(i32) -> Vec<u8>;
    let wrong: [(&str, Wrong); 5] = [
        ("another request's response", |correlation| fetch_response(correlation + 1, 0)),
        ("a response that is too large", |correlation| {
            [&(33_i32 << 20).to_be_bytes()[..], &correlation.to_be_bytes(), &[0; 100_000]].concat()
        }),
        ("a negative length", |_| (-1_i32).to_be_bytes().to_vec()),
        ("a response without the partition", |correlation| response(correlation, &[&[0; 8]])),
        ("a truncated response", |correlation| response(correlation, &[&[0; 5]])),
    ];
    runtime::block_on(2, async {
        for (name, wrong) in wrong {
            let requests = Arc::new(AtomicU16::new(0));
            let count = requests.clone();
            let response = move |received: &ReceivedRequest| match count.fetch_add(1, SeqCst) {
                0 => wrong(received.correlation),
                _ => fetch_response(received.correlation, 0),
            };
            let (leader, _leader) = broker(response).await;
            let (bootstrap, _bootstrap) =
                broker(move |received| metadata_response(received.correlation, "127.0.0.1", leader.port)).await;
            let mut consumer = consumer(vec![bootstrap]);
            let malformed = fetch(&mut consumer).await;
            assert!(matches!(malformed, Err(Error::Malformed(Malformed::Response))), "{name}: {malformed:?}");
            fetch(&mut consumer).await.unwrap();
            assert_eq!(requests.load(SeqCst), 2);
        }
    });
}

#[test]
fn an_unknown_topic_at_the_leader_is_an_error() {
    runtime::block_on(2, async {
        let (leader, _leader) = broker(|received| {
            assert_ne!(received.key, ApiKey::Metadata);
            fetch_response(received.correlation, UNKNOWN_TOPIC)
        })
        .await;
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "127.0.0.1", leader.port)).await;
        let unknown = fetch(&mut consumer(vec![bootstrap])).await;
        assert!(matches!(unknown, Err(Error::UnknownTopic)), "{unknown:?}");
    });
}
