//! Replay of a whole topic into analytics, against reading the same topic with librdkafka's consumer (kcat).

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use chrono::{NaiveDate, TimeDelta, Utc};
use codec::{
    event::{Event, EventKind},
    headers,
};
use kafka::partitioner;
use kafka::{Producer, Record};
use testbed::service::Launch;
use uuid::Uuid;

use crate::{
    Failure, Outcome,
    fixture::Fixture,
    load::figure,
    progress::step,
    results::{Pair, Results},
    tool,
};

/// Partitions of the topic.
pub(crate) const PARTITIONS: i32 = 3;
/// Events in one request to the broker, for all partitions together.
const BATCH: u64 = 3000;
/// Timeout of a replay.
const TIMEOUT: Duration = Duration::from_secs(300);

pub(crate) async fn measure(fixture: &Fixture, quick: bool, results: &mut Results) -> Outcome {
    // As many in a quick run: with fewer, kcat's start would take most of its time, and the ratio would mean nothing.
    let events = 1_000_000;
    let topic = "replay.patient";
    step(&format!("Publishing {events} events"), publish(fixture, topic, events)).await?;
    let what = format!("replay of {events} events");
    let mut pair = Pair::new("replay", &what, "events/s", "analytics, into its state", "kcat (librdkafka), read alone");
    for round in 0..=if quick { 2 } else { 4 } {
        let theirs = step(&format!("Reading them with kcat ({round})"), read(fixture, topic, events)).await?;
        let ours = replay(fixture, topic, events, round);
        let (rate, rss) = step(&format!("Replaying them into analytics ({round})"), ours).await?;
        // The first round is not counted: the broker's JIT compiler competes with it for the cores.
        if round == 0 {
            continue;
        }
        pair.theirs(theirs);
        pair.ours(rate);
        results.figure("replay-rss", "memory of analytics-service after a replay", "MiB", rss);
    }
    results.figure("replay-rate", &what, "events/s", pair.rate());
    results.pair(pair);
    Ok(())
}

/// Publishes the creation of `events` patients, as the relay does.
pub(crate) async fn publish(fixture: &Fixture, topic: &str, events: u64) -> Outcome {
    let settings = fixture.broker.settings("bench");
    kafka::create_topic(&settings, topic, PARTITIONS).await?;
    let mut producer = Producer::new(settings, topic);
    let mut published = 0;
    while published < events {
        let mut batches = BTreeMap::<i32, Vec<Record>>::new();
        for number in published..(published + BATCH).min(events) {
            let (partition, record) = record(number);
            batches.entry(partition).or_default().push(record);
        }
        for (_, result) in producer.send(batches).await {
            result?;
        }
        published += BATCH;
    }
    Ok(())
}

fn record(number: u64) -> (i32, Record) {
    let (id, patient_id, time) = (Uuid::now_v7(), Uuid::now_v7(), Utc::now());
    let day = |first: NaiveDate, days: u64| first + TimeDelta::days((number * 7919 % days) as i64);
    let event = Event {
        id,
        patient_id,
        kind: EventKind::Created,
        version: 1,
        time,
        name: "Amara Abebe",
        email: &format!("replay.{number}@example.org"),
        registered_date: day(NaiveDate::from_ymd_opt(2020, 1, 1).unwrap_or_default(), 2000),
        date_of_birth: day(NaiveDate::from_ymd_opt(1930, 1, 1).unwrap_or_default(), 32_000),
    };
    let key = patient_id.to_string().into_bytes();
    let partition = partitioner::of_hash(partitioner::key_hash(&key), PARTITIONS);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = headers::event_headers(id, EventKind::Created, time, Some(traceparent));
    (partition, Record { key: Some(key), value: Some(event.encode()), headers, timestamp: time })
}

/// Events a second of kcat, from its start to its end.
async fn read(fixture: &Fixture, topic: &str, events: u64) -> Outcome<f64> {
    let mut command = Command::new("kcat");
    // It prints one byte for each message, so that printing costs little.
    command.args(["-C", "-e", "-q", "-o", "beginning", "-f", ".", "-b", &fixture.broker.address(), "-t", topic]);
    let begin = Instant::now();
    let printed = tool::output(command).await?;
    let elapsed = begin.elapsed();
    if printed.len() as u64 != events {
        return Err(Failure(format!("kcat has read {} events of {events}", printed.len())));
    }
    Ok(events as f64 / elapsed.as_secs_f64())
}

/// Events a second of analytics with an empty state, from its start until it has applied them all; and its memory then.
async fn replay(fixture: &Fixture, topic: &str, events: u64, round: u32) -> Outcome<(f64, f64)> {
    let launch = launch(fixture, topic, format!("analytics-service-replay-{round}"), &[]);
    let begin = Instant::now();
    let mut service = launch.start()?;
    fixture.guard(service.process())?;
    let client = service.client();
    loop {
        // Until it listens there is no answer.
        let summary = client.get("/analytics/summary").await.map(|answer| answer.json()).unwrap_or_default();
        if figure(&summary, "/created") as u64 == events {
            break;
        }
        if begin.elapsed() > TIMEOUT {
            return Err(Failure(format!("analytics has not applied all events: {summary}")));
        }
        smol::Timer::after(Duration::from_millis(10)).await;
    }
    let elapsed = begin.elapsed();
    let rss = crate::footprint::rss_mib(service.process());
    service.stop().await;
    Ok((events as f64 / elapsed.as_secs_f64(), rss))
}

/// How an analytics-service of this name is started on a topic, with a state of its own.
pub(crate) fn launch(fixture: &Fixture, topic: &str, label: String, settings: &[(&str, &str)]) -> Launch {
    let state = fixture.directory().join(format!("{label}.sqlite"));
    let environment = [
        ("KAFKA_BOOTSTRAP_SERVERS", fixture.broker.address()),
        ("KAFKA_TOPIC", topic.to_owned()),
        ("KAFKA_DEAD_LETTER_TOPIC", format!("{topic}.dlq")),
        ("STATE_FILE", state.display().to_string()),
        ("LOG_FORMAT", "json".to_owned()),
    ];
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let environment = environment.into_iter().chain(settings);
    Launch { label, ..Launch::new("analytics-service", fixture.directory(), environment) }
}
