//! The gateway: the real nginx with the real configuration, and stubs of the services behind it.

use std::{
    fs,
    io::{BufReader, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use testbed::Scratch;

use crate::nginx;

/// A service that keeps the heads of requests.
struct Stub {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    /// One that answers 401 to requests for its path of validation without the right token, else 200.
    fn start() -> Self {
        let rejected = |head: &str| head.starts_with("GET /auth/validate") && !head.contains("Bearer right");
        Self::answering(move |head| if rejected(head) { "401 Unauthorized" } else { "200 OK" })
    }

    fn answering(status: impl Fn(&str) -> &'static str + Copy + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, heads) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::default()));
        let seen: Arc<Mutex<Vec<String>>> = Arc::clone(&heads);
        // The threads end with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream.unwrap());
                    let Some(head) = nginx::read_head(&mut stream) else { return };
                    let status = status(&head);
                    seen.lock().unwrap().push(head);
                    let response = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                    let _ = stream.get_mut().write_all(response.as_bytes());
                });
            }
        });
        Self { port, heads }
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// nginx in front of these services; none if it is not installed.
fn serve(patients: u16, analytics: u16, auth: u16) -> Option<(Scratch, u16)> {
    nginx::start(|port, temporary| {
        let mut text = fs::read_to_string("../../deploy/gateway/nginx.conf").unwrap();
        for (from, to) in [
            // Without Docker's DNS.
            ("resolver 127.0.0.11 valid=2s ipv6=off;".to_owned(), String::new()),
            ("server patient-service:4000 resolve;".to_owned(), format!("server 127.0.0.1:{patients};")),
            ("server analytics-service:4002 resolve;".to_owned(), format!("server 127.0.0.1:{analytics};")),
            ("server auth-service:4005 resolve;".to_owned(), format!("server 127.0.0.1:{auth};")),
            ("listen 4004;".to_owned(), format!("listen 127.0.0.1:{port};")),
            ("/tmp/".to_owned(), temporary.to_owned()),
        ] {
            assert!(text.contains(&from), "the configuration has no {from}");
            text = text.replace(&from, &to);
        }
        text
    })
}

/// The response.
fn send(port: u16, method: &str, path: &str, token: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:4004\r\nAuthorization: Bearer {token}\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Prefix: /forged\r\nIf-Match: \"1\"\r\nIf-None-Match: *\r\nCookie: a=b\r\ntraceparent: {TRACE}\r\n\
         Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    nginx::response_to(port, &request)
}

#[test]
fn the_gateway_lets_the_api_through_for_a_valid_token_and_says_nothing_that_a_client_says() {
    let (patients, analytics, auth) = (Stub::start(), Stub::start(), Stub::start());
    let Some((_scratch, port)) = serve(patients.port, analytics.port, auth.port) else {
        nginx::skipped("gateway");
        return;
    };
    for (method, path, token, expected, service, arrives) in [
        ("POST", "/api/patients", "right", 200, &patients, "POST /patients HTTP"),
        ("PUT", "/api/patients/7?a=b%20c", "right", 200, &patients, "PUT /patients/7?a=b%20c HTTP"),
        ("GET", "/api/analytics/summary", "right", 200, &analytics, "GET /analytics/summary HTTP"),
        // What nginx normalises.
        ("GET", "//api/patients?limit=1", "right", 200, &patients, "GET /patients?limit=1 HTTP"),
        ("GET", "/%61pi/analytics/summary", "right", 200, &analytics, "GET /analytics/summary HTTP"),
        // A browser sends no token with it.
        ("OPTIONS", "/api/patients", "none", 200, &patients, "OPTIONS /patients HTTP"),
        ("GET", "/api-docs/patients", "none", 200, &patients, "GET /v3/api-docs HTTP"),
        ("POST", "/auth/login", "none", 200, &auth, "POST /auth/login HTTP"),
        ("GET", "/auth/validate", "right", 200, &auth, "GET /auth/validate HTTP"),
        ("GET", "/api/patients", "wrong", 401, &patients, ""),
        ("DELETE", "/api/patients/7", "wrong", 401, &patients, ""),
        ("GET", "/api/analytics/summary", "wrong", 401, &analytics, ""),
        ("GET", "/api/patientsandmore", "right", 404, &patients, ""),
        ("GET", "/patients", "right", 404, &patients, ""),
        ("GET", "/validate", "right", 404, &auth, ""),
        ("GET", "/metrics", "right", 404, &patients, ""),
    ] {
        assert_eq!(nginx::status(&send(port, method, path, token)), expected, "{method} {path}");
        let heads = service.taken();
        let last = heads.last().map(|head| head.to_lowercase()).unwrap_or_default();
        if arrives.is_empty() {
            let asked = |head: &String| !head.starts_with("GET /auth/validate");
            assert!(!heads.iter().any(asked), "{method} {path}: {heads:?}");
        } else {
            assert!(last.starts_with(&arrives.to_lowercase()), "{method} {path}: {heads:?}");
            assert!(last.contains("x-forwarded-for: 127.0.0.1\r\n"), "{last}");
            assert!(last.contains("host: localhost:4004\r\n") && !last.contains("forged"), "{last}");
            let is_rewritten = service.port != auth.port && path != "/api-docs/patients";
            assert_eq!(last.contains("x-forwarded-prefix: /api\r\n"), is_rewritten, "{last}");
            assert!(last.contains("if-match: \"1\"\r\n"), "preconditions are for the service: {last}");
        }
        for head in auth.taken().iter().map(|head| head.to_lowercase()) {
            assert!(head.starts_with("get /auth/validate http/1.1\r\n"), "{head}");
            assert!(head.contains(&format!("authorization: bearer {token}\r\n")) && head.contains(TRACE), "{head}");
            for other in ["if-match", "if-none-match", "cookie", "content-length", "forged"] {
                assert!(!head.contains(other), "{other} is not for auth-service: {head}");
            }
        }
    }
}

#[test]
fn the_gateway_says_503_if_no_token_can_be_verified_and_passes_on_what_a_service_says() {
    let (patients, analytics) = (Stub::answering(|_| "500 Internal Server Error"), Stub::start());
    let failing = Stub::answering(|_| "503 Service Unavailable");
    // A port that nobody listens on.
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for auth in [failing.port, away] {
        let Some((_scratch, port)) = serve(patients.port, analytics.port, auth) else {
            nginx::skipped("gateway");
            return;
        };
        for (method, path) in [("GET", "/api/patients"), ("PUT", "/api/patients/7"), ("GET", "/api/analytics/a")] {
            let response = send(port, method, path, "right");
            assert_eq!(nginx::status(&response), 503, "{method} {path}: {response}");
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            for header in ["Retry-After: 2", "Content-Type: application/problem+json"] {
                assert!(head.contains(header), "{head}");
            }
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!((&problem["status"], &problem["title"]), (&503.into(), &"Service Unavailable".into()));
        }
    }
    assert!(patients.taken().is_empty() && analytics.taken().is_empty());
    let auth = Stub::start();
    let (_scratch, port) = serve(patients.port, analytics.port, auth.port).unwrap();
    assert_eq!(nginx::status(&send(port, "GET", "/api/patients", "right")), 500, "the service's own");
}
