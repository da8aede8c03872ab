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

/// A service that answers 401 to requests for its path of validation without the right token, else 200. It keeps the heads of
/// requests.
struct Stub {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    fn start() -> Self {
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
                    let rejected = head.starts_with("GET /auth/validate") && !head.contains("Bearer right");
                    let status = if rejected { "401 Unauthorized" } else { "200 OK" };
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

/// The status of a response.
fn send(port: u16, method: &str, path: &str, token: &str) -> u16 {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:4004\r\nAuthorization: Bearer {token}\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Prefix: /forged\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    nginx::status_of(port, &request)
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
        assert_eq!(send(port, method, path, token), expected, "{method} {path}");
        let heads = service.taken();
        let last = heads.last().map(|head| head.to_lowercase()).unwrap_or_default();
        if arrives.is_empty() {
            let asked = |head: &String| !head.starts_with("GET /auth/validate");
            assert!(!heads.iter().any(asked), "{method} {path}: {heads:?}");
        } else {
            assert!(last.starts_with(&arrives.to_lowercase()), "{method} {path}: {heads:?}");
            assert!(last.contains("x-forwarded-for: 127.0.0.1\r\n"), "{last}");
            assert!(last.contains("host: localhost:4004\r\n") && !last.contains("forged"), "{last}");
            assert_eq!(last.contains("x-forwarded-prefix: /api\r\n"), path.starts_with("/api/"), "{last}");
        }
        let _ = auth.taken();
    }
}
