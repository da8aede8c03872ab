//! The balancer of the scaled system, when a replica fails: the real nginx with the real configuration and two stub replicas.

use std::{
    fs,
    io::{BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use billing_api::{BillingRequest, billing_service_client::BillingServiceClient};
use config::HostPort;
use grpc::{Attempt, Client, ClientSettings, Code};
use telemetry::TraceContext;
use testbed::Scratch;

use crate::nginx;

/// A replica that responds with 200, or reads the request and closes the connection.
struct Replica {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Replica {
    fn start(responses: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, requests) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::default()));
        let received = Arc::clone(&requests);
        // The threads end with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let received: Arc<Mutex<Vec<String>>> = Arc::clone(&received);
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream.unwrap());
                    let Some(request) = request(&mut stream) else { return };
                    received.lock().unwrap().push(request);
                    if responses {
                        let response = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                        stream.get_mut().write_all(response).unwrap();
                    }
                });
            }
        });
        Self { port, requests }
    }

    fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

/// A complete request; none from a connection without a request.
fn request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let request = nginx::read_head(stream)?;
    let length =
        request.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    Some(request + &String::from_utf8(body).unwrap())
}

/// nginx in front of these replicas; none if it is not installed.
fn balance(replicas: [u16; 2]) -> Option<(Scratch, u16)> {
    let configuration = fs::read_to_string("../../deploy/balancer/nginx.conf").unwrap();
    // Without gRPC, and without Docker's DNS.
    let (http, _) = configuration.split_once("    server {\n        listen 9001;").unwrap();
    let (before, rest) = http.split_once("    upstream billing {").unwrap();
    let (_, after) = rest.split_once("    }\n").unwrap();
    let replicas = replicas.map(|port| format!("server 127.0.0.1:{port} max_fails=0;")).concat();
    nginx::start(|port, temporary| {
        format!("{before}{after}}}\n")
            .replace("resolver 127.0.0.11 valid=2s ipv6=off;", "")
            .replace("server patient-service:4000 resolve max_fails=1 fail_timeout=2s;", &replicas)
            .replace("listen 4000;", &format!("listen 127.0.0.1:{port};"))
            .replace("/tmp/", temporary)
    })
}

/// The status of a response.
fn send(port: u16, method: &str, body: &str) -> u16 {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = "Host: example.org\r\nX-Forwarded-Prefix: /forged\r\nConnection: close\r\n";
    let request = format!("{method} /patients/1?a=b%20c HTTP/1.1\r\n{head}{length}\r\n{body}");
    nginx::status(&nginx::response_to(port, &request))
}

const REQUESTS: [(&str, usize); 5] = [("GET", 0), ("DELETE", 0), ("PUT", 10), ("PUT", 60_000), ("POST", 10)];

#[test]
fn a_change_that_was_sent_is_not_sent_to_another_replica() {
    let (breaking, answering) = (Replica::start(false), Replica::start(true));
    let Some((_scratch, port)) = balance([breaking.port, answering.port]) else {
        nginx::skipped("balancer");
        return;
    };
    for (method, length) in REQUESTS {
        let statuses: Vec<_> = (0..4).map(|_| send(port, method, &"x".repeat(length))).collect();
        let (broken, answered) = (breaking.take_requests(), answering.take_requests());
        let ok = statuses.iter().filter(|status| **status == 200).count();
        assert!(!broken.is_empty(), "{method}: the failing replica gets its share of requests");
        if method == "GET" {
            assert_eq!((ok, answered.len()), (4, 4), "a read is repeated: {statuses:?}");
        } else {
            assert_eq!((ok + broken.len(), answered.len()), (4, ok), "{method} {length}: {statuses:?}");
            assert!(statuses.iter().all(|status| [200, 502].contains(status)), "{statuses:?}");
        }
        for request in &answered {
            assert!(request.starts_with(&format!("{method} /patients/1?a=b%20c HTTP/1.1\r\n")), "{request}");
            assert!(request.ends_with(&format!("\r\n\r\n{}", "x".repeat(length))), "{method} {length}");
            assert!(!request.contains("/forged"), "the client's prefix header is removed: {request}");
        }
    }
}

#[test]
fn a_request_that_was_not_sent_is_sent_to_another_replica() {
    let answering = Replica::start(true);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some((_scratch, port)) = balance([closed, answering.port]) else {
        nginx::skipped("balancer");
        return;
    };
    for (method, length) in REQUESTS {
        for _ in 0..4 {
            assert_eq!(send(port, method, &"x".repeat(length)), 200, "{method} {length}");
        }
        let answered = answering.take_requests();
        assert_eq!(answered.len(), 4);
        assert!(answered.iter().all(|request| request.ends_with(&format!("\r\n\r\n{}", "x".repeat(length)))));
    }
}

#[test]
fn a_call_that_no_replica_answers_is_unavailable() {
    let configuration = fs::read_to_string("../../deploy/balancer/nginx.conf").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configured = |port, temporary: &str| {
        configuration
            .replace("resolver 127.0.0.11 valid=2s ipv6=off;", "")
            .replace("server patient-service:4000 resolve max_fails=1 fail_timeout=2s;", "server 127.0.0.1:9;")
            .replace(
                "server billing-service:9001 resolve max_fails=1 fail_timeout=2s;",
                &format!("server 127.0.0.1:{closed};"),
            )
            // As versions before 1.25.1 have it.
            .replace("listen 9001;\n        http2 on;", &format!("listen 127.0.0.1:{port} http2;"))
            .replace("/tmp/", temporary)
            .replace("listen 4000;", &format!("listen unix:{temporary}http;"))
    };
    let Some((_scratch, port)) = nginx::start(configured) else {
        nginx::skipped("balancer");
        return;
    };
    let settings = ClientSettings {
        peer: "balancer",
        service: billing_api::SERVICE,
        address: HostPort { host: "127.0.0.1".to_owned(), port },
        deadline: Duration::from_secs(20),
        tls: None,
    };
    let call = |attempt: Attempt| async move {
        let request = attempt.request(BillingRequest::default());
        BillingServiceClient::new(attempt.channel()).create_billing_account(request).await
    };
    let client = Client::new(settings).unwrap();
    let error = runtime::block_on(1, client.call("CreateBillingAccount", TraceContext::root(), call)).unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable), "{error}");
}
