//! What a call may take: one deadline for all that belongs to it, and beside it what a quota of the broker demands.

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
    NOT_LEADER, answer,
    broker::{Asked, FIRST, broker, settings, slow_broker, speaking},
    consumer, fetch, fetched, led_by, produced, send,
};

/// That of [`settings`].
const DEADLINE: Duration = Duration::from_secs(2);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(1);

/// A bootstrap broker and a leader that take so long for each answer.
async fn slow(
    delay: impl Fn() -> Duration + Clone + Send + Sync + 'static,
    leader_says: impl Fn(&Asked) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, HostPort, [Task<()>; 2]) {
    let (leader, leading) = slow_broker(delay.clone(), move |asked| match asked.key {
        ApiKey::ApiVersions => asked.answer(&speaking(&FIRST)),
        _ => leader_says(asked),
    })
    .await;
    let port = leader.port;
    let (bootstrap, bootstrapping) = slow_broker(delay, move |asked| match asked.key {
        ApiKey::ApiVersions => asked.answer(&speaking(&FIRST)),
        _ => led_by(asked.correlation, "127.0.0.1", port),
    })
    .await;
    (bootstrap, leader, [leading, bootstrapping])
}

fn assert_late<T: std::fmt::Debug>(result: Result<T, Error>, started: Instant, leader: &HostPort) {
    let took = started.elapsed();
    assert!((DEADLINE..DEADLINE + SLACK).contains(&took), "{took:?}: {result:?}");
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Late(_)) && error.to_string().contains(&leader.to_string()), "{error}");
}

/// Connecting takes 1.8 s of it: two brokers are asked for their versions, and one for the topic. What follows would end
/// at 2.4 s.
#[test]
fn a_call_has_one_deadline_for_all_that_it_does() {
    runtime::block_on(2, async {
        let (bootstrap, leader, _tasks) = slow(
            || Duration::from_millis(600),
            |asked| match asked.key {
                ApiKey::Produce => produced(asked.correlation, 0),
                _ => fetched(asked.correlation, 0),
            },
        )
        .await;
        let started = Instant::now();
        assert_late(send(&mut Producer::new(settings(vec![bootstrap.clone()]), "topic")).await, started, &leader);
        let started = Instant::now();
        let mut fetching = consumer(vec![bootstrap.clone()]);
        let fetched = fetching.fetch(0, 1 << 20, Duration::ZERO).await;
        assert_late(fetched, started, &leader);
        let started = Instant::now();
        assert_late(consumer(vec![bootstrap]).offsets().await, started, &leader);
    });
}

/// On the connection that it has, it is told after 0.9 s that the leader is none; asking for another one, and that one,
/// would end at 4.5 s, and with a deadline of its own at 2.9 s.
#[test]
fn a_second_attempt_has_what_the_first_left_of_the_deadline() {
    runtime::block_on(2, async {
        let leads = Arc::new(AtomicBool::new(true));
        let (is_quick, still_leads) = (leads.clone(), leads.clone());
        let delay = move || if is_quick.load(SeqCst) { Duration::ZERO } else { Duration::from_millis(900) };
        let (bootstrap, _, _tasks) = slow(delay, move |asked| {
            produced(asked.correlation, if still_leads.load(SeqCst) { 0 } else { NOT_LEADER })
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

/// An answer to a request to produce in version 3, with the time for which the client has to be silent.
fn produced_and_throttled(correlation: i32, milliseconds: i32) -> Vec<u8> {
    let mut answer = produced(correlation, 0);
    let end = answer.len() - 4;
    answer[end..].copy_from_slice(&milliseconds.to_be_bytes());
    answer
}

#[test]
fn the_silence_that_a_quota_demands_is_kept_and_costs_no_deadline() {
    const SILENCE: Duration = Duration::from_secs(3);
    runtime::block_on(2, async {
        let milliseconds = SILENCE.as_millis() as i32;
        let (leader, _leader) = broker(move |asked| match asked.key {
            ApiKey::Produce => produced_and_throttled(asked.correlation, milliseconds),
            // No topic at all: what a broker says whose quota is used up.
            _ => answer(asked.correlation, &[&milliseconds.to_be_bytes(), &[0; 4]]),
        })
        .await;
        let port = leader.port;
        let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", port)).await;

        let mut producer = Producer::new(settings(vec![bootstrap]), "topic");
        let started = Instant::now();
        assert_eq!(send(&mut producer).await.unwrap(), [7], "a throttled answer is a success");
        assert!(started.elapsed() < SILENCE, "it is the next request that waits");
        assert!(producer.throttled().keys().eq([&0]), "{:?}", producer.throttled());
        assert_eq!(send(&mut producer).await.unwrap(), [7]);
        assert!(started.elapsed() >= SILENCE, "{:?}", started.elapsed());
    });
}

/// Only the first fetch is answered in full.
#[test]
fn an_answer_that_only_says_how_long_to_wait_is_an_answer() {
    const SILENCE: Duration = Duration::from_secs(3);
    runtime::block_on(2, async {
        let is_used_up = Arc::new(AtomicBool::new(false));
        let used_up = is_used_up.clone();
        let (leader, _leader) = broker(move |asked| match used_up.swap(true, SeqCst) {
            false => fetched(asked.correlation, 0),
            true => answer(asked.correlation, &[&(SILENCE.as_millis() as i32).to_be_bytes(), &[0; 4]]),
        })
        .await;
        let port = leader.port;
        let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", port)).await;
        let mut consumer = consumer(vec![bootstrap]);
        fetch(&mut consumer).await.unwrap();
        let started = Instant::now();
        for _ in 0..2 {
            let throttled = fetch(&mut consumer).await.unwrap();
            assert_eq!((throttled.next, throttled.high_watermark, throttled.records.is_empty()), (0, 0, true));
        }
        assert!(started.elapsed() >= SILENCE, "the second waited: {:?}", started.elapsed());

        // Of a partition of which nothing is known yet, the answer is waited for.
        is_used_up.store(false, SeqCst);
        fetch(&mut consumer).await.unwrap();
    });
}
