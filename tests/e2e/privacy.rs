//! What is logged, measured and exported holds nothing about a person.

use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::broker::Kind;

use crate::{
    collector::Collector,
    support::{PATIENCE, path, system, until},
};

testbed::on_each_broker!(a_marked_patient_leaves_no_mark);

/// Each of these is looked for in everything that is logged, measured or exported.
const NAME: &str = "Zebediah Markworthy";
const EMAIL: &str = "zebediah.markworthy@mark.example";
const ADDRESS: &str = "77 Markington Lane";
const BIRTH: &str = "1953-04-17";
const MARKS: [&str; 6] = ["Zebediah", "zebediah", "arkworthy", "mark.example", "Markington", BIRTH];

fn a_marked_patient_leaves_no_mark(kind: Kind) {
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let endpoint = collector.endpoint();
        let system = system(kind, &[("LOG_LEVEL", "trace"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
        let client = system.patient_client();
        let marked = json!({"name": NAME, "email": EMAIL, "address": ADDRESS, "dateOfBirth": BIRTH});
        let send = async |method: Method, path: &str, headers: &[(&str, &str)], body: Option<&Json>| {
            client.send(method, path, headers, body).await.unwrap()
        };
        let patient = send(Method::Post, "/patients", &[("idempotency-key", "marked")], Some(&marked)).await.json();
        // Everything that can go wrong with it, too.
        send(Method::Post, "/patients", &[], Some(&marked)).await;
        send(Method::Post, "/patients", &[("idempotency-key", "marked")], Some(&marked)).await;
        send(Method::Post, "/patients", &[], Some(&json!({"name": NAME, "email": "Markworthy", "dateOfBirth": BIRTH})))
            .await;
        send(Method::Post, "/patients", &[], Some(&json!([NAME, EMAIL]))).await;
        send(Method::Get, "/patients?search=Markworthy&sort=name&limit=1", &[], None).await;
        send(Method::Get, "/patients?sort=email&cursor=Markworthy", &[], None).await;
        send(Method::Get, "/patients/Markworthy", &[], None).await;
        send(Method::Get, "/Markworthy", &[], None).await;
        send(Method::Put, &path(&patient), &[("if-match", "\"Markworthy\"")], Some(&marked)).await;
        send(Method::Put, &path(&patient), &[], Some(&marked)).await;
        let charge = json!({"transactionId": "t", "type": "CHARGE", "amount": 1, "currency": "EUR"});
        send(Method::Post, &format!("{}/billing/transactions", path(&patient)), &[], Some(&charge)).await;
        send(Method::Delete, &path(&patient), &[], None).await;
        system.until_summary(PATIENCE, |summary| summary["deleted"] == 1).await.unwrap();
        until("the account is closed", async || system.billing.log().contains("account closed")).await;

        let analytics = &system.analytics;
        for service in system.patients.iter().chain([&system.billing, analytics]) {
            let metrics = service.client().get("/metrics").await.unwrap().text();
            let log = service.log();
            assert!(log.lines().count() > 3 && metrics.len() > 500, "there is something to look at");
            for mark in MARKS {
                for (what, text) in [("log", &log), ("metrics", &metrics)] {
                    let line = text.lines().find(|line| line.contains(mark));
                    assert_eq!(line, None, "{mark} in the {what} of {}", service.launch().label);
                }
            }
        }
        // Each request has been exported, the last of them with all that it set off.
        for name in ["DELETE /patients/:id", "BillingService/RecordTransaction", "close account", "reconcile billing"] {
            until(name, async || collector.spans().iter().any(|span| span.message.name == name)).await;
        }
        let exported = collector.text();
        assert!(exported.contains("\"search patients in order\"") && exported.contains("patients_email_key"));
        for mark in MARKS {
            assert!(!exported.contains(mark), "{mark} in a span");
        }
        let shown = system.analytics.client().get("/analytics/summary").await.unwrap().text();
        assert!(MARKS.iter().all(|mark| !shown.contains(mark)));
    });
}
