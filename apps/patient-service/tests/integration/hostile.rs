//! SQL and special characters wherever a client can send text.

use serde_json::json;
use surf::http::Method;

use crate::harness::{id, path, patient, with_service};

const SQL: [&str; 4] =
    ["'; DROP TABLE patients; --", "' OR '1'='1", "\\'; SELECT pg_sleep(10); --", "$1; DELETE FROM patients"];

#[test]
fn sql_in_every_field_and_parameter_is_text() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for (n, sql) in SQL.into_iter().enumerate() {
            let escaped: String = sql.bytes().map(|byte| format!("%{byte:02X}")).collect();
            // Where any text is allowed, it is stored unchanged.
            let mut verbatim = patient("Jane");
            (verbatim["name"], verbatim["address"]) = (json!(sql), json!(sql));
            verbatim["email"] = json!(format!("o'--brien{n}@example.org"));
            let key = [("idempotency-key", &*sql.replace(' ', "/"))];
            let stored = service.client.send(Method::Post, "/patients", &key, Some(&verbatim)).await.unwrap();
            assert_eq!(stored.status, 201, "{}", stored.text());
            let found = service.get(&path(&stored.json())).await.json();
            assert_eq!((&found["name"], &found["address"]), (&json!(sql), &json!(sql)));
            // Where it is not, the response names the field.
            for field in ["email", "dateOfBirth", "registeredDate"] {
                let mut wrong = patient("Jane");
                wrong[field] = json!(sql);
                let answer = service.post("/patients", &wrong).await;
                assert_eq!(answer.status, 400, "{field}: {sql}");
                assert!(!answer.text().contains("SQL") && answer.json()["errors"][field].is_string());
            }
            for (target, status) in [
                (format!("/patients/{escaped}"), 400),
                (format!("/patients?search={escaped}"), 200),
                (format!("/patients?sort={escaped}"), 400),
                (format!("/patients?limit={escaped}"), 400),
                (format!("/patients?cursor={escaped}"), 400),
                (format!("/patients?page=1&searchValue={escaped}"), 200),
                (format!("/patients?page=1&sortField={escaped}"), 400),
                (format!("/patients?page=1&sort={escaped}"), 400),
                (format!("/patients?page={escaped}"), 400),
                (format!("/patients?size={escaped}"), 400),
                (format!("/patients?{escaped}={escaped}"), 200),
                (format!("{}/billing/transactions?cursor={escaped}", path(&jane)), 400),
            ] {
                let answer = service.get(&target).await;
                assert_eq!(answer.status, status, "{target}: {}", answer.text());
            }
            let charge = json!({"transactionId": sql, "type": "CHARGE", "amount": 1, "currency": sql});
            let answer = service.post(&format!("{}/billing/transactions", path(&jane)), &charge).await;
            assert!([201, 400].contains(&answer.status), "{}", answer.text());
            let tags = [("if-match", sql)];
            let answer = service.client.send(Method::Put, &path(&jane), &tags, Some(&patient("Jane"))).await.unwrap();
            assert_eq!(answer.status, 400);
        }
        assert_eq!(service.get(&path(&jane)).await.json()["id"], id(&jane));
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 1 + SQL.len() as i64);
    });
}
