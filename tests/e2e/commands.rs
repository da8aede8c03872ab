//! Commands for operators, on a system that `up` has started.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use chrono::{NaiveDate, Utc};
use codec::{
    dead_letter::{self, Origin},
    event::{Event, EventKind::Created},
    headers,
};
use kafka::{Consumer, Producer, Record};
use testbed::{
    broker::{Broker, Kind, Size},
    postgres::{Cluster, Durability},
    sql, until,
};
use uuid::Uuid;

use crate::{
    stack::{Stack, printed},
    support::{TIMEOUT, register},
};

testbed::on_each_broker!(dead_letters_are_sent_again_and_the_state_is_rebuilt);

impl Stack {
    async fn end(&self, topic: &str, partition: i32) -> i64 {
        Consumer::new(self.kafka.clone(), topic, partition).offsets().await.map_or(0, |offsets| offsets.end)
    }

    pub(crate) async fn send(&self, topic: &str, partition: i32, record: Record) -> i64 {
        let mut producer = Producer::new(self.kafka.clone(), topic);
        let mut sent = producer.send(BTreeMap::from([(partition, vec![record])])).await;
        sent.remove(&partition).unwrap().unwrap()[0]
    }

    /// Runs a statement on the database of patient-service.
    pub(crate) async fn execute(&self, statement: String) {
        let cluster = Cluster::running(&self.home().join("postgres"), Durability::Disk).unwrap();
        sql::execute(&cluster.url("patients"), statement.leak()).await.unwrap();
    }

    /// Makes an event a dead letter of the outbox, as if the broker had rejected it.
    pub(crate) async fn reject_event(&self, id: i64, event: &Record) {
        let value: String = event.value.iter().flatten().map(|byte| format!("{byte:02x}")).collect();
        let insert = format!(
            "WITH patient AS (
                INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
                VALUES (gen_random_uuid(), 'Jane Doe', 'of-event-{id}@example.org', '1 Main Street', '1990-12-31', '2024-02-29')
                RETURNING id
            )
            INSERT INTO outbox_dead_letters (id, patient_id, key_hash, event_id, event_type, value, created_at, error)
            SELECT {id}, id, 1, gen_random_uuid(), '{kind}', '\\x{value}', now(), 'TooLarge' FROM patient",
            kind = Created.name(),
        );
        self.execute(insert).await;
    }

    async fn record(&self, topic: &str, partition: i32, offset: i64) -> Record {
        let mut consumer = Consumer::new(self.kafka.clone(), topic, partition);
        let fetched = consumer.fetch(offset, 1 << 20, Duration::from_secs(1)).await.unwrap();
        fetched.records.iter().find(|record| record.offset == offset).unwrap().to_record().record
    }
}

/// The event that a patient was registered.
pub(crate) fn created(patient_id: Uuid) -> Record {
    let date = |text: &str| text.parse::<NaiveDate>().unwrap();
    let event = Event {
        id: Uuid::now_v7(),
        patient_id,
        kind: Created,
        version: 1,
        time: Utc::now(),
        name: "Jane Doe",
        email: "jane@example.org",
        registered_date: date("2024-02-29"),
        date_of_birth: date("1990-12-31"),
    };
    Record {
        key: Some(patient_id.to_string().into_bytes()),
        value: Some(event.encode()),
        headers: headers::event_headers(event.id, Created, event.time, None),
        timestamp: Utc::now(),
    }
}

