//! What belongs to one caller: idempotency keys, streams, traces; and what nobody may see: tokens.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;
use surf::http::Method;
use testbed::tokens::{self, SigningKey, with};

use crate::support::{ALL, ISSUER, Secured, TIMEOUT};

#[test]
fn an_idempotency_key_belongs_to_its_caller() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let service = Secured::with_keys("patient-service", &tokens::jwk_set([&key])).await;
        let register = async |subject: &str, body: &serde_json::Value| {
            let authorization = format!("Bearer {}", key.token(&service.claims(subject, ALL)));
            let headers = [("authorization", authorization.as_str()), ("idempotency-key", "the-same")];
            let answer = service.client.send(Method::Post, "/patients", &headers, Some(body)).await.unwrap();
            assert_eq!(answer.status, 201, "23: {subject}: {}", answer.text());
            answer.json()["id"].as_str().unwrap().to_owned()
        };
        let (anns, bobs) = (testbed::patient::unique_body("Ann"), testbed::patient::unique_body("Bob"));
        let (ann, bob) = (register("ann", &anns).await, register("bob", &bobs).await);
        assert_ne!(ann, bob, "23: bob's own patient");
        assert_eq!((register("ann", &anns).await, register("bob", &bobs).await), (ann, bob), "23: repeated");
    });
}

#[test]
fn a_stream_ends_with_the_token() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let set = tokens::jwk_set([&key]);
        let service = Secured::with_keys("analytics-service", &set).await;
        let claims = with(service.claims("ann", "analytics:read"), &json!({"exp": tokens::now() + 3}));
        let token = key.token(&claims);
        let address = service.service.address();
        let (text, lasted) = smol::unblock(move || {
            let started = Instant::now();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let request = format!(
                "GET /analytics/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            (text, started.elapsed())
        })
        .await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("event: summary"), "24: {text}");
        assert!(lasted >= Duration::from_millis(1500) && lasted < Duration::from_secs(10), "24: {lasted:?}");
    });
}

#[test]
fn a_callers_trace_is_not_continued() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let service = Secured::with_keys("patient-service", &tokens::jwk_set([&key])).await;
        let authorization = format!("Bearer {}", key.token(&service.claims("ann", ALL)));
        let callers = "4bf92f3577b34da6a3ce929d0e0e4736";
        let traceparent = format!("00-{callers}-00f067aa0ba902b7-01");
        let headers = [("authorization", authorization.as_str()), ("traceparent", &traceparent)];
        let answer = service.client.send(Method::Get, "/patients", &headers, None).await.unwrap();
        assert_eq!(answer.status, 200);
        let own = answer.header("traceparent").unwrap();
        assert!(!own.contains(callers) && own.len() == traceparent.len(), "{own}");
    });
}

#[test]
fn a_token_is_in_no_log_metric_or_answer() {
    runtime::block_on(2, async {
        let (key, foreign) = (SigningKey::es256("key"), SigningKey::es256("key"));
        let mut service = Secured::with_keys("patient-service", &tokens::jwk_set([&key])).await;
        let claims = service.claims("ann", "patients:read");
        let issuer = with(claims.clone(), &json!({"iss": format!("{ISSUER}/other")}));
        let tokens = [key.token(&claims), foreign.token(&claims), key.token(&issuer), "not.a-token.at_all".to_owned()];
        let mut seen = String::new();
        for token in &tokens {
            for (method, path) in [(Method::Get, "/patients"), (Method::Post, "/patients"), (Method::Get, "/x")] {
                let answer = service.send(method, path, token, None).await;
                seen += &answer.text();
                seen += answer.header("www-authenticate").unwrap_or_default();
            }
        }
        seen += &service.operations.get("/metrics").await.unwrap().text();
        assert!(service.service.stop().await.success());
        let log = service.service.log();
        assert!(log.contains("the issuer has other keys"), "the log has the lines of the crate that reads tokens");
        seen += &log;
        for token in &tokens {
            for part in token.split('.').filter(|part| part.len() > 10) {
                assert!(!seen.contains(part), "45: {part} of {token}");
            }
        }
    });
}
