//! `POST /patients`.

use chrono::{Days, NaiveDate, TimeDelta, Utc};
use postgres::{Acquire as _, PgConnection};
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{http::Response, until};

use crate::{
    harness::{at_once, id, path, patient, with_service, with_settings},
    test_billing::Behaviour,
};

#[test]
fn success() {
    with_service(|service| async move {
        let response = service.post("/patients", &patient("Jane Doe")).await;
        assert_eq!(response.status, 201);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("etag"), Some("\"1\""));
        let body = response.json();
        assert_eq!(response.header("location"), Some(path(&body).as_str()));
        assert_eq!(
            body,
            json!({
                "id": id(&body),
                "name": "Jane Doe",
                "email": "jane.doe@example.org",
                "address": "1 Main Street",
                "dateOfBirth": "1990-12-31",
                "registeredDate": "2024-02-29",
                "billing": {"accountId": "account-0", "status": "ACTIVE"},
            })
        );
        let order: Vec<_> = body.as_object().unwrap().keys().collect();
        assert_eq!(order, ["id", "name", "email", "address", "dateOfBirth", "registeredDate", "billing"]);
        assert!(response.header("server-timing").unwrap().contains("billing;dur="));
    });
}

#[test]
fn a_day_that_has_begun_anywhere_on_earth_is_not_in_the_future() {
    with_service(|service| async move {
        // The date where days begin first.
        let latest_day = || (Utc::now() + TimeDelta::hours(14)).date_naive();
        let responses = async |date: NaiveDate| {
            let mut born = patient(&format!("Born {date}"));
            (born["dateOfBirth"], born["registeredDate"]) = (json!(date), json!(date));
            service.post("/patients", &born).await
        };
        // Repeated if that day ends in between.
        let (begun, to_come) = loop {
            let day = latest_day();
            let pair = (responses(day).await, responses(day + Days::new(1)).await);
            if day == latest_day() {
                break pair;
            }
        };
        assert_eq!(begun.status, 201, "{}", begun.text());
        assert_eq!(to_come.status, 400);
        let errors = to_come.json()["errors"].clone();
        assert_eq!(errors["dateOfBirth"], "Date of birth must not lie in the future");
        assert_eq!(errors["registeredDate"], "Registered date must not lie in the future");
        let mut now = patient("Registered Now");
        now.as_object_mut().unwrap().remove("registeredDate");
        let response = service.post("/patients", &now).await;
        let today = Utc::now().date_naive();
        let registered = response.json()["registeredDate"].as_str().unwrap().parse::<NaiveDate>().unwrap();
        assert!(registered == today || registered + Days::new(1) == today, "unless given, it is the day in UTC");
    });
}

#[test]
fn the_date_of_registration_is_today_unless_given() {
    with_service(|service| async move {
        let mut jane = patient("Jane Doe");
        jane.as_object_mut().unwrap().remove("registeredDate");
        let body = service.post("/patients", &jane).await.json();
        assert_eq!(body["registeredDate"], chrono::Utc::now().date_naive().to_string());
    });
}

#[test]
fn every_wrong_field_is_reported_at_once() {
    with_service(|service| async move {
        let response =
            service.post("/patients", &json!({"name": " ", "email": "jane", "dateOfBirth": "3000-01-01"})).await;
        assert_eq!(response.status, 400);
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        let errors = json!({
            "name": "Name is required",
            "email": "Email should be valid",
            "address": "Address is required",
            "dateOfBirth": "Date of birth must not lie in the future",
        });
        assert_eq!(response.json()["errors"], errors);
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 0);
    });
}

#[test]
fn emails_are_unique_case_insensitively() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        let mut other = patient("Someone Else");
        other["email"] = json!("JANE.doe@Example.ORG");
        let response = service.post("/patients", &other).await;
        assert_eq!(response.status, 409);
        assert_eq!(response.json()["type"], "urn:problem-type:email-taken");
        assert!(!response.text().contains("Jane"), "no response holds another patient's data");
    });
}

/// `REINDEX CONCURRENTLY` leaves the index that it has replaced if it is cancelled.
#[test]
fn duplicates_are_known_while_their_index_is_rebuilt() {
    with_service(|service| async move {
        let headers = [("idempotency-key", "key-1")];
        let post = async |name: &str| {
            service.client.send(Method::Post, "/patients", &headers, Some(&patient(name))).await.unwrap()
        };
        let jane = post("Jane Doe").await.json();
        let reindex = "ALTER INDEX patients_email_key RENAME TO patients_email_key_ccold;
            CREATE UNIQUE INDEX patients_email_key ON patients (lower(email));
            ALTER INDEX idempotency_keys_pkey RENAME TO idempotency_keys_pkey_ccold;
            CREATE UNIQUE INDEX idempotency_keys_pkey ON idempotency_keys (key)";
        testbed::sql::execute(&service.database_url, reindex).await.unwrap();
        let duplicate = service.post("/patients", &patient("Jane Doe")).await;
        assert_eq!(duplicate.status, 409, "{}", duplicate.text());
        let repeated = post("Jane Doe").await;
        assert_eq!(repeated.status, 201, "{}", repeated.text());
        assert_eq!(id(&repeated.json()), id(&jane));
    });
}

#[test]
fn fifty_concurrent_requests_for_one_email_make_one_patient() {
    with_service(|service| async move {
        let client = service.client.clone();
        let responses: Vec<Response> = at_once(50, |n| {
            let client = client.clone();
            let mut jane = patient("Jane Doe");
            jane["name"] = json!(format!("Jane {n}"));
            async move { client.post("/patients", &jane).await.unwrap() }
        })
        .await;
        assert_eq!(responses.iter().filter(|response| response.status == 201).count(), 1);
        assert_eq!(responses.iter().filter(|response| response.status == 409).count(), 49);
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 1);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 1);
        assert_eq!(service.billing.count(), 1);
    });
}

