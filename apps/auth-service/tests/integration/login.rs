use auth::{Authenticator, Caller, JwtSettings, KeySource, Mode, Scope};
use serde_json::json;
use testbed::tokens::{self, SigningKey};

use crate::harness::{EMAIL, ISSUER, PASSWORD, with_service};

#[test]
fn a_login_gives_a_token_that_other_services_take() {
    with_service(&[], |service| async move {
        let token = service.token().await;
        let configuration = service.get("/.well-known/openid-configuration").await;
        assert_eq!(configuration["issuer"], ISSUER);
        assert_eq!(configuration["jwks_uri"], format!("{ISSUER}/.well-known/jwks.json"));
        // As a service with AUTH=jwt sees it.
        let keys = format!("http://{}/.well-known/jwks.json", service.address).parse().unwrap();
        for audience in ["patient-service", "billing-service", "analytics-service"] {
            let (issuer, keys) = (ISSUER.to_owned(), KeySource::Url(Clone::clone(&keys), None));
            let settings = JwtSettings { issuer, audience: audience.to_owned(), keys };
            let authenticator = Authenticator::new(&auth::Settings { mode: Mode::Jwt(settings) });
            let shutdown = runtime::Shutdown::new();
            let running = runtime::spawn(authenticator.clone().run(shutdown.clone()));
            let caller = loop {
                match authenticator.caller([format!("Bearer {token}").as_str()]).await {
                    Err(auth::Rejection::NoKeys) => smol::Timer::after(std::time::Duration::from_millis(5)).await,
                    other => break other.unwrap(),
                };
            };
            assert!(caller.has(Scope::new("patients:read")) && !caller.has(Scope::new("patients:write")));
            let Caller::Client(identity) = &caller else { panic!("{caller:?}") };
            assert_eq!(&*identity.subject, "ann");
            let remaining = caller.remaining().unwrap().as_secs();
            assert!((14 * 60..=15 * 60).contains(&remaining), "{remaining}");
            shutdown.trigger();
            running.await;
        }
    });
}

#[test]
fn validate_says_whether_a_token_is_valid() {
    with_service(&[], |service| async move {
        let token = service.token().await;
        assert_eq!(service.validate(&token).await, 200);
        let claims = tokens::claims(ISSUER, "patient-service", "ann", "patients:read");
        assert_eq!(service.validate(&SigningKey::es256("other").token(&claims)).await, 401);
        assert_eq!(service.validate("nonsense").await, 401);
        let answer = service.client.get("/auth/validate").await.unwrap();
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    });
}

#[test]
fn a_wrong_login_is_401_whatever_is_wrong_with_it() {
    with_service(&[], |service| async move {
        let mut answers = Vec::new();
        for (email, password) in [(EMAIL, "wrong"), ("nobody@example.org", PASSWORD)] {
            let answer = service.login(email, password, &[]).await;
            let mut body = answer.json();
            body.as_object_mut().unwrap().remove("traceId");
            answers.push((answer.status, body));
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0].0, 401);
        for body in [json!({}), json!({"email": EMAIL}), json!({"email": 7, "password": "x"}), json!([EMAIL, PASSWORD])]
        {
            assert_eq!(service.client.post("/auth/login", &body).await.unwrap().status, 400, "{body}");
        }
        let long = "x".repeat(2000);
        assert_eq!(service.login(EMAIL, &long, &[]).await.status, 400);
    });
}

#[test]
fn logins_are_limited_for_each_account() {
    with_service(&[], |service| async move {
        for number in 0..5 {
            assert_eq!(service.login(EMAIL, "wrong", &[]).await.status, 401, "{number}");
        }
        let answer = service.login(EMAIL, PASSWORD, &[]).await;
        assert_eq!(answer.status, 429, "also with the right password");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
        assert_eq!(service.login("other@example.org", "x", &[]).await.status, 401, "another account");
    });
}

#[test]
fn logins_are_limited_for_each_address_and_a_spoofed_one_changes_nothing() {
    with_service(&[], |service| async move {
        let mut statuses = Vec::new();
        for number in 0..30 {
            let spoofed = format!("192.0.2.{number}");
            let answer = service.login(&format!("{number}@example.org"), "x", &[("x-forwarded-for", &spoofed)]).await;
            statuses.push(answer.status);
        }
        assert!(statuses.contains(&429), "{statuses:?}");
    });
    // What a proxy of ours says counts.
    with_service(&[("HTTP_TRUSTED_PROXIES", "127.0.0.1")], |service| async move {
        for number in 0..30 {
            let client = format!("198.51.100.9, 192.0.2.{number}");
            let answer = service.login(&format!("{number}@example.org"), "x", &[("x-forwarded-for", &client)]).await;
            assert_eq!(answer.status, 401, "{number}");
        }
    });
}
