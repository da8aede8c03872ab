//! Counting of events: each once, also duplicates, stale versions and events of others.

use std::time::Duration;

use chrono::{DateTime, Utc};
use codec::event::EventKind::{Created, Deleted, Updated};
use kafka::{Consumer, Record};
use serde_json::json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{foreign, record, with_topic};

testbed::on_each_broker!(
    created_updated_and_deleted_patients_are_counted,
    duplicates_and_stale_versions_are_not_counted,
    versions_that_were_assigned_twice_are_reported,
    events_of_the_original_services_are_counted,
    undecodable_records_are_dead_lettered,
    an_interrupted_service_counts_everything_once,
    instances_share_the_partitions,
);

fn created_updated_and_deleted_patients_are_counted(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let patients: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
        let mut events: Vec<_> = patients.iter().map(|id| (*id, Created, 1)).collect();
        events.extend(patients[..20].iter().map(|id| (*id, Updated, 2)));
        events.extend(patients[..10].iter().map(|id| (*id, Deleted, 3)));
        topic.publish(&events).await;
        let service = topic.start(&[]).await;
        let summary = service.until_applied(80).await;
        assert_eq!(summary["activePatients"], 40);
        assert_eq!(
            (&summary["created"], &summary["updated"], &summary["deleted"]),
            (&json!(50), &json!(20), &json!(10))
        );
        assert!(summary["partitions"].as_array().unwrap().iter().all(|partition| partition["lag"] == 0));
        assert!(summary["lastEventTime"].is_string());
        service.stop().await;
    });
}

fn duplicates_and_stale_versions_are_not_counted(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let events = [
            (one, Created, 1),
            (one, Created, 1),
            (other, Created, 1),
            (one, Deleted, 3),
            (one, Updated, 2),
            (other, Created, 1),
        ];
        topic.publish(&events).await;
        let service = topic.start(&[]).await;
        let summary = service.until_applied(6).await;
        assert_eq!(summary["activePatients"], 1);
        // Version 2 came late: the deletion had counted it as a change.
        assert_eq!((&summary["created"], &summary["updated"], &summary["deleted"]), (&json!(2), &json!(1), &json!(1)));
        service.stop().await;
    });
}

fn versions_that_were_assigned_twice_are_reported(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let service = topic.start(&[]).await;
        let conflicts = async || {
            let conflicts = service.get("/metrics").await.metric("events_version_conflicts_total");
            conflicts.unwrap_or_default() as i64
        };
        let before = conflicts().await;
        let patient = Uuid::now_v7();
        let change = record(patient, Updated, 2);
        topic.send(0, vec![record(patient, Created, 1), change.clone(), change]).await;
        service.until_applied(3).await;
        let sent = Utc::now().timestamp_millis();
        while Utc::now().timestamp_millis() == sent {
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        // A database that was restored to the time before the change assigns the version again.
        topic.send(0, vec![record(patient, Updated, 2)]).await;
        let summary = service.until_applied(4).await;
        assert_eq!((&summary["created"], &summary["updated"]), (&json!(1), &json!(1)));
        assert!(conflicts().await > before);
        service.stop().await;
    });
}

fn events_of_the_original_services_are_counted(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        // PatientEvent { patientId, name, email, event_type }, each a string with its number.
        let original = |event_type: &str| {
            let mut value = Vec::new();
            for (number, text) in
                [(1, "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"), (2, "Jane"), (3, "j@x.org"), (4, event_type)]
            {
                if !text.is_empty() {
                    value.extend([number << 3 | 2, text.len() as u8]);
                    value.extend(text.as_bytes());
                }
            }
            foreign(value)
        };
        let kinds = ["PATIENT_CREATED", "", "PATIENT_MOVED"];
        let created_at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        topic.send(0, kinds.map(|kind| Record { timestamp: created_at, ..original(kind) }).into()).await;
        let service = topic.start(&[]).await;
        let summary = service.until_applied(3).await;
        assert_eq!(
            (&summary["activePatients"], &summary["created"], &summary["unknown"]),
            (&json!(1), &json!(1), &json!(2))
        );
        // They have no time; their records have one.
        assert_eq!(summary["lastEventTime"], json!(created_at));
        let bands = summary["ageBands"].as_array().unwrap();
        assert_eq!(bands.last().unwrap(), &json!({"ages": "unknown", "patients": 1}));
        service.stop().await;
    });
}