/// Deadline of the transaction that locks an email.
const LOCK_DEADLINE: &str = "10s";

/// A registration waits for whoever holds its email; those that are stored with it in one commit do not.
#[test]
fn a_locked_email_blocks_no_other_registration() {
    // Whoever waits for the email may wait as long as the others need on a busy machine.
    with_settings(&[("DATABASE_DEADLINE", LOCK_DEADLINE)], |service| async move {
        let held = patient("Patient 25");
        let (holding, is_held) = smol::channel::bounded::<()>(1);
        let (release, released) = smol::channel::bounded::<()>(1);
        let (database, email) = (service.database.clone(), held["email"].as_str().unwrap().to_owned());
        // As an update that has not been committed yet.
        let holder = runtime::spawn(async move {
            let hold = async |connection: &mut PgConnection| {
                let mut transaction = connection.begin().await?;
                postgres::query(
                    "INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
                    VALUES (gen_random_uuid(), 'x', $1, 'x', now(), now())",
                )
                .bind(&email)
                .execute(&mut *transaction)
                .await?;
                holding.send(()).await.unwrap();
                released.recv().await.unwrap();
                transaction.rollback().await
            };
            database.run(hold).await
        });
        is_held.recv().await.unwrap();
        let client = service.client.clone();
        let (sender, others) = smol::channel::unbounded();
        let registering = at_once(50, move |n| {
            let (client, sender) = (client.clone(), sender.clone());
            async move {
                let response = client.post("/patients", &patient(&format!("Patient {n}"))).await.unwrap();
                if n != 25 {
                    sender.send(response.status).await.unwrap();
                }
                response.status
            }
        });
        let registering = runtime::spawn(registering);
        for _ in 0..49 {
            assert_eq!(others.recv().await.unwrap(), 201);
        }
        release.send(()).await.unwrap();
        // It was held until the others had been answered: had its deadline passed before, this would be an error.
        holder.await.unwrap();
        assert!(registering.await.iter().all(|&status| status == 201));
    });
}

#[test]
fn text_of_any_kind_is_stored_verbatim() {
    with_service(|service| async move {
        for (n, name) in [
            "Robert'); DROP TABLE patients;--",
            "Zoë",
            "Zoe\u{308}",
            "👩‍⚕️ 🩺",
            "مريم \u{202e}abc",
            "%_\\ \" </script>",
            "line\nbreak\ttab",
            " spaces ",
        ]
        .into_iter()
        .enumerate()
        {
            let mut jane = patient("Jane");
            (jane["name"], jane["address"]) = (json!(name), json!(name));
            jane["email"] = json!(format!("jane{n}@example.org"));
            let response = service.post("/patients", &jane).await;
            assert_eq!(response.status, 201, "{name:?}: {}", response.text());
            let read = service.get(&path(&response.json())).await.json();
            assert_eq!((&read["name"], &read["address"]), (&json!(name), &json!(name)));
        }
        let mut nul = patient("Jane");
        nul["address"] = json!("a\0b");
        assert_eq!(service.post("/patients", &nul).await.status, 400);
        let mut long = patient("Jane");
        long["name"] = json!("x".repeat(10_000));
        assert_eq!(service.post("/patients", &long).await.status, 400);
    });
}

#[test]
fn without_billing_the_patient_is_stored_and_its_account_is_opened_later() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unavailable);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"], json!({"accountId": null, "status": "PENDING"}));
        assert_eq!(service.get(&path(&jane)).await.status, 200);
        service.billing.set(Behaviour::Normal);
        until("the account is opened", async || service.billing.status(&id(&jane)).is_some()).await;
        until("the task is done", async || service.number("SELECT count(*) FROM billing_tasks").await == 0).await;
        assert_eq!(service.billing.count(), 1);
    });
}

#[test]
fn a_call_to_billing_without_an_answer_costs_the_deadline() {
    with_service(|service| async move {
        for behaviour in [Behaviour::Hangs, Behaviour::HangsAfterExecution] {
            service.billing.set(behaviour);
            let started = std::time::Instant::now();
            let patient: Json = service.register(&format!("Jane {behaviour:?}")).await;
            assert_eq!(patient["billing"]["status"], "PENDING");
            let took = started.elapsed().as_secs_f64();
            assert!((1.0..2.0).contains(&took), "{took}");
        }
        service.billing.set(Behaviour::Normal);
        until("both accounts are open", async || service.billing.count() == 2).await;
        until("the tasks are done", async || service.number("SELECT count(*) FROM billing_tasks").await == 0).await;
    });
}

#[test]
fn a_task_completed_by_the_request_is_deleted_soon() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        until("the task is gone", async || service.number("SELECT count(*) FROM billing_tasks").await == 0).await;
    });
}

#[test]
fn tracestate_and_baggage_reach_billing() {
    with_service(|service| async move {
        let headers = [
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("tracestate", "vendor=t61rcWkgMzE"),
            ("baggage", "tenant=a,region=eu;zone=1"),
        ];
        let response =
            service.client.send(Method::Post, "/patients", &headers, Some(&patient("Jane Doe"))).await.unwrap();
        assert_eq!(response.status, 201, "{}", response.text());
        service.register("John Doe").await;
        let passed_on = headers[1..].iter().map(|(_, value)| Some((*value).to_owned())).collect::<Vec<_>>();
        assert_eq!(service.billing.propagated(), [<[_; 2]>::try_from(passed_on).unwrap(), [None, None]]);
    });
}
