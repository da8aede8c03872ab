//! A topic whose superseded events the broker has deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use chrono::{NaiveDate, SubsecRound as _, TimeDelta, Utc};
use codec::event::{
    Event,
    EventKind::{self, Created, Deleted, Updated},
};
use kafka::{
    Record,
    partitioner::{key_hash, of_hash},
    testing::set_topic_setting,
};
use serde_json::Value as Json;
use testbed::{
    Scratch,
    broker::{Broker, Kind},
};
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, Running};

testbed::on_each_broker!(a_compacted_topic_has_the_same_totals_and_nothing_of_deleted_patients);

/// Settings with which Kafka's cleaner runs at once.
const FAST_CLEANER: &str = "log.cleaner.backoff.ms=100\n\
    log.segment.delete.delay.ms=0\n\
    log.initial.task.delay.ms=100";
/// A topic with segments that end with the next record, and are compacted as soon as [`LAG`] allows.
const FAST_COMPACTION: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.0"),
    (LAG, "3600000"),
    ("file.delete.delay.ms", "0"),
];
const LAG: &str = "min.compaction.lag.ms";
/// Patients, each with these versions; every fifth was deleted.
const PATIENTS: i64 = 200;
const VERSIONS: i64 = 6;
const DELETED: i64 = PATIENTS / 5;
/// How names and emails begin, and how long they are.
const PREFIXES: [(&str, usize); 2] = [("Patient ", 40), ("mail-", 49)];
/// How long the cleaner may take.
const TIMEOUT: Duration = Duration::from_secs(120);

struct Patient {
    id: Uuid,
    number: i64,
}

impl Patient {
    fn is_deleted(&self) -> bool {
        self.number % 5 == 0
    }

    /// A name that no other record has.
    fn name(&self) -> String {
        format!("Patient {}", self.id.simple())
    }

    /// An email that no other record has.
    fn email(&self) -> String {
        format!("mail-{}@example.org", self.id.simple())
    }

    /// As it is found in a segment.
    fn personal_data(&self) -> [String; 2] {
        [self.name(), self.email()]
    }

    fn partition(&self) -> i32 {
        of_hash(key_hash(self.id.to_string().as_bytes()), PARTITIONS)
    }

    /// The event with this version. Data change with it.
    fn event(&self, version: i64) -> Record {
        let kind = match version {
            1 => Created,
            VERSIONS if self.is_deleted() => Deleted,
            _ => Updated,
        };
        self.event_of(kind, version)
    }

    fn event_of(&self, kind: EventKind, version: i64) -> Record {
        let day = |year| NaiveDate::from_ymd_opt(year, 1, 1).unwrap() + TimeDelta::days(self.number * version % 9);
        let (name, email) = (self.name(), self.email());
        let event = Event {
            id: Uuid::now_v7(),
            patient_id: self.id,
            kind,
            version,
            // The state keeps milliseconds.
            time: Utc::now().trunc_subsecs(3),
            name: if kind == Deleted { "" } else { &name },
            email: if kind == Deleted { "" } else { &email },
            registered_date: day(2021),
            date_of_birth: day(1980),
        };
        Record {
            key: Some(self.id.to_string().into_bytes()),
            value: Some(event.encode()),
            headers: Vec::new(),
            timestamp: Utc::now(),
        }
    }
}

