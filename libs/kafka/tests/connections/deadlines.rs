//! Deadlines of calls, and throttle times beside them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use config::HostPort;
use kafka::{Error, Producer};
use kafka_protocol::messages::ApiKey;
use smol::Task;

use crate::{
    NOT_LEADER,
    broker::{LOWEST, ReceivedRequest, broker, settings, slow_broker, supporting},
    consumer, fetch, fetch_response, metadata_response, produce_response, response, send,
};

/// The deadline of [`settings`].
const DEADLINE: Duration = Duration::from_secs(2);
/// Slack for a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// A bootstrap broker and a leader that delay each response.
async fn slow(
    delay: impl Fn() -> Duration + Clone + Send + Sync + 'static,
    respond: impl Fn(&ReceivedRequest) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, HostPort, [Task<()>; 2]) {
    let (leader, leading) = slow_broker(delay.clone(), move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&LOWEST)),
        _ => respond(received),
    })
    .await;
    let port = leader.port;
    let (bootstrap, bootstrapping) = slow_broker(delay, move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&LOWEST)),
        _ => metadata_response(received.correlation, "127.0.0.1", port),
    })
    .await;
    (bootstrap, leader, [leading, bootstrapping])
}

fn assert_timeout<T: std::fmt::Debug>(result: Result<T, Error>, started: Instant, leader: &HostPort) {
    let took = started.elapsed();
    assert!((DEADLINE..DEADLINE + SLACK).contains(&took), "{took:?}: {result:?}");
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains(&leader.to_string()), "{error}");
}

/// Connecting takes 1.8 s of the 2 s: ApiVersions at two brokers, and Metadata at one. The request after it would end at 2.4 s.
#[test]
fn a_call_has_one_deadline_for_all_its_steps() {
    runtime::block_on(2, async {
        let (bootstrap, leader, _tasks) = slow(
            || Duration::from_millis(600),
            |received| match received.key {
                ApiKey::Produce => produce_response(received.correlation, 0),
                _ => fetch_response(received.correlation, 0),
            },
        )
        .await;
        let started = Instant::now();
        assert_timeout(send(&mut Producer::new(settings(vec![bootstrap.clone()]), "topic")).await, started, &leader);
        let started = Instant::now();
        let mut fetching = consumer(vec![bootstrap.clone()]);
        let fetched = fetching.fetch(0, 1 << 20, Duration::ZERO).await;
        assert_timeout(fetched, started, &leader);
        let started = Instant::now();
        assert_timeout(consumer(vec![bootstrap]).offsets().await, started, &leader);
    });
}

/// The first attempt fails after 0.9 s with NOT_LEADER on the open connection. The retry, with new metadata and a new
/// connection, would end at 4.5 s; with a deadline of its own, at 2.9 s.
#[test]
fn a_retry_has_the_rest_of_the_deadline() {
    runtime::block_on(2, async {
        let leads = Arc::new(AtomicBool::new(true));
        let (is_quick, still_leads) = (leads.clone(), leads.clone());
        let delay = move || if is_quick.load(SeqCst) { Duration::ZERO } else { Duration::from_millis(900) };
        let (bootstrap, _, _tasks) = slow(delay, move |received| {
            produce_response(received.correlation, if still_leads.load(SeqCst) { 0 } else { NOT_LEADER })
        })
        .await;
        let mut producer = Producer::new(settings(vec![bootstrap]), "topic");
        send(&mut producer).await.unwrap();
        leads.store(false, SeqCst);
        let started = Instant::now();
        let sent = send(&mut producer).await;
        assert!(sent.is_err() && started.elapsed() < DEADLINE + SLACK * 3 / 4, "{:?}: {sent:?}", started.elapsed());
    });
}

/// A response to Produce in version 3, with a throttle time.
fn throttled_produce_response(correlation: i32, milliseconds: i32) -> Vec<u8> {
    let mut response = produce_response(correlation, 0);
    let end = response.len() - 4;
    response[end..].copy_from_slice(&milliseconds.to_be_bytes());
    response
}

#[test]
fn the_throttle_time_of_a_quota_is_waited_before_the_deadline_begins() {
    const THROTTLE_TIME: Duration = Duration::from_secs(3);
    runtime::block_on(2, async {
        let milliseconds = THROTTLE_TIME.as_millis() as i32;
        let (leader, _leader) = broker(move |received| match received.key {
            ApiKey::Produce => throttled_produce_response(received.correlation, milliseconds),
            // No topic at all, as a throttled broker responds.
            _ => response(received.correlation, &[&milliseconds.to_be_bytes(), &[0; 4]]),
        })
        .await;
        let port = leader.port;
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "127.0.0.1", port)).await;

        let mut producer = Producer::new(settings(vec![bootstrap]), "topic");
        let started = Instant::now();
        assert_eq!(send(&mut producer).await.unwrap(), [7], "a throttled response is a success");
        assert!(started.elapsed() < THROTTLE_TIME, "it is the next request that waits");
        assert!(producer.throttled().keys().eq([&0]), "{:?}", producer.throttled());
        assert_eq!(send(&mut producer).await.unwrap(), [7]);
        assert!(started.elapsed() >= THROTTLE_TIME, "{:?}", started.elapsed());
    });
}

/// Only the first response has the partition.
#[test]
fn a_response_with_a_throttle_time_alone_is_no_error() {
    const THROTTLE_TIME: Duration = Duration::from_secs(3);
    runtime::block_on(2, async {
        let is_throttled = Arc::new(AtomicBool::new(false));
        let throttled = is_throttled.clone();
        let (leader, _leader) = broker(move |received| match throttled.swap(true, SeqCst) {
            false => fetch_response(received.correlation, 0),
            true => response(received.correlation, &[&(THROTTLE_TIME.as_millis() as i32).to_be_bytes(), &[0; 4]]),
        })
        .await;
        let port = leader.port;
        let (bootstrap, _bootstrap) =
            broker(move |received| metadata_response(received.correlation, "127.0.0.1", port)).await;
        let mut consumer = consumer(vec![bootstrap]);
        fetch(&mut consumer).await.unwrap();
        let started = Instant::now();
        for _ in 0..2 {
            let throttled = fetch(&mut consumer).await.unwrap();
            assert_eq!((throttled.next, throttled.high_watermark, throttled.records.is_empty()), (0, 0, true));
        }
        assert!(started.elapsed() >= THROTTLE_TIME, "the second waited: {:?}", started.elapsed());

        // Without known watermarks, the consumer waits for a response with the partition.
        is_throttled.store(false, SeqCst);
        fetch(&mut consumer).await.unwrap();
    });
}
