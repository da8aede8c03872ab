//! A patient travels all the way.

use serde_json::json;
use testbed::broker::Kind;

use crate::support::{PATIENCE, path, patient, register, system};

testbed::on_each_broker!(a_patient_travels_all_the_way, many_patients_are_stored_billed_and_counted_once);

fn a_patient_travels_all_the_way(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, &[]).await;
        let client = system.patient_client();

        let jane = register(&client, "Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "ACTIVE");
        let summary = system.until_summary(PATIENCE, |summary| summary["activePatients"] == 1).await.unwrap();
        assert_eq!((&summary["created"], &summary["updated"], &summary["deleted"]), (&json!(1), &json!(0), &json!(0)));
        let bands = summary["ageBands"].as_array().unwrap();
        assert_eq!(bands.iter().map(|band| band["patients"].as_i64().unwrap()).sum::<i64>(), 1);

        let answer = client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
        assert_eq!((answer.status, answer.header("etag")), (200, Some("\"2\"")));
        let transactions = format!("{}/billing/transactions", path(&jane));
        for (id, kind, amount) in [("t-1", "CHARGE", 10_000), ("t-2", "PAYMENT", 4_000), ("t-2", "PAYMENT", 4_000)] {
            let transaction = json!({"transactionId": id, "type": kind, "amount": amount, "currency": "EUR"});
            assert_eq!(client.post(&transactions, &transaction).await.unwrap().status, 201);
        }
        let account = client.get(&format!("{}/billing", path(&jane))).await.unwrap().json();
        assert_eq!(account["accountId"], jane["billing"]["accountId"]);
        assert_eq!(account["balances"], json!([{"amount": 6_000, "currency": "EUR"}]));
        assert_eq!(client.get(&transactions).await.unwrap().json().as_array().unwrap().len(), 2);

        assert_eq!(client.delete(&path(&jane)).await.unwrap().status, 204);
        let summary = system.until_summary(PATIENCE, |summary| summary["deleted"] == 1).await.unwrap();
        assert_eq!((&summary["activePatients"], &summary["updated"]), (&json!(0), &json!(1)));
        let registrations =
            system.analytics.client().get("/analytics/registrations?interval=year").await.unwrap().json();
        assert_eq!(registrations.as_array().unwrap().len(), 1);
    });
}

fn many_patients_are_stored_billed_and_counted_once(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, &[]).await;
        let client = system.patient_client();
        let writers: Vec<_> = (0..10)
            .map(|writer| {
                let client = client.clone();
                runtime::spawn(async move {
                    for n in 0..20 {
                        let patient = register(&client, &format!("Patient {writer} {n}")).await;
                        if n % 4 == 0 {
                            assert_eq!(client.delete(&path(&patient)).await.unwrap().status, 204);
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await;
        }
        let summary = system.until_summary(PATIENCE, |s| s["created"] == 200 && s["deleted"] == 50).await.unwrap();
        assert_eq!(summary["activePatients"], 150);
        let page = client.get("/patients?page=1&size=1").await.unwrap().json();
        assert_eq!(page["totalElements"], 150);
    });
}