fn undecodable_records_are_dead_lettered(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let good = Uuid::now_v7();
        let no_value = Record { value: None, ..foreign("") };
        let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
        let bad = Record {
            key: Some(b"key".to_vec()),
            headers: vec![
                header(b"a", Some(b"1")),
                header(b"a", Some(b"2")),
                header(b"n", None),
                header(b"dlq-error", Some(b"mine")),
                header(b"dead-letter-error", Some(b"mine too")),
                header(b"\xff", Some(&[0, 255])),
            ],
            ..foreign("{\"json\": true}")
        };
        let original = bad.headers.clone();
        let large = foreign(vec![0xff; 1_000_000]);
        let records = vec![record(good, Created, 1), bad, foreign(""), no_value, large, record(good, Updated, 2)];
        for record in records {
            topic.send(1, vec![record]).await;
        }
        let service = topic.start(&[]).await;
        let summary = service.until_applied(6).await;
        assert_eq!((&summary["activePatients"], &summary["updated"]), (&json!(1), &json!(1)));

        let mut forwarded = Vec::new();
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while forwarded.len() < 4 {
            assert!(std::time::Instant::now() < end, "the dead letters are not forwarded");
            let mut consumer = Consumer::new(topic.kafka.clone(), topic.dead_letter_topic(), 0);
            let next = forwarded.len() as i64;
            match consumer.fetch(next, 1 << 21, Duration::from_millis(100)).await {
                Ok(fetched) => forwarded.extend(fetched.records.iter().map(|record| record.to_record())),
                Err(_) => drop(smol::Timer::after(Duration::from_millis(50)).await),
            }
        }
        assert_eq!(forwarded.len(), 4);
        let text = |n: usize, name: &str| codec::headers::text(&forwarded[n].record.headers, name).unwrap().to_owned();
        assert_eq!(forwarded[0].record.key.as_deref(), Some(&b"key"[..]));
        assert_eq!(forwarded[0].record.value.as_deref(), Some(&b"{\"json\": true}"[..]));
        assert_eq!(forwarded[0].record.headers[..original.len()], original, "in order, repeated and null ones too");
        assert_eq!(
            (text(0, "dead-letter-2-topic"), text(0, "dead-letter-2-partition"), text(0, "dead-letter-2-offset")),
            (topic.topic.clone(), "1".into(), "1".into())
        );
        assert!(text(0, "dead-letter-2-error").contains("no PatientEvent"));
        assert_eq!(text(2, "dead-letter-error"), "the record has no value");
        assert_eq!(forwarded[3].record.value.as_ref().map(Vec::len), Some(1_000_000));

        let first = service.get("/analytics/dead-letters?limit=3").await;
        let letters = first.json();
        let offsets: Vec<_> =
            letters.as_array().unwrap().iter().map(|letter| letter["offset"].as_i64().unwrap()).collect();
        assert_eq!(offsets, [4, 3, 2], "the newest first");
        assert_eq!(letters[0]["valueBytes"], 1_000_000);
        let rest = service.get(&first.next().unwrap()).await;
        assert_eq!((rest.json().as_array().unwrap().len(), rest.next()), (1, None));
        assert!(!rest.text().contains("json"), "the content of a dead letter may be personal data");
        service.stop().await;
    });
}

fn an_interrupted_service_counts_everything_once(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let patients: Vec<Uuid> = (0..300).map(|_| Uuid::now_v7()).collect();
        let mut published = 0;
        for round in 0..15 {
            let events: Vec<_> = patients[round * 20..][..20].iter().map(|id| (*id, Created, 1)).collect();
            topic.publish(&events).await;
            published += 20;
            let service = topic.start(&[]).await;
            // At a random time between its start and the end of its work.
            if round % 3 == 0 {
                service.until("something is applied", |summary| summary["created"].as_i64() > Some(0)).await;
            }
            smol::Timer::after(Duration::from_millis(fastrand::u64(..80))).await;
            service.kill().await;
        }
        let service = topic.start(&[]).await;
        let summary = service.until_applied(published).await;
        assert_eq!((&summary["activePatients"], &summary["created"]), (&json!(300), &json!(300)));
        service.stop().await;
    });
}

fn instances_share_the_partitions(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let events: Vec<_> = (0..60).map(|_| (Uuid::now_v7(), Created, 1)).collect();
        topic.publish(&events).await;
        let mut active = 0;
        for (share, partitions) in [("0/2", vec![0, 2]), ("1/2", vec![1])] {
            let state = topic.state.with_extension(share.replace('/', "-"));
            let service = topic.start(&[("PARTITIONS", share), ("STATE_FILE", state.to_str().unwrap())]).await;
            let summary = service
                .until("it has caught up", |summary| {
                    let read = summary["partitions"].as_array().unwrap();
                    !read.is_empty()
                        && read.iter().all(|partition| partition["lag"] == 0 && partition["appliedOffset"] != -1)
                })
                .await;
            let read: Vec<_> =
                summary["partitions"].as_array().unwrap().iter().map(|p| p["partition"].as_i64().unwrap()).collect();
            assert_eq!(read, partitions);
            active += summary["activePatients"].as_i64().unwrap();
            service.stop().await;
        }
        assert_eq!(active, 60);
    });
}