fn a_compacted_topic_has_the_same_totals_and_nothing_of_deleted_patients(kind: Kind) {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let directory = scratch.path().join("broker");
        let mut broker = Broker::start_on_free_port(kind, &directory, FAST_CLEANER).await.unwrap();
        scratch.guard(broker.process()).unwrap();
        let mut topic = Harness::with_configuration(broker.settings("test"), &FAST_COMPACTION).await;
        let mut patients: Vec<_> = (1..=PATIENTS).map(|number| Patient { id: Uuid::now_v7(), number }).collect();
        for version in 1..VERSIONS {
            send(&mut topic, patients.iter().map(|patient| (patient, version))).await;
        }
        // One that stops in the middle: the record before its position will be gone.
        let halfway = topic.start(&[("STATE_FILE", topic.state.with_extension("half").to_str().unwrap())]).await;
        halfway.until_applied(PATIENTS * (VERSIONS - 1)).await;
        halfway.stop().await;
        send(&mut topic, patients.iter().map(|patient| (patient, VERSIONS))).await;
        // The last record of each partition is in a segment that is not compacted.
        let last: Vec<_> = (0..PARTITIONS)
            .map(|partition| {
                loop {
                    let patient = Patient { id: Uuid::now_v7(), number: 1 };
                    if patient.partition() == partition {
                        break patient;
                    }
                }
            })
            .collect();
        let records = PATIENTS * VERSIONS + i64::from(PARTITIONS);
        for patient in &last {
            // By its timestamp, the segment before has ended.
            let record = Record { timestamp: Utc::now() + TimeDelta::minutes(1), ..patient.event(1) };
            topic.send(patient.partition(), vec![record]).await;
        }
        patients.extend(last);

        assert_eq!(records_of(&topic).await, records, "nothing is compacted yet");
        let service = topic.start(&[]).await;
        let before = totals(&service, records).await;
        assert_eq!(before["created"], PATIENTS + i64::from(PARTITIONS));
        assert_eq!(before["updated"], PATIENTS * (VERSIONS - 1) - DELETED);
        assert_eq!(before["deleted"], DELETED);
        assert_eq!(before["activePatients"], PATIENTS - DELETED + i64::from(PARTITIONS));
        service.stop().await;

        if kind == Kind::Kafka {
            set_topic_setting(&topic.kafka, &topic.topic, LAG, "0").await.unwrap();
        } else {
            // It compacts when it starts, and then every ten minutes.
            broker.stop().await;
            broker.restart().await.unwrap();
            scratch.guard(broker.process()).unwrap();
        }
        let remaining = PATIENTS + i64::from(PARTITIONS);
        let end = Instant::now() + TIMEOUT;
        while records_of(&topic).await > remaining {
            assert!(Instant::now() < end, "{} records of {remaining}", records_of(&topic).await);
            smol::Timer::after(Duration::from_millis(200)).await;
        }
        // Nisshi leaves the bytes in free pages of its database.
        if kind == Kind::Kafka {
            let kept: BTreeSet<_> =
                patients.iter().filter(|patient| !patient.is_deleted()).flat_map(Patient::personal_data).collect();
            while personal_data(&directory) != kept {
                assert!(Instant::now() < end, "the segments have other names and emails than those of the patients");
                smol::Timer::after(Duration::from_millis(200)).await;
            }
        }

        // An existing state goes on, one that is behind catches up, and a new one counts the same.
        for state in ["sqlite", "half", "new"] {
            let file = topic.state.with_extension(state);
            let service = topic.start(&[("STATE_FILE", file.to_str().unwrap())]).await;
            let after = totals(&service, records).await;
            assert_eq!(after, before, "{state}");
            assert_eq!(service.get("/actuator/health/readiness").await.json()["components"]["ingest"]["status"], "UP");
            service.stop().await;
        }
    });
}

async fn send(topic: &mut Harness, events: impl Iterator<Item = (&Patient, i64)>) {
    let mut batches = BTreeMap::<i32, Vec<Record>>::new();
    for (patient, version) in events {
        batches.entry(patient.partition()).or_default().push(patient.event(version));
    }
    for (partition, batch) in batches {
        topic.send(partition, batch).await;
    }
}

/// Everything that is counted, once the partitions are read up to their ends, whose offsets add up to this number.
async fn totals(service: &Running, records: i64) -> Json {
    let summary = service.until_applied(records).await;
    let partitions = summary["partitions"].as_array().unwrap();
    assert!(partitions.iter().all(|partition| partition["lag"] == 0 && partition["halted"].is_null()), "{summary}");
    let mut totals = summary.clone();
    totals["registrations"] = service.get("/analytics/registrations?interval=day").await.json();
    totals
}

/// The number of records on the topic.
async fn records_of(topic: &Harness) -> i64 {
    let mut records = 0;
    for partition in 0..PARTITIONS {
        let mut consumer = kafka::Consumer::new(topic.kafka.clone(), &topic.topic, partition);
        let offsets = consumer.offsets().await.unwrap();
        let mut next = offsets.start;
        while next < offsets.end {
            let fetched = consumer.fetch(next, 1 << 18, Duration::from_millis(100)).await.unwrap();
            records += fetched.records.iter().count() as i64;
            next = fetched.next;
        }
    }
    records
}

/// The names and emails in all segments of the broker.
fn personal_data(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in fs::read_dir(directory).unwrap().filter_map(Result::ok).map(|file| file.path()) {
        if path.is_dir() {
            found.extend(personal_data(&path));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            // The cleaner may delete it meanwhile.
            let content = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            for (prefix, length) in PREFIXES {
                let texts = content.match_indices(prefix).filter_map(|(at, _)| content.get(at..at + length));
                found.extend(texts.map(str::to_owned));
            }
        }
    }
    found
}
