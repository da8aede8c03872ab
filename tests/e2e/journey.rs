//! Patients go through the whole system.

use serde_json::json;

use crate::{
    running_system::{Counts, RunningSystem},
    support::{path, patient, register},
};

/// Registers, changes, bills and removes a patient.
pub(crate) async fn of_one_patient(system: &RunningSystem) {
    let client = &system.patients;
    let before = system.counts().await;

    let jane = register(client, "Jane Doe").await;
    assert_eq!(jane["billing"]["status"], "ACTIVE");
    system.until_counted(before, Counts { active: 1, created: 1, ..Counts::default() }).await;
    for analytics in &system.analytics {
        let summary = analytics.get("/analytics/summary").await.unwrap().json();
        let bands = summary["ageBands"].as_array().unwrap();
        let in_bands: i64 = bands.iter().map(|band| band["patients"].as_i64().unwrap()).sum();
        assert_eq!(in_bands, summary["activePatients"]);
    }

    let response = client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
    assert_eq!((response.status, response.header("etag")), (200, Some("\"2\"")));
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
    system.until_counted(before, Counts { active: 0, created: 1, updated: 1, deleted: 1 }).await;
    let mut registrations = 0;
    for analytics in &system.analytics {
        let series = analytics.get("/analytics/registrations?interval=year").await.unwrap().json();
        let years = series.as_array().unwrap().iter();
        registrations += years.map(|year| year["registrations"].as_i64().unwrap()).sum::<i64>();
    }
    assert_eq!(registrations, before.created + 1);
}

/// Registers many at once and removes a quarter of them.
pub(crate) async fn of_many_patients(system: &RunningSystem) {
    let (before, stored_before) = (system.counts().await, system.stored().await);
    let writers: Vec<_> = (0..10)
        .map(|writer| {
            let client = system.patients.clone();
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
    system.until_counted(before, Counts { active: 150, created: 200, updated: 0, deleted: 50 }).await;
    assert_eq!(system.stored().await - stored_before, 150);
}
