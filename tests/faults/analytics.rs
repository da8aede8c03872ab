//! analytics-service is killed; the topic has unusual records, or is recreated.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use chrono::{NaiveDate, Utc};
use codec::{
    event::{Event, EventKind},
    headers,
};
use kafka::{Producer, Record};
use serde_json::json;
use testbed::{
    audit::{Acknowledged, Auditor},
    broker::Kind,
    system::{DedicatedServers, System},
    until,
    writers::Writers,
};
use uuid::Uuid;

use crate::support::{
    TIMEOUT, analytics, audit, logged, metric, random_pause, register_many, start, stop_and_audit, system,
    until_metric, until_readiness,
};

testbed::on_each_broker!(
    analytics_counts_what_postgresql_has_after_many_kills,
    events_without_a_version_are_counted_once_after_many_kills,
    undecodable_and_duplicate_records_are_counted_and_passed,
    a_recreated_topic_halts_analytics_until_the_state_is_deleted,
);

/// Brokers accept no record without a key on a compacted topic.
const NOT_COMPACTED: [(&str, &str); 1] = [("KAFKA_TOPIC_CLEANUP_POLICY", "delete")];

fn analytics_counts_what_postgresql_has_after_many_kills(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let writers = Writers::start(&[system.patients[0].address()], 6);
        for round in 0..12 {
            writers.until(writers.acknowledged().count() + 5, TIMEOUT).await.unwrap();
            random_pause(120).await;
            system.analytics.process().kill().await;
            system.restart_without_waiting(analytics).unwrap();
            if round % 3 == 0 {
                system.analytics.until_ready().await.unwrap();
            }
        }
        let (_, report) = stop_and_audit(writers, &system).await;
        assert!(report.events > 60, "{report}");
    });
}

/// Events of the original system have no version: only their offsets show which were counted.
fn events_without_a_version_are_counted_once_after_many_kills(kind: Kind) {
    runtime::block_on(2, async {
        const EVENTS: i64 = 3_000;
        let mut system = system(kind, 1, &NOT_COMPACTED).await;
        let mut producer = producer(&system).await;
        let publish = runtime::spawn(async move {
            for batch in 0..EVENTS / 30 {
                let records = (0..30).map(|_| legacy_event()).collect();
                send(&mut producer, (batch % 3) as i32, records).await;
            }
        });
        let mut kills = 0;
        while !publish.is_finished() || kills < 12 {
            random_pause(120).await;
            system.analytics.process().kill().await;
            system.restart_without_waiting(analytics).unwrap();
            kills += 1;
        }
        publish.await;
        let auditor = Auditor::of(&system);
        auditor.until_drained(TIMEOUT).await.unwrap_or_else(|error| panic!("{error}"));
        let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!((&summary["created"], &summary["activePatients"]), (&json!(EVENTS), &json!(EVENTS)));
    });
}

fn undecodable_and_duplicate_records_are_counted_and_passed(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, 1, &NOT_COMPACTED).await;
        let mut producer = producer(&system).await;
        let patient = Uuid::now_v7();
        let undecodable = |value: Vec<u8>| Record { value: Some(value), ..legacy_event() };
        let records = [
            event(patient, EventKind::Created, 1),
            event(patient, EventKind::Created, 1),
            event(patient, EventKind::Deleted, 3),
            event(patient, EventKind::Updated, 2),
            legacy_event(),
            undecodable(b"{\"json\": true}".to_vec()),
            undecodable(Vec::new()),
            Record { value: None, ..legacy_event() },
            undecodable(vec![0xff; 1_000_000]),
            event(Uuid::now_v7(), EventKind::Created, 1),
        ];
        let count = records.len() as i64;
        for record in records {
            send(&mut producer, 1, vec![record]).await;
        }
        let applied = |summary: &serde_json::Value| summary["partitions"][1]["appliedOffset"] == count - 1;
        let summary = system.until_summary(TIMEOUT, applied).await.unwrap();
        let counts = ["activePatients", "created", "updated", "deleted"].map(|name| summary[name].as_i64().unwrap());
        // The version that came late was counted as a change before.
        assert_eq!(counts, [2, 3, 1, 1]);
        assert_eq!(metric(&system.analytics, "events_duplicate_total").await, Some(2.0));
        assert_eq!(metric(&system.analytics, "events_dead_total").await, Some(4.0));
        assert_eq!(logged(&system.analytics, "a record cannot be decoded and is dead-lettered"), 4);
        let letters = async || {
            let letters = system.analytics.client().get("/analytics/dead-letters").await.unwrap().json();
            letters.as_array().unwrap().iter().filter(|letter| letter["forwarded"] == true).count()
        };
        until("the dead letters are on their topic", async || letters().await == 4).await;
        until_readiness(&system.analytics, "ingest", 200, "UP").await;
    });
}

