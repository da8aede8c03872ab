//! `/patients/{id}/billing` and its transactions.

use serde_json::{Value as Json, json};
use testbed::{http::Response, until};

use crate::{
    harness::{Harness, path, with_service},
    test_billing::Behaviour,
};

fn charge(id: &str, amount: i64) -> Json {
    json!({"transactionId": id, "type": "CHARGE", "amount": amount, "currency": "EUR"})
}

async fn record(service: &Harness, patient: &Json, transaction: &Json) -> Response {
    service.post(&format!("{}/billing/transactions", path(patient)), transaction).await
}

#[test]
fn the_account_shows_what_the_patient_owes() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let account = format!("{}/billing", path(&jane));
        assert_eq!(
            service.get(&account).await.json(),
            json!({"accountId": "account-0", "status": "ACTIVE", "balances": []})
        );
        let response = record(&service, &jane, &charge("t-1", 2500)).await;
        assert_eq!(response.status, 201);
        let entry = response.json();
        assert_eq!((&entry["transactionId"], &entry["type"]), (&json!("t-1"), &json!("CHARGE")));
        assert_eq!((&entry["amount"], &entry["currency"]), (&json!(2500), &json!("EUR")));
        assert!(entry["recordedAt"].as_str().unwrap().ends_with('Z'));
        assert_eq!(record(&service, &jane, &charge("t-1", 2500)).await.json(), entry, "entered once");
        let payment = json!({"transactionId": "t-2", "type": "PAYMENT", "amount": 1000, "currency": "EUR"});
        assert_eq!(record(&service, &jane, &payment).await.status, 201);
        assert_eq!(service.get(&account).await.json()["balances"], json!([{"amount": 1500, "currency": "EUR"}]));
    });
}

#[test]
fn the_ledger_is_listed_in_parts() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for n in 0..5 {
            record(&service, &jane, &charge(&format!("t-{n}"), 1)).await;
        }
        let mut ids = Vec::new();
        let mut next = Some(format!("{}/billing/transactions?limit=2", path(&jane)));
        while let Some(path) = next {
            let response = service.get(&path).await;
            ids.extend(
                response
                    .json()
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|entry| entry["transactionId"].as_str().unwrap().to_owned()),
            );
            next = response.next();
        }
        assert_eq!(ids, ["t-0", "t-1", "t-2", "t-3", "t-4"]);
    });
}

#[test]
fn errors() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        record(&service, &jane, &charge("t-1", 1)).await;
        for (transaction, status) in [
            (charge("t-1", 2), 409),
            (charge("t-2", 0), 400),
            (json!({"transactionId": "t-3", "type": "GIFT", "amount": 1, "currency": "EUR"}), 400),
            (json!({"transactionId": "t-3", "type": "CHARGE", "amount": 1.5, "currency": "EUR"}), 400),
            (json!({}), 400),
        ] {
            assert_eq!(record(&service, &jane, &transaction).await.status, status, "{transaction}");
        }
        // The billing service of the test has no largest amount, so that one entry is enough.
        assert_eq!(record(&service, &jane, &charge("t-4", i64::MAX - 1)).await.status, 201);
        let too_much = record(&service, &jane, &charge("t-5", 1)).await;
        assert_eq!((too_much.status, &too_much.json()["type"]), (409, &json!("urn:problem-type:balance-out-of-range")));
        let unknown = json!({"id": "00000000-0000-7000-8000-000000000000"});
        assert_eq!(service.get(&format!("{}/billing", path(&unknown))).await.status, 404);
        assert_eq!(record(&service, &unknown, &charge("t-1", 1)).await.status, 404);
        assert_eq!(service.get(&format!("{}/billing/transactions", path(&unknown))).await.status, 404);
    });
}

#[test]
fn billing_away_is_503_and_an_account_not_opened_yet_is_pending() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unavailable);
        let jane = service.register("Jane Doe").await;
        let account = format!("{}/billing", path(&jane));
        let away = service.get(&account).await;
        assert_eq!((away.status, away.header("retry-after")), (503, Some("2")));
        assert_eq!(record(&service, &jane, &charge("t-1", 1)).await.status, 503);
        service.billing.set(Behaviour::Normal);
        until("the account is open", async || service.get(&account).await.json()["status"] == "ACTIVE").await;
    });
}

