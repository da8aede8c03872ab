//! `POST /patients` with an `Idempotency-Key`.

use std::time::Duration;

use patient_service::store::Store;
use postgres::PgConnection;
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::http::Response;

use crate::harness::{Harness, at_once, execute, id, path, patient, with_service};

async fn post(service: &Harness, key: &str, body: &Json) -> Response {
    service.client.send(Method::Post, "/patients", &[("idempotency-key", key)], Some(body)).await.unwrap()
}

#[test]
fn a_repeated_request_gives_the_first_patient() {
    with_service(|service| async move {
        let first = post(&service, "key-1", &patient("Jane Doe")).await;
        let second = post(&service, "key-1", &patient("Jane Doe")).await;
        assert_eq!((first.status, second.status), (201, 201));
        assert_eq!(first.json(), second.json());
        assert_eq!(first.header("location"), second.header("location"));
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 1);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 1);
    });
}

#[test]
fn another_request_with_the_key_is_rejected() {
    with_service(|service| async move {
        post(&service, "key-1", &patient("Jane Doe")).await;
        let other = post(&service, "key-1", &patient("John Doe")).await;
        assert_eq!(other.status, 422);
        assert_eq!(other.json()["type"], "urn:problem-type:idempotency-key-reused");
        assert_eq!(post(&service, "key-2", &patient("John Doe")).await.status, 201);
    });
}

#[test]
fn fifty_concurrent_requests_with_one_key_make_one_patient() {
    with_service(|service| async move {
        let client = service.client.clone();
        let responses: Vec<Response> = at_once(50, |_| {
            let client = client.clone();
            async move {
                let headers = [("idempotency-key", "key-1")];
                client.send(Method::Post, "/patients", &headers, Some(&patient("Jane Doe"))).await.unwrap()
            }
        })
        .await;
        let ids: std::collections::HashSet<String> = responses.iter().map(|response| id(&response.json())).collect();
        assert_eq!(ids.len(), 1);
        assert!(responses.iter().all(|response| response.status == 201));
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 1);
        assert_eq!(service.billing.count(), 1);
    });
}

#[test]
fn a_key_is_free_again_after_a_request_that_failed() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        assert_eq!(post(&service, "key-1", &patient("Jane Doe")).await.status, 409);
        assert_eq!(post(&service, "key-1", &json!({})).await.status, 400);
        assert_eq!(post(&service, "key-1", &patient("John Doe")).await.status, 201);
    });
}

#[test]
fn a_key_whose_patient_is_gone_makes_no_second_one() {
    with_service(|service| async move {
        let jane = post(&service, "key-1", &patient("Jane Doe")).await.json();
        service.client.delete(&path(&jane)).await.unwrap();
        let again = post(&service, "key-1", &patient("Jane Doe")).await;
        assert_eq!(again.status, 409);
        assert_eq!(again.json()["type"], "urn:problem-type:idempotency-key-spent");
    });
}

#[test]
fn a_key_must_be_visible_ascii() {
    with_service(|service| async move {
        assert_eq!(post(&service, &"k".repeat(256), &patient("Jane Doe")).await.status, 400);
        assert_eq!(post(&service, "a b", &patient("Jane Doe")).await.status, 400);
        assert_eq!(post(&service, &"k".repeat(255), &patient("Jane Doe")).await.status, 201);
    });
}

/// If a key were deleted early, a repetition of its request would register a second patient.
#[test]
fn a_key_does_not_age_by_a_step_of_the_clock() {
    with_service(|service| async move {
        let store = Store::new(service.database.clone());
        let (hour, day, minute) = (Duration::from_secs(3600), Duration::from_secs(86_400), Duration::from_secs(60));
        let look = async |retention| {
            let look = store.observe_clock(retention, minute * 2).await.unwrap();
            store.redate_future_keys(1000).await.unwrap();
            store.delete_keys(look.keys_expired_before, 1000).await.unwrap()
        };
        let jane = post(&service, "key-1", &patient("Jane Doe")).await.json();
        // Otherwise the email would reveal the repetition.
        service.client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
        let is_known = async || post(&service, "key-1", &patient("Jane Doe")).await.json()["id"] == jane["id"];
        assert_eq!(look(day).await, 0);

        // Steps of the clock: forward and back by an hour and by days, more than once.
        for step in [hour, day * 3, day * 40] {
            for forward in [true, true, false, true, false, false] {
                step_clock(&service, step, forward).await;
                assert_eq!(look(day).await, 0, "{step:?} {forward}");
                assert!(is_known().await, "{step:?} {forward}");
            }
        }

        // It ages in observed time, and no step of the clock keeps it for ever.
        step_clock(&service, day * 400, false).await;
        assert_eq!(look(day).await, 0);
        let mut passed = Duration::ZERO;
        while look(hour).await == 0 {
            assert!(passed < hour * 2, "it is kept for ever");
            step_clock(&service, minute, true).await;
            passed += minute;
        }
        assert!(passed >= hour - minute * 2, "{passed:?}");
    });
}

#[test]
fn keys_expire_although_the_observations_of_the_clock_were_deleted() {
    with_service(|service| async move {
        post(&service, "key-1", &patient("Jane Doe")).await;
        // As a test does that empties all tables, or some of them.
        execute(&service, "TRUNCATE clock_looks").await;
        let store = Store::new(service.database.clone());
        let seen = store.observe_clock(Duration::ZERO, Duration::from_secs(120)).await.unwrap();
        assert_eq!(seen.step, None);
        assert_eq!(store.delete_keys(seen.keys_expired_before, 1000).await.unwrap(), 1);
        assert_eq!(service.number("SELECT count(*) FROM clock_looks").await, 1);
    });
}

/// Shifts all stored times, which has the effect of a step of the clock.
async fn step_clock(service: &Harness, step: Duration, forward: bool) {
    let seconds = if forward { -step.as_secs_f64() } else { step.as_secs_f64() };
    for statement in [
        "UPDATE idempotency_keys SET created_at = created_at + make_interval(secs => $1)",
        "UPDATE clock_looks SET looked_at = looked_at + make_interval(secs => $1)",
        "UPDATE clock_gaps SET began_at = began_at + make_interval(secs => $1), ended_at = ended_at + make_interval(secs => $1)",
    ] {
        let execute =
            async |connection: &mut PgConnection| postgres::query(statement).bind(seconds).execute(connection).await;
        service.database.run(execute).await.unwrap();
    }
}
