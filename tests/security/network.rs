//! What a service does on a network while nobody has to say who they are, and what strangers can make of its metrics.

use std::process::Command;

use serde_json::json;
use testbed::{
    http2::Connection,
    output,
    service::binaries,
    tokens::{self, SigningKey},
};

use crate::support::{Secured, TIMEOUT, raw, status};

const OFF: [(&str, &str); 5] = [
    ("AUTH", "off"),
    ("AUTH_ISSUER", ""),
    ("AUTH_AUDIENCE", ""),
    ("HTTP_HOSTS", "patients.example"),
    ("CORS_ORIGINS", "https://app.example"),
];

#[test]
fn a_foreign_host_is_misdirected_while_identities_are_off() {
    runtime::block_on(2, async {
        let service = Secured::start("patient-service", "unused", &OFF).await;
        let address = service.service.address();
        for (host, expected) in [
            ("127.0.0.1:4000", 200),
            ("localhost", 200),
            ("[::1]:4000", 200),
            ("192.0.2.7", 200),
            ("patients.example", 200),
            ("PATIENTS.example:8080", 200),
            ("evil.example", 421),
            ("evil.example:4000", 421),
            ("127.0.0.1.evil.example", 421),
            ("patients.example.evil.example", 421),
        ] {
            let head = raw(&address, &format!("GET /actuator/health/liveness HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(status(&head), expected, "39: {host}: {head}");
        }
        // As before for whoever reaches it, with metrics on the same port.
        assert_eq!(service.client.get("/metrics").await.unwrap().status, 200);

        // Scripts of one origin may call, and those of no other.
        for (origin, shared) in [("https://app.example", true), ("https://evil.example", false), ("null", false)] {
            let preflight = format!(
                "OPTIONS /patients HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
            );
            let head = raw(&address, &preflight).to_lowercase();
            assert_eq!(head.contains(&format!("access-control-allow-origin: {origin}")), shared, "{head}");
            assert_eq!(head.contains("access-control-allow-headers: authorization"), shared, "{head}");
        }
    });
}

#[test]
fn identities_may_be_off_on_a_network_only_if_somebody_has_said_so() {
    let run = |service: &str, settings: &[(&str, &str)]| {
        let binary = binaries().unwrap().join(service);
        let database = ("DATABASE_URL", "postgres://nobody@localhost/nothing");
        let mut command = Command::new(binary);
        command.env_clear().envs([database]).envs(settings.iter().copied()).arg("--print-config");
        let output = output(&mut command).unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (service, address) in [
        ("patient-service", "SERVER_ADDRESS"),
        ("analytics-service", "SERVER_ADDRESS"),
        ("billing-service", "SERVER_ADDRESS"),
        ("billing-service", "GRPC_SERVER_ADDRESS"),
    ] {
        let (code, error) = run(service, &[(address, "0.0.0.0")]);
        assert_eq!(code, Some(78), "{service}: {error}");
        assert!(error.contains("AUTH_OFF_ON_NETWORK=yes") && error.contains(address), "{service}: {error}");
        assert_eq!(run(service, &[(address, "0.0.0.0"), ("AUTH_OFF_ON_NETWORK", "yes")]).0, Some(0), "{service}");
        assert_eq!(run(service, &[(address, "127.0.0.1")]).0, Some(0), "{service}");
        let (code, error) =
            run(service, &[("AUTH_ISSUER", "https://issuer"), ("AUTH", ""), ("AUTH_OFF_ON_NETWORK", "yes")]);
        assert_eq!(code, Some(78), "{service}: {error}");
        assert!(error.contains("AUTH_ISSUER") && error.contains("AUTH is not set"), "{service}: {error}");
    }
}

#[test]
fn a_service_that_is_open_to_a_network_says_so() {
    runtime::block_on(2, async {
        let more = [("SERVER_ADDRESS", "0.0.0.0"), ("AUTH_OFF_ON_NETWORK", "yes")];
        let settings: Vec<_> = OFF.into_iter().chain(more).collect();
        let service = Secured::start("patient-service", "unused", &settings).await;
        service.until_ready().await;
        let readiness = service.client.get("/actuator/health/readiness").await.unwrap().json();
        let shown = &readiness["components"]["authentication"];
        assert_eq!(*shown, json!({"status": "UP", "detail": "off: whoever reaches the port may do everything"}));
        assert!(service.service.log().contains("AUTH is off on an address that others can reach"));
    });
}

#[test]
fn what_a_proxy_would_say_about_the_client_changes_nothing() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let service = Secured::with_keys("patient-service", &tokens::jwk_set([&key])).await;
        let token = key.token(&service.claims("ann", "patients:read"));
        let claims = "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Forwarded-User: admin\r\nX-Forwarded-Host: localhost\r\n";
        for (authorization, path, expected) in [
            (String::new(), "/patients", 401),
            (String::new(), "/metrics", 401),
            (format!("Authorization: Bearer {token}\r\n"), "/patients", 200),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{claims}{authorization}\r\n");
            let head = raw(&service.service.address(), &request);
            assert_eq!(status(&head), expected, "40: {head}");
        }
    });
}

#[test]
fn paths_of_strangers_are_no_labels() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let set = tokens::jwk_set([&key]);
        let billing = Secured::with_keys("billing-service", &set).await;
        let patients = Secured::with_keys("patient-service", &set).await;
        let labels = async |service: &Secured| {
            let text = service.operations.get("/metrics").await.unwrap().text();
            text.lines().filter(|line| line.starts_with("grpc_server") || line.starts_with("http_request")).count()
        };
        let token = key.token(&billing.claims("ann", "billing:read"));
        let garbage = async |names: std::ops::Range<usize>| {
            let mut connection = Connection::open_with_window(billing.grpc, 65_535).await.unwrap();
            let mut stream = 1;
            for name in names {
                // UNAUTHENTICATED and UNIMPLEMENTED.
                for (authorization, expected) in [(None, 16), (Some(format!("Bearer {token}")), 12)] {
                    let more: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
                    connection.call(stream, &format!("/Garbage/{name}"), &more, &[]).await.unwrap();
                    let mut status = None;
                    while status.is_none() {
                        let frame = connection.receive(TIMEOUT).await.unwrap().expect("an answer");
                        status = frame.grpc_status();
                    }
                    assert_eq!(status, Some(expected), "25");
                    stream += 2;
                }
                assert_eq!(patients.client.get(&format!("/garbage/{name}")).await.unwrap().status, 401, "25");
            }
        };
        garbage(0..2).await;
        // The first scrape adds its own route.
        let _ = (labels(&billing).await, labels(&patients).await);
        let before = (labels(&billing).await, labels(&patients).await);
        garbage(2..50).await;
        assert_eq!((labels(&billing).await, labels(&patients).await), before, "25: labels are constant");
    });
}
