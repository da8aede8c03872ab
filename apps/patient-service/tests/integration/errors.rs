//! The error responses of every route.

use serde_json::json;
use surf::http::Method;

use crate::harness::{path, patient, with_service};

#[test]
fn every_error_is_a_problem() {
    with_service(|service| async move {
        for (method, path, status) in [
            (Method::Get, "/nothing", 404),
            (Method::Get, "/", 404),
            (Method::Patch, "/patients", 405),
            (Method::Delete, "/patients", 405),
            (Method::Post, "/patients/42", 405),
            (Method::Post, "/v3/api-docs", 405),
        ] {
            let response = service.client.send(method, path, &[], None).await.unwrap();
            assert_eq!(response.status, status, "{method} {path}");
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
            let body = response.json();
            assert_eq!((&body["status"], &body["instance"]), (&json!(status), &json!(path)));
            let trace_id = body["traceId"].as_str().unwrap();
            assert!(response.header("traceparent").unwrap().contains(trace_id));
            assert_eq!(response.header("allow").is_some(), status == 405);
        }
    });
}

#[test]
fn problems_carry_the_words_of_the_original_service() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        let taken = service.post("/patients", &patient("Jane Doe")).await;
        assert_eq!((taken.status, &taken.json()["message"]), (409, &json!("Email address already exists")));
        let unknown = service.get("/patients/00000000-0000-7000-8000-000000000000").await;
        assert_eq!((unknown.status, &unknown.json()["message"]), (404, &json!("Patient not found")));
        let other = service.get("/patients/42").await.json();
        assert_eq!((&other["message"], other["message"].is_string()), (&other["detail"], true));
    });
}

#[test]
fn headers_that_are_read_are_checked_and_others_are_not() {
    with_service(|service| async move {
        let ask = async |headers: &str| {
            let head = "GET /patients HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
            service.raw(format!("{head}{headers}\r\n\r\n").as_bytes()).await
        };
        for opaque in
            ["cf-ipcity: São Paulo", "user-agent: Größe", "cookie: a=\"é\"", "idempotency-key: é", "x: \t\u{80}"]
        {
            assert_eq!(ask(opaque).await, 200, "{opaque}");
        }
        for ignored in ["traceparent: é", "x-forwarded-prefix: é", "if-modified-since: é", "accept: é/é"] {
            assert_eq!(ask(ignored).await, 200, "{ignored}");
        }
        let body = patient("Jane Doe").to_string();
        let create = async |headers: &str| {
            let length = body.len();
            let head = format!(
                "POST /patients HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n"
            );
            service.raw(format!("{head}{headers}\r\n\r\n{body}").as_bytes()).await
        };
        assert_eq!(create("content-type: application/jsoné").await, 415);
        assert_eq!(create("content-type: application/json\r\ncontent-type: text/plain").await, 415);
        assert_eq!(create("content-type: application/json\r\nidempotency-key: é").await, 400);
        assert_eq!(create("content-type: application/json\r\nidempotency-key: a\r\nidempotency-key: b").await, 400);
        assert_eq!(create("content-type: application/json; charset=é\r\ncf-ipcity: São Paulo").await, 201);
    });
}

#[test]
fn bodies_must_be_json_of_a_bounded_size() {
    with_service(|service| async move {
        let send = async |content_type: &str, body: Vec<u8>| {
            let request =
                surf::post(format!("http://{}/patients", service.address)).header("content-type", content_type);
            u16::from(request.body(body).await.unwrap().status())
        };
        let jane = patient("Jane Doe").to_string().into_bytes();
        assert_eq!(send("text/plain", jane.clone()).await, 415);
        assert_eq!(send("application/x-www-form-urlencoded", jane.clone()).await, 415);
        assert_eq!(send("application/json", b"{".to_vec()).await, 400);
        assert_eq!(send("application/json", b"".to_vec()).await, 400);
        assert_eq!(send("application/json", b"[]".to_vec()).await, 400);
        assert_eq!(send("application/json", "[".repeat(30_000).into_bytes()).await, 400);
        assert_eq!(send("application/json", br#"{"name":"a","name":"b"}"#.to_vec()).await, 400);
        assert_eq!(send("application/json", br#"{"name":"\ud800"}"#.to_vec()).await, 400);
        assert_eq!(send("application/json", vec![b' '; 100_000]).await, 413);
        assert_eq!(send("Application/JSON; charset=utf-8", jane).await, 201);
    });
}

#[test]
fn an_array_of_the_right_values_is_no_patient_and_no_transaction() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let values = json!(["John Doe", "john@example.org", "1 Main Street", "1990-12-31", "2024-02-29"]);
        let charge = json!(["t-1", "CHARGE", 100, "EUR"]);
        let typed = json!({"transactionId": "t-1", "type": {"CHARGE": null}, "amount": 100, "currency": "EUR"});
        let transactions = format!("{}/billing/transactions", path(&jane));
        for (method, path, body) in [
            (Method::Post, "/patients", &values),
            (Method::Put, &path(&jane), &values),
            (Method::Post, &transactions, &charge),
            (Method::Post, &transactions, &typed),
        ] {
            let response = service.client.send(method, path, &[], Some(body)).await.unwrap();
            assert_eq!(response.status, 400, "{method} {path} {body}");
            assert_eq!(response.json()["type"], "urn:problem-type:malformed-body", "{method} {path} {body}");
        }
        assert_eq!(service.get("/patients").await.json().as_array().unwrap().len(), 1);
        assert_eq!(service.get(&path(&jane)).await.json()["name"], "Jane Doe");
        assert_eq!(service.get(&transactions).await.json(), json!([]));
    });
}

#[test]
fn the_trace_of_a_client_is_continued() {
    with_service(|service| async move {
        let headers = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
        let response = service.client.send(Method::Get, "/patients", &headers, None).await.unwrap();
        let traceparent = response.header("traceparent").unwrap();
        assert!(traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{traceparent}");
        assert!(!traceparent.contains("00f067aa0ba902b7"));
        let response =
            service.client.send(Method::Post, "/patients", &headers, Some(&patient("Jane Doe"))).await.unwrap();
        assert_eq!(response.status, 201);
        let stored = "SELECT count(*) FROM outbox WHERE traceparent LIKE '00-4bf92f3577b34da6a3ce929d0e0e4736-%'";
        assert_eq!(service.number(stored).await, 1);
    });
}
