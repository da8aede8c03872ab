//! Connections of consumers and producers, against brokers that do what real ones seldom do.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "connections/broker.rs"]
mod broker;
#[path = "connections/damage.rs"]
mod damage;
#[path = "connections/identity.rs"]
mod identity;
#[path = "connections/time.rs"]
mod time;
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

use self::broker::{Asked, broker, loopback, settings, silent};

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

fn answer(correlation: i32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&(4 + body.len() as i32).to_be_bytes(), &correlation.to_be_bytes(), &body[..]].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat()
}

/// Metadata in version 4: the topic, with its one partition led by whoever listens there.
fn led_by(correlation: i32, host: &str, port: u16) -> Vec<u8> {
    let (one, node, none) = (1_i32.to_be_bytes(), 7_i32.to_be_bytes(), (-1_i16).to_be_bytes());
    let broker: [&[u8]; 4] = [&node, &text(host), &i32::from(port).to_be_bytes(), &none];
    let partition: [&[u8]; 5] = [&[0; 2], &[0; 4], &node, &[0; 4], &[0; 4]];
    let topic: [&[u8]; 5] = [&[0; 2], &text("topic"), &[0], &one, &partition.concat()];
    answer(correlation, &[&[0; 4], &one, &broker.concat(), &none, &node, &one, &topic.concat()])
}

/// An answer to a fetch in version 4: nothing, up to the offset 0, or an error.
fn fetched(correlation: i32, error: i16) -> Vec<u8> {
    let one = 1_i32.to_be_bytes();
    let partition: [&[u8]; 6] = [&[0; 4], &error.to_be_bytes(), &[0; 8], &[0; 8], &(-1_i32).to_be_bytes(), &[0; 4]];
    answer(correlation, &[&[0; 4], &one, &text("topic"), &one, &partition.concat()])
}

/// An answer to a request to produce in version 3: the offset 7, or an error.
fn produced(correlation: i32, error: i16) -> Vec<u8> {
    let one = 1_i32.to_be_bytes();
    let partition: [&[u8]; 4] = [&[0; 4], &error.to_be_bytes(), &7_i64.to_be_bytes(), &[0xff; 8]];
    answer(correlation, &[&one, &text("topic"), &one, &partition.concat(), &[0; 4]])
}

#[test]
fn a_leader_that_does_not_know_it_yet_is_asked_again_for_a_moment() {
    runtime::block_on(2, async {
        for (not_yet, in_time) in [(3, true), (u16::MAX, false)] {
            let asked = Arc::new(AtomicU16::new(0));
            let count = asked.clone();
            let answer = move |asked: &Asked| {
                let knows = count.fetch_add(1, SeqCst) >= not_yet;
                produced(asked.correlation, if knows { 0 } else { NOT_LEADER })
            };
            let (leader, _leader) = broker(answer).await;
            let (bootstrap, _bootstrap) =
                broker(move |asked| led_by(asked.correlation, "127.0.0.1", leader.port)).await;
            let started = Instant::now();
            let sent = send(&mut Producer::new(settings(vec![bootstrap]), "topic")).await;
            assert_eq!(sent.as_ref().ok(), in_time.then(|| vec![7]).as_ref(), "{sent:?}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
    });
}

#[test]
fn a_leader_that_leads_no_longer_is_left_for_the_new_one() {
    runtime::block_on(2, async {
        let (old, _old) = broker(|asked| fetched(asked.correlation, NOT_LEADER)).await;
        let (new, _new) = broker(|asked| fetched(asked.correlation, 0)).await;
        let leader = Arc::new(AtomicU16::new(old.port));
        let known = leader.clone();
        // By a name, as brokers are told in many a network.
        let (bootstrap, _bootstrap) =
            broker(move |asked| led_by(asked.correlation, "localhost", known.load(SeqCst))).await;
        let mut consumer = consumer(vec![bootstrap]);
        for _ in 0..2 {
            let moved = fetch(&mut consumer).await;
            assert!(matches!(moved, Err(Error::Away(_))), "{moved:?}");
        }
        leader.store(new.port, SeqCst);
        let fetched = fetch(&mut consumer).await.unwrap();
        assert_eq!((fetched.next, fetched.high_watermark, fetched.records.is_empty()), (0, 0, true));
    });
}

#[test]
fn one_bootstrap_broker_that_answers_is_enough() {
    runtime::block_on(2, async {
        let gone = loopback(testbed::ports::free());
        let (silent, _silent) = silent().await;
        let (leader, _leader) = broker(|asked| fetched(asked.correlation, 0)).await;
        let port = leader.port;
        let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", port)).await;
        fetch(&mut consumer(vec![gone.clone(), silent, bootstrap])).await.unwrap();
        let away = fetch(&mut consumer(vec![gone])).await;
        assert!(matches!(away, Err(Error::Away(_))), "{away:?}");
    });
}

#[test]
fn a_leader_that_says_nothing_costs_the_deadline() {
    runtime::block_on(2, async {
        let (silent, _silent) = silent().await;
        let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", silent.port)).await;
        let mut consumer = consumer(vec![bootstrap]);
        for late in [fetch(&mut consumer).await.err(), consumer.offsets().await.err()] {
            assert!(matches!(late, Some(Error::Late(_))), "{late:?}");
        }
        let started = Instant::now();
        assert!(fetch(&mut consumer).await.is_err());
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    });
}

#[test]
fn what_is_no_answer_is_told_and_the_next_call_begins_anew() {
    type Wrong = fn(i32) -> Vec<u8>;
    let wrong: [(&str, Wrong); 5] = [
        ("another request's answer", |correlation| fetched(correlation + 1, 0)),
        ("an answer that is too large", |correlation| {
            [&(33_i32 << 20).to_be_bytes()[..], &correlation.to_be_bytes(), &[0; 100_000]].concat()
        }),
        ("a negative length", |_| (-1_i32).to_be_bytes().to_vec()),
        ("an answer about nothing", |correlation| answer(correlation, &[&[0; 8]])),
        ("an answer that is cut off", |correlation| answer(correlation, &[&[0; 5]])),
    ];
    runtime::block_on(2, async {
        for (what, wrong) in wrong {
            let answered = AtomicU16::new(0);
            let answered = Arc::new(answered);
            let count = answered.clone();
            let answer = move |asked: &Asked| match count.fetch_add(1, SeqCst) {
                0 => wrong(asked.correlation),
                _ => fetched(asked.correlation, 0),
            };
            let (leader, _leader) = broker(answer).await;
            let (bootstrap, _bootstrap) =
                broker(move |asked| led_by(asked.correlation, "127.0.0.1", leader.port)).await;
            let mut consumer = consumer(vec![bootstrap]);
            let refused = fetch(&mut consumer).await;
            assert!(matches!(refused, Err(Error::Malformed(Malformed::Answer))), "{what}: {refused:?}");
            fetch(&mut consumer).await.unwrap();
            assert_eq!(answered.load(SeqCst), 2);
        }
    });
}

#[test]
fn a_topic_that_is_gone_is_told_by_the_leader_too() {
    runtime::block_on(2, async {
        let (both, _both) = broker(|asked| {
            assert_ne!(asked.key, ApiKey::Metadata);
            fetched(asked.correlation, UNKNOWN_TOPIC)
        })
        .await;
        let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", both.port)).await;
        let gone = fetch(&mut consumer(vec![bootstrap])).await;
        assert!(matches!(gone, Err(Error::UnknownTopic)), "{gone:?}");
    });
}