fn dead_letters_are_sent_again_and_the_state_is_rebuilt(kind: Kind) {
    runtime::block_on(2, async {
        let stack = Stack::up(kind);
        let (patients, analytics) = (stack.client("PATIENT_PORT"), stack.client("ANALYTICS_PORT"));
        for name in ["Ann", "Bob", "Cid"] {
            register(&patients, name).await;
        }
        let active = async || analytics.get("/analytics/summary").await.unwrap().json()["activePatients"].clone();
        until("three patients are counted", async || active().await == 3).await;
        assert!(stack.print(&["dead-letters"]).contains("no dead letters"));
        let unread = stack.run_unread(&["ps"]);
        assert!(unread.status.success() && unread.stderr.is_empty(), "{}", printed(&unread));

        // A record that is still undecodable becomes a dead letter again after it was resent, and is not resent automatically.
        let headers = vec![
            headers::header("traceparent", "00-1-2-01"),
            headers::header("a", "1"),
            headers::header("a", "2"),
            (b"n".to_vec(), None),
            headers::header("dlq-error", "mine"),
        ];
        let junk = Record { key: Some(b"k".to_vec()), value: Some(vec![0xff; 33]), headers, timestamp: Utc::now() };
        let at = stack.send("patient", 1, junk.clone()).await;
        until("the letter is on its topic", async || stack.end("patient.dlq", 0).await == 1).await;
        let listed = stack.print(&["dead-letters"]);
        let line = listed.lines().find(|line| line.contains(&format!("patient 1:{at}"))).unwrap();
        assert!(line.trim_start().starts_with("0 ") && line.contains(" dead ") && line.contains("no PatientEvent"));
        let again = stack.run(&["dead-letters", "--resend"]);
        assert!(!again.status.success() && printed(&again).contains("0 accepted, 1 dead again"), "{}", printed(&again));
        let Record { key, value, headers, .. } = stack.record("patient", 1, stack.end("patient", 1).await - 1).await;
        assert_eq!((key, value, headers), (junk.key, junk.value, junk.headers), "as it was");
        until("the mark and the new letter", async || stack.end("patient.dlq", 0).await == 3).await;

        // A dead letter whose cause is fixed: an event that an older analytics could not decode.
        let event = created(Uuid::now_v7());
        let origin = Origin { topic: "patient".to_owned(), partition: 2, offset: 0 };
        let headers = dead_letter::add_headers(event.headers.clone(), &origin, "unknown");
        let id = stack.send("patient.dlq", 0, Record { headers, ..event.clone() }).await.to_string();
        let unknown = stack.run(&["dead-letters", "--resend", &id, "77"]);
        assert!(!unknown.status.success() && printed(&unknown).contains("nothing was sent"), "{}", printed(&unknown));
        assert_eq!(active().await, 3);
        let again = stack.print(&["dead-letters", "--resend", &id]);
        assert!(again.contains("1 sent again: 1 accepted, 0 dead again"), "{again}");
        assert_eq!(active().await, 4);
        let end = stack.end("patient", 2).await;
        let Record { key, value, headers, .. } = stack.record("patient", 2, end - 1).await;
        assert_eq!((key, value, headers), (event.key, event.value, event.headers), "as it was");
        let twice = stack.print(&["dead-letters", "--resend", &id]);
        assert!(twice.contains("was sent again before") && stack.end("patient", 2).await == end, "{twice}");

        // Events that the broker rejected were never on a topic: they are in patient-service's database.
        let event = created(Uuid::now_v7());
        stack.reject_event(7, &event).await;
        let too_large = Record { value: Some(vec![0; 3_000_000]), ..event.clone() };
        stack.reject_event(8, &too_large).await;
        let listed = stack.print(&["dead-letters"]);
        let shown =
            |id: &str| listed.lines().any(|line| line.trim_start().starts_with(id) && line.contains("rejected"));
        assert!(shown("outbox-7 ") && shown("outbox-8 "), "{listed}");
        let unknown = stack.run(&["dead-letters", "--resend", "outbox-7", "outbox-9"]);
        assert!(!unknown.status.success() && printed(&unknown).contains("nothing was sent"), "{}", printed(&unknown));
        let again = stack.print(&["dead-letters", "--resend", "outbox-7"]);
        assert!(again.contains("1 resubmitted: 1 accepted, 0 pending, 0 dead-lettered again"), "{again}");
        until("it is counted", async || active().await == 5).await;
        let mut registered = 5;
        // Nisshi accepts records of any size.
        if kind == Kind::Kafka {
            // It is dead-lettered again once it was rejected before and after another one was accepted.
            let again = thread::scope(|scope| {
                let command = scope.spawn(|| stack.run(&["dead-letters", "--resend", "outbox-8"]));
                while !command.is_finished() {
                    smol::block_on(register(&patients, &format!("Patient {registered}")));
                    registered += 1;
                    thread::sleep(Duration::from_millis(100));
                }
                command.join().unwrap()
            });
            assert!(
                !again.status.success() && printed(&again).contains("0 accepted, 0 pending, 1 dead-lettered again"),
                "{}",
                printed(&again)
            );
            until("they are counted", async || active().await == registered).await;
        }

        let letters = |listed: &str| listed.lines().filter(|line| line.contains("  patient ")).count();
        let (before, written) = (letters(&stack.print(&["dead-letters"])), stack.end("patient.dlq", 0).await);
        assert_eq!(before, 3);
        let rebuilt = stack.print(&["rebuild-analytics"]);
        stack.guard();
        assert!(
            rebuilt.contains(&format!("{} events in ", registered + 2)) && rebuilt.contains("events a second"),
            "{rebuilt}"
        );
        let total = |name: &str| rebuilt.lines().find(|line| line.contains(name)).unwrap().to_owned();
        let active_now = registered.to_string();
        for (name, value) in [("activePatients", &*active_now), ("created", &active_now), ("unknown", "0")] {
            let numbers: Vec<_> = total(name).split_whitespace().skip(1).map(str::to_owned).collect();
            assert_eq!(numbers, [value, value], "{rebuilt}");
        }
        assert_eq!(active().await, registered);
        until("its dead letters are written again", async || stack.end("patient.dlq", 0).await == written + 2).await;
        assert_eq!(letters(&stack.print(&["dead-letters"])), before, "and are not shown again");
        assert!(!stack.home().join("analytics.sqlite.before").exists());

        // Without the topic, the state is not deleted.
        let (home, port) = (stack.home().join("broker"), stack.kafka.bootstrap.0[0].port);
        let mut broker = Broker::running(kind, &home, port, Size::Full).unwrap();
        broker.process().kill().await;
        let began = Instant::now();
        assert!(!stack.run(&["rebuild-analytics"]).status.success());
        assert!(began.elapsed() < TIMEOUT && fs::exists(stack.home().join("analytics.sqlite")).unwrap());
        assert_eq!(active().await, registered);
        stack.print(&["down"]);
    });
}
