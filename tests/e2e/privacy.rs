//! Logs, metrics and exports contain no personal data.

use serde_json::{Value as Json, json};
use surf::http::Method;

use testbed::until;

use crate::{
    running_system::{Counts, RunningSystem},
    support::{path, unique},
};

/// Personal data of the patient. None of [`MARKS`] may appear in logs, metrics or exports.
const NAME: &str = "Zebediah Markworthy";
const ADDRESS: &str = "77 Markington Lane";
const BIRTH: &str = "1953-04-17";
pub(crate) const MARKS: [&str; 6] = ["Zebediah", "zebediah", "arkworthy", "mark.example", "Markington", BIRTH];

/// Registers a patient, sends valid and invalid requests about it, and searches logs and metrics for its data.
pub(crate) async fn of_a_marked_patient(system: &RunningSystem) {
    let before = system.counts().await;
    let client = &system.patients;
    let email = format!("zebediah.{:016x}@mark.example", unique());
    let key = format!("{:016x}", unique());
    let marked = json!({"name": NAME, "email": email, "address": ADDRESS, "dateOfBirth": BIRTH});
    let send = async |method: Method, path: &str, headers: &[(&str, &str)], body: Option<&Json>| {
        client.send(method, path, headers, body).await.unwrap()
    };
    let once = [("idempotency-key", key.as_str())];
    let response = send(Method::Post, "/patients", &once, Some(&marked)).await;
    assert_eq!(response.status, 201, "{}", response.text());
    let patient = response.json();
    send(Method::Post, "/patients", &[], Some(&marked)).await;
    send(Method::Post, "/patients", &once, Some(&marked)).await;
    let invalid = json!({"name": NAME, "email": "Markworthy", "dateOfBirth": BIRTH});
    send(Method::Post, "/patients", &[], Some(&invalid)).await;
    send(Method::Post, "/patients", &[], Some(&json!([NAME, email]))).await;
    send(Method::Get, "/patients?search=Markworthy&sort=name&limit=1", &[], None).await;
    send(Method::Get, "/patients?sort=email&cursor=Markworthy", &[], None).await;
    send(Method::Get, "/patients/Markworthy", &[], None).await;
    send(Method::Get, "/Markworthy", &[], None).await;
    send(Method::Put, &path(&patient), &[("if-match", "\"Markworthy\"")], Some(&marked)).await;
    send(Method::Put, &path(&patient), &[], Some(&marked)).await;
    let charge = json!({"transactionId": "t", "type": "CHARGE", "amount": 1, "currency": "EUR"});
    send(Method::Post, &format!("{}/billing/transactions", path(&patient)), &[], Some(&charge)).await;
    send(Method::Delete, &path(&patient), &[], None).await;
    system.until_counted(before, Counts { active: 0, created: 1, updated: 1, deleted: 1 }).await;
    let id = patient["id"].as_str().unwrap();
    let closed = |line: &str| line.contains("account closed") && line.contains(id);
    until("the account is closed", async || (system.log)("billing-service").lines().any(closed)).await;

    let unmarked = |what: &str, text: &str| {
        for mark in MARKS {
            assert_eq!(text.lines().find(|line| line.contains(mark)), None, "{mark} in {what}");
        }
    };
    for component in ["patient-service", "billing-service", "analytics-service"] {
        let log = (system.log)(component);
        // Analytics may have logged few lines.
        assert!(log.lines().count() > 0, "there is something to look at in the log of {component}");
        unmarked(&format!("the log of {component}"), &log);
    }
    for client in system.replicas.iter().chain(&system.billing).chain(&system.analytics_metrics) {
        let metrics = client.get("/metrics").await.unwrap().text();
        assert!(metrics.len() > 500, "there is something to look at");
        unmarked(&format!("the metrics of {}", client.base()), &metrics);
    }
    for client in &system.analytics {
        unmarked("what analytics shows", &client.get("/analytics/summary").await.unwrap().text());
    }
}
