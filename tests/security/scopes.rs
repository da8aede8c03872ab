//! Every route, and what it requires.

use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::tokens::{self, SigningKey};

use crate::support::{ALL, Secured, raw, status};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[test]
fn every_route_requires_its_scope_and_no_other_is_enough() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let set = tokens::jwk_set([&key]);
        let patients = Secured::with_keys("patient-service", &set).await;
        let analytics = Secured::start("analytics-service", &keys_of(&patients, &set), &[]).await;
        let body = testbed::patient::unique_body("Jane Doe");
        let transaction = json!({"transactionId": "t", "type": "CHARGE", "amount": 1, "currency": "EUR"});
        let (get, post, put, delete) = (Method::Get, Method::Post, Method::Put, Method::Delete);
        let (one, account) = (format!("/patients/{ID}"), format!("/patients/{ID}/billing"));
        let ledger = format!("{account}/transactions");
        let checks: [(&Secured, Method, &str, Option<&Json>, &str); 12] = [
            (&patients, post, "/patients", Some(&body), "patients:write"),
            (&patients, get, "/patients", None, "patients:read"),
            (&patients, get, "/patients?page=1", None, "patients:read"),
            (&patients, get, &one, None, "patients:read"),
            (&patients, put, &one, Some(&body), "patients:write"),
            (&patients, delete, &one, None, "patients:erase"),
            (&patients, get, &account, None, "billing:read"),
            (&patients, post, &ledger, Some(&transaction), "billing:write"),
            (&patients, get, &ledger, None, "billing:read"),
            (&analytics, get, "/analytics/summary", None, "analytics:read"),
            (&analytics, get, "/analytics/registrations", None, "analytics:read"),
            (&analytics, get, "/analytics/dead-letters", None, "analytics:read"),
        ];
        let document = patients.client.get("/v3/api-docs").await.unwrap().json();
        for (service, method, path, body, scope) in checks {
            if service.name == "patient-service" {
                let route = path.split('?').next().unwrap().replace(ID, "{id}");
                let operation = &document["paths"][&route][method.to_string().to_lowercase()];
                assert_eq!(operation["security"], json!([{}, {"token": [scope]}]), "{method} {route}");
                for status in ["401", "403", "421"] {
                    assert!(operation["responses"][status].is_object(), "{status} of {method} {route}");
                }
            }
            let others: Vec<_> = ALL.split(' ').filter(|other| *other != scope).collect();
            let without = key.token(&service.claims("ann", &others.join(" ")));
            let answer = service.send(method, path, &without, body).await;
            assert_eq!(answer.status, 403, "19: {method} {path} without {scope}: {}", answer.text());
            let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
            assert_eq!(answer.header("www-authenticate"), Some(&*challenge), "19: {method} {path}");
            assert!(answer.json()["detail"].as_str().unwrap().contains(scope), "19: {}", answer.text());
            let alone = key.token(&service.claims("ann", scope));
            let answer = service.send(method, path, &alone, body).await;
            assert!(![401, 403].contains(&answer.status), "19: {method} {path} with {scope}: {}", answer.text());
            assert_eq!(service.client.send(method, path, &[], body).await.unwrap().status, 401, "19: {method} {path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {path}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {path}");
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{method} {path}");
        }

        // 20: HEAD as GET; OPTIONS and methods that a path does not answer need a token, and no scope.
        let reader = key.token(&patients.claims("ann", "patients:read"));
        let nothing = key.token(&patients.claims("ann", ""));
        for (method, path, token, expected) in [
            (Method::Head, "/patients", Some(&reader), 200),
            (Method::Head, "/patients", Some(&nothing), 403),
            (Method::Head, "/patients", None, 401),
            (Method::Options, "/patients", Some(&nothing), 204),
            (Method::Options, "/patients", None, 401),
            (Method::Patch, "/patients", Some(&nothing), 405),
            (Method::Patch, "/patients", None, 401),
            (Method::Get, "/nothing", Some(&nothing), 404),
            (Method::Get, "/nothing", None, 401),
            (Method::Get, "/patients/", None, 401),
            (Method::Get, "//patients", None, 401),
            (Method::Get, "/", None, 404),
        ] {
            // Not by the client of the other tests, which waits for the body of an answer to HEAD.
            let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
            let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{authorization}\r\n");
            assert_eq!(status(&raw(&patients.service.address(), &head)), expected, "20: {method} {path}");
        }

        // Health and the description of the API are open, and say nothing about patients.
        for path in ["/actuator/health", "/actuator/health/liveness", "/v3/api-docs", "/swagger-ui/index.html"] {
            let answer = patients.client.get(path).await.unwrap();
            assert_eq!(answer.status, 200, "{path}");
        }
        let brief = patients.client.get("/actuator/health").await.unwrap().json();
        assert_eq!(brief.as_object().unwrap().keys().collect::<Vec<_>>(), ["status"], "22: {brief}");
        let detail = patients.operations.get("/actuator/health").await.unwrap().json();
        assert_eq!(detail["components"]["authentication"]["status"], "UP", "{detail}");
        for path in ["/metrics", "/actuator/prometheus"] {
            assert_eq!(patients.client.get(path).await.unwrap().status, 401, "22: {path}");
            assert_eq!(patients.get(path, &reader).await.status, 404, "22: {path}");
            assert!(patients.operations.get(path).await.unwrap().text().contains("http_requests_total"), "22: {path}");
        }
    });
}

#[test]
fn a_rejected_call_costs_no_query_and_no_body() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let set = tokens::jwk_set([&key]);
        let scratch = testbed::Scratch::new().unwrap();
        let file = scratch.path().join("keys.json");
        std::fs::write(&file, set.to_string()).unwrap();
        // Whatever needs the database fails: nobody listens there.
        let database = ("DATABASE_URL", "postgres://nobody@127.0.0.1:9/nothing");
        let service = Secured::start("patient-service", file.to_str().unwrap(), &[database]).await;
        let body = testbed::patient::unique_body("Jane Doe").to_string();
        for (scopes, sent, expected) in
            [(None, "", 401), (Some("patients:read"), "", 403), (Some("patients:write"), body.as_str(), 503)]
        {
            let authorization =
                scopes.map(|scopes| format!("Authorization: Bearer {}\r\n", key.token(&service.claims("ann", scopes))));
            let length = body.len();
            // The body of the first two never comes, and the answer does not wait for it.
            let request = format!(
                "POST /patients HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{}\r\n{sent}",
                authorization.unwrap_or_default()
            );
            let answer = raw(&service.service.address(), &request);
            assert_eq!(status(&answer), expected, "21: {scopes:?}: {answer}");
        }
        assert_eq!(service.metric("http_requests_in_flight").await, 0.0, "21");
    });
}

/// The same keys in a file for another service.
fn keys_of(service: &Secured, set: &Json) -> String {
    let file = service.scratch.path().join("keys.json");
    std::fs::write(&file, set.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}