#[test]
fn against_an_original_billing_registrations_stay_active_and_the_rest_is_not_implemented() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Original);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "ACTIVE");
        let account = format!("{}/billing", path(&jane));
        let transactions = format!("{account}/transactions");
        for round in 0..10 {
            for response in [
                service.get(&account).await,
                service.get(&transactions).await,
                record(&service, &jane, &charge("t-1", 1)).await,
            ] {
                assert_eq!(response.status, 501, "{}", response.text());
                assert_eq!(response.header("content-type"), Some("application/problem+json"));
                assert_eq!(response.json()["type"], "urn:problem-type:billing-not-supported");
            }
            let john = service.register(&format!("John {round}")).await;
            assert_eq!(john["billing"]["status"], "ACTIVE", "reads that are not supported are no outage");
        }
        let readiness = service.get("/actuator/health/readiness").await.json();
        assert_eq!(readiness["components"]["billing"]["status"], "UP", "{readiness}");
        assert!(service.get("/metrics").await.text().contains("grpc_client_breaker_open{peer=\"billing-service\"} 0"));
        assert_eq!(service.get("/patients/00000000-0000-7000-8000-000000000000/billing").await.status, 404);
    });
}

#[test]
fn a_ledger_that_breaks_off_is_503_and_no_part_of_it_is_shown() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for n in 0..3 {
            record(&service, &jane, &charge(&format!("t-{n}"), 1)).await;
        }
        let transactions = format!("{}/billing/transactions", path(&jane));
        for behaviour in [Behaviour::BreaksOff, Behaviour::Stalls] {
            service.billing.set(behaviour);
            let response = service.get(&transactions).await;
            assert_eq!(
                (response.status, response.header("retry-after")),
                (503, Some("2")),
                "{behaviour:?}: {}",
                response.text()
            );
            assert!(!response.text().contains("t-0"), "{}", response.text());
        }
        service.billing.set(Behaviour::Normal);
        until("the ledger is whole", async || service.get(&transactions).await.status == 200).await;
        assert_eq!(service.get(&transactions).await.json().as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_transaction_of_an_unknown_type_is_not_shown_as_another() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        record(&service, &jane, &charge("t-1", 1)).await;
        service.billing.set(Behaviour::UnknownType);
        let response = service.get(&format!("{}/billing/transactions", path(&jane))).await;
        assert_eq!((response.status, response.header("retry-after")), (503, Some("2")), "{}", response.text());
        assert_eq!(response.json()["type"], "urn:problem-type:billing-unavailable");
    });
}

#[test]
fn no_more_of_a_ledger_is_read_than_was_asked_for() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        record(&service, &jane, &charge("t-1", 1)).await;
        service.billing.set(Behaviour::Endless);
        let response = service.get(&format!("{}/billing/transactions?limit=2", path(&jane))).await;
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json().as_array().unwrap().len(), 2);
        assert!(response.next().is_some());
    });
}

#[test]
fn billing_that_answers_everything_with_an_error_is_degraded_and_not_away() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Faulty);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "PENDING");
        let billing = async || service.get("/actuator/health/readiness").await.json()["components"]["billing"].take();
        let account = format!("{}/billing", path(&jane));
        let is_degraded = async || {
            assert_eq!(service.get(&account).await.status, 503);
            billing().await["status"] == "DEGRADED"
        };
        until("it is degraded", is_degraded).await;
        assert!(billing().await["detail"].as_str().unwrap().contains("unknown"));
        assert!(service.get("/metrics").await.text().contains("grpc_client_breaker_open{peer=\"billing-service\"} 0"));
        service.billing.set(Behaviour::Normal);
        until("the account is open", async || service.get(&account).await.json()["status"] == "ACTIVE").await;
        assert_eq!(billing().await["status"], "UP");
    });
}
