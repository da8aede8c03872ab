//! Requests that other transactions have locked, beside requests that nobody has.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use smol::Task;
use testbed::{
    http::Response,
    sql::{self, Session},
    until,
};

use crate::harness::{Harness, path, patient, with_settings};

/// Longer than the test needs, so that who waits for a lock waits for the test.
const LOCK_DEADLINE: &str = "20s";
/// How long a request may wait to be executed, and longer than that.
const ACQUIRE_DEADLINE: (&str, &str) = ("DATABASE_ACQUIRE_DEADLINE", "3s");
const LATE: Duration = Duration::from_millis(3500);

/// Inserts patients as a registration does that has not been committed yet.
const HOLD_EMAILS: &str = "BEGIN; INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
    SELECT gen_random_uuid(), 'x', 'held.' || n || '@example.org', 'x', now(), now() FROM generate_series(1, 20) n";

fn post(service: &Harness, body: Json) -> Task<Response> {
    let client = service.client.clone();
    runtime::spawn(async move { client.post("/patients", &body).await.unwrap() })
}

async fn until_in_flight(service: &Harness, requests: usize) {
    let gauge = format!("http_requests_in_flight {requests}\n");
    until("the requests are in flight", async || service.get("/metrics").await.text().contains(&gauge)).await;
}

async fn until_waiting(url: &str) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    until("a request waits for the lock", async || sql::number(url, waiting).await.unwrap() > 0).await;
}

#[test]
fn registrations_with_locked_emails_block_no_other_one() {
    const SETTINGS: [(&str, &str); 3] =
        [("DATABASE_DEADLINE", LOCK_DEADLINE), ACQUIRE_DEADLINE, ("DATABASE_CONNECTIONS", "8")];
    with_settings(&SETTINGS, |service| async move {
        let mut session = Session::open(&service.database_url).await.unwrap();
        session.execute(HOLD_EMAILS).await.unwrap();
        let mut held = Vec::new();
        // One after the other, so that each would have a statement of its own.
        for n in 1..=2 {
            held.push(post(&service, patient("Held 1")));
            until_in_flight(&service, n).await;
            until_waiting(&service.database_url).await;
        }
        service.register("Jane Doe").await;
        // More than there are connections.
        held.extend((2..=20).map(|n| post(&service, patient(&format!("Held {n}")))));
        until_in_flight(&service, 21).await;
        // The second one with the first email cannot be executed before the first one has its answer.
        let started = Instant::now();
        for n in 0.. {
            if n >= 10 && started.elapsed() >= LATE {
                break;
            }
            let jane = service.register(&format!("Jane {n}")).await;
            assert_eq!(service.get("/patients").await.status, 200);
            assert_eq!(service.get(&path(&jane)).await.status, 200);
        }
        session.execute("ROLLBACK").await.unwrap();
        let mut responses = Vec::new();
        for held in held {
            responses.push(held.await);
        }
        let statuses: Vec<_> = responses.iter().map(|response| response.status).collect();
        assert_eq!(statuses[..2], [201, 503], "{statuses:?}");
        for response in responses {
            match response.status {
                201 => {}
                503 => assert_eq!(response.json()["type"], json!("urn:problem-type:database-busy")),
                status => panic!("{status}: {}", response.text()),
            }
        }
    });
}

#[test]
fn changes_of_locked_patients_are_busy_and_cost_others_nothing() {
    with_settings(&[("DATABASE_DEADLINE", "4s"), ("DATABASE_CONNECTIONS", "8")], |service| async move {
        let mut locked = Vec::new();
        for n in 0..20 {
            locked.push(service.register(&format!("Locked {n}")).await);
        }
        let jane = service.register("Jane Doe").await;
        let mut session = Session::open(&service.database_url).await.unwrap();
        session.execute("BEGIN; SELECT FROM patients WHERE name LIKE 'Locked%' FOR UPDATE").await.unwrap();
        let change = |patient: &Json| {
            let (client, patient) = (service.client.clone(), patient.clone());
            runtime::spawn(async move { client.put(&path(&patient), &patient).await.unwrap() })
        };
        let changes: Vec<_> = std::iter::repeat_n(&locked[0], 50).chain(&locked).map(change).collect();
        until_waiting(&service.database_url).await;
        for (n, locked) in locked.iter().enumerate() {
            assert_eq!(service.get("/patients").await.status, 200);
            assert_eq!(service.get(&path(locked)).await.status, 200);
            let changed = service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap();
            assert_eq!(changed.status, 200, "{}", changed.text());
        }
        for change in changes {
            let response = change.await;
            assert_eq!(response.status, 503, "{}", response.text());
            assert_eq!(response.json()["type"], json!("urn:problem-type:database-busy"));
        }
        session.execute("ROLLBACK").await.unwrap();
        assert_eq!(change(&locked[0]).await.status, 200);
    });
}