fn a_recreated_topic_halts_analytics_until_the_state_is_deleted(kind: Kind) {
    runtime::block_on(2, async {
        // Its own broker: when Nisshi deletes a topic, it may lose others that are written at the same time.
        let servers = DedicatedServers::start(kind).await.unwrap_or_else(|error| panic!("{error}"));
        let mut system = start(servers.backing_services(), 1, &[]).await;
        let client = system.patient_client();
        let before = Acknowledged::default();
        register_many(&client, &before, 60).await;
        audit(&system, &before).await;

        let auditor = Auditor::of(&system);
        let end = Instant::now() + TIMEOUT;
        while !matches!(
            kafka::delete_topic(&auditor.kafka, &auditor.topic).await,
            Ok(()) | Err(kafka::Error::UnknownTopic)
        ) {
            assert!(Instant::now() < end, "the topic is not deleted");
        }
        // patient-service creates the topic again. No partition gets as many records as it had before.
        register_many(&client, &Acknowledged::default(), 6).await;
        until_readiness(&system.analytics, "ingest", 503, "DOWN").await;
        for halted in 0..3 {
            let halted = format!("ingest_halted{{partition=\"{halted}\"}}");
            until_metric(&system.analytics, &halted, |value| value == 1.0).await;
        }
        let message = "partition halted: delete the state to count again what there is, or set ON_OFFSET_LOSS=continue";
        assert!(logged(&system.analytics, message) > 0);
        let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!(summary["activePatients"], 60, "nothing was reset silently");

        // The documented recovery.
        system.analytics.stop().await;
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", system.state_file().display()));
        }
        system.restart(analytics).await.unwrap();
        system.until_summary(TIMEOUT, |summary| summary["activePatients"] == 6).await.unwrap();
        until_readiness(&system.analytics, "ingest", 200, "UP").await;
    });
}

/// A producer for the system's topic, after patient-service has created it: if two clients create it at once, Nisshi makes two
/// topics with the same name.
async fn producer(system: &System) -> Producer {
    let Auditor { kafka, topic, .. } = Auditor::of(system);
    until("the topic exists", async || kafka::partitions(&kafka, &topic).await.is_ok()).await;
    Producer::new(kafka, topic)
}

async fn send(producer: &mut Producer, partition: i32, records: Vec<Record>) {
    let end = Instant::now() + TIMEOUT;
    loop {
        match producer.send(BTreeMap::from([(partition, records.clone())])).await.remove(&partition).unwrap() {
            Ok(_) => break,
            // Nothing was written: a busy Nisshi may not find a new topic at first.
            Err(kafka::Error::UnknownTopic) if Instant::now() < end => {}
            Err(error) => panic!("{error}"),
        }
        smol::Timer::after(Duration::from_millis(10)).await;
    }
    smol::Timer::after(Duration::from_millis(1)).await;
}

/// An event as the original system publishes it: no key, no headers, four fields.
fn legacy_event() -> Record {
    let id = Uuid::now_v7().to_string();
    let mut value = Vec::new();
    for (number, text) in [(1, id.as_str()), (2, "Jane"), (3, "j@x.org"), (4, "PATIENT_CREATED")] {
        value.extend([number << 3 | 2, text.len() as u8]);
        value.extend(text.as_bytes());
    }
    Record { key: None, value: Some(value), headers: Vec::new(), timestamp: Utc::now() }
}

/// An event as patient-service publishes it.
fn event(patient_id: Uuid, kind: EventKind, version: i64) -> Record {
    let event = Event {
        id: Uuid::now_v7(),
        patient_id,
        kind,
        version,
        time: Utc::now(),
        name: "Jane Doe",
        email: "jane@example.org",
        registered_date: NaiveDate::default(),
        date_of_birth: NaiveDate::default(),
    };
    Record {
        key: Some(patient_id.to_string().into_bytes()),
        value: Some(event.encode()),
        headers: headers::event_headers(event.id, kind, event.time, None),
        timestamp: Utc::now(),
    }
}
