//! What programs send to the console, and what it passes on.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use runtime::Shutdown;
use support::{Console, message, request};
use testbed::certificates::Validity;

const TRACE: [u8; 16] = [0x4b; 16];

fn otlp(more: &str) -> String {
    format!("POST /v1/traces HTTP/1.1\r\nHost: console:4010\r\n{more}")
}

const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";

#[test]
fn a_browser_cannot_send_spans_and_programs_send_protobuf_of_bounded_size() {
    let console = Console::start();
    let message = message(Some(TRACE), 0..3);
    let known = || console.send(&request("GET", "/api/journeys")).json()["total"].as_u64().unwrap();
    for foreign in ["Origin: http://example.org\r\n", "Origin: null\r\n", "Sec-Fetch-Site: same-origin\r\n"] {
        let own = format!("Origin: http://{}\r\n", console.host());
        for header in [foreign, own.as_str()] {
            let response = console.send_with(&otlp(&format!("{PROTOBUF}{header}")), &message);
            assert_eq!(response.status, 403, "{header}");
        }
    }
    for media_type in ["application/json", "text/plain", "application/x-www-form-urlencoded"] {
        let response = console.send_with(&otlp(&format!("Content-Type: {media_type}\r\n")), &message);
        assert_eq!(response.status, 415, "{media_type}");
    }
    assert_eq!(console.send_with(&otlp(PROTOBUF), b"\xff\xff\xff").status, 400);
    assert_eq!(console.send_with(&otlp(PROTOBUF), &vec![0; 4 * 1024 * 1024 + 1]).status, 413);
    assert_eq!(known(), 0, "nothing was stored");
    let taken = console.send_with(&otlp(PROTOBUF), &message);
    assert_eq!((taken.status, taken.body.len()), (200, 0));
    assert_eq!(known(), 1);
    let trace = "4b".repeat(16);
    let journey = console.send(&request("GET", &format!("/api/journeys/{trace}"))).json();
    assert_eq!(
        (journey["title"].as_str(), journey["spans"].as_array().map(Vec::len)),
        (Some("POST /patients"), Some(3))
    );
    assert_eq!(console.send(&request("GET", "/api/journeys/11111111111111111111111111111111")).status, 404);
}

/// A collector that keeps each request as received, and responds with 200.
fn collector() -> (u16, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = Vec::new();
            let mut buffer = [0; 64 * 1024];
            loop {
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                let length = end.and_then(|end| {
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse::<usize>().ok()
                });
                if end.zip(length).is_some_and(|(end, length)| bytes.len() >= end + length) {
                    break;
                }
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => bytes.extend(&buffer[..read]),
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            let _ = sender.send(bytes);
        }
    });
    (port, receiver)
}

#[test]
fn the_users_collector_gets_identical_bytes() {
    let (port, received) = collector();
    let console = Console::with(&[("CONSOLE_FORWARD_OTLP", &format!("http://127.0.0.1:{port}/base"))]);
    let message = message(Some(TRACE), 0..100);
    let response = console.send_with(&otlp(&format!("{PROTOBUF}Authorization: Bearer secret\r\n")), &message);
    assert_eq!(response.status, 200);
    let got = received.recv_timeout(Duration::from_secs(20)).unwrap();
    let head = String::from_utf8_lossy(&got[..200.min(got.len())]).into_owned();
    assert!(head.starts_with("POST /base/v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer secret"), "{head}");
    assert!(got.ends_with(&message), "the same bytes");
    let info = console.send(&request("GET", "/api/info")).json();
    assert_eq!(info["collector"], format!("http://127.0.0.1:{port}/base"));
}

#[test]
fn a_collector_over_https_is_verified_and_gets_identical_bytes() {
    let scratch = testbed::Scratch::new().unwrap();
    let authority = testbed::certificates::Authority::new("tests").unwrap();
    let ca = scratch.path().join("ca.pem");
    authority.write(&ca).unwrap();
    let identity = authority.issue(scratch.path(), "collector", &["localhost"], Validity::Now).unwrap();
    let file = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (sender, received) = channel();
    let (address, bound) = channel();
    thread::spawn(move || {
        let environment = Environment::empty()
            .with("SERVER_PORT", "0")
            .with("SERVER_TLS_CERTIFICATE", file(&identity.certificate))
            .with("SERVER_TLS_KEY", file(&identity.key));
        let server = web::Server::bind(&web::Settings::read(&mut Reader::new(environment), "0")).unwrap();
        address.send(server.address().port()).unwrap();
        let app = web::Router::new(sender).post("/v1/traces", keep_body).build();
        runtime::block_on(1, server.serve(app, Shutdown::new()));
    });
    let port = bound.recv().unwrap();
    let url = format!("https://localhost:{port}");
    let send = |console: &Console, message: &[u8]| assert_eq!(console.send_with(&otlp(PROTOBUF), message).status, 200);

    // A collector that the public authorities do not know, or that has another name, gets nothing.
    let other = url.replace("localhost", "127.0.0.1");
    for settings in [
        vec![("CONSOLE_FORWARD_OTLP", url.as_str())],
        vec![("CONSOLE_FORWARD_OTLP", other.as_str()), ("CONSOLE_FORWARD_OTLP_CERTIFICATE", ca.to_str().unwrap())],
    ] {
        let console = Console::with(&settings);
        // Other tests of this process count there too.
        let failed = || {
            let metrics = console.send(&request("GET", "/metrics")).body;
            let name = "console_forwarded_total{outcome=\"failed\"}";
            testbed::http::metric(&String::from_utf8_lossy(&metrics), name).unwrap_or_default()
        };
        let before = failed();
        send(&console, &message(Some(TRACE), 0..7));
        let end = Instant::now() + Duration::from_secs(60);
        while failed() == before {
            assert!(Instant::now() < end, "{settings:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    let console = Console::with(&[("CONSOLE_FORWARD_OTLP", &url), ("CONSOLE_FORWARD_OTLP_CERTIFICATE", &file(&ca))]);
    let message = message(Some(TRACE), 0..100);
    send(&console, &message);
    assert_eq!(received.recv_timeout(Duration::from_secs(60)).unwrap(), message, "the same bytes, and none before");
    assert_eq!(console.send(&request("GET", "/api/info")).json()["collector"], url);
}

async fn keep_body(mut request: tide::Request<Sender<Vec<u8>>>) -> Result<tide::Response, web::Problem> {
    let body = request.body_bytes().await.unwrap_or_default();
    let _ = request.state().send(body);
    Ok(tide::Response::new(tide::StatusCode::Ok))
}

#[test]
fn a_collector_that_is_away_or_hangs_costs_nothing() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hanging.local_addr().unwrap().port();
    for collector in ["http://127.0.0.1:1".to_owned(), format!("http://127.0.0.1:{port}")] {
        let console = Console::with(&[("CONSOLE_FORWARD_OTLP", &collector)]);
        let started = Instant::now();
        for number in 0..200 {
            let response = console.send_with(&otlp(PROTOBUF), &message(None, number * 7..number * 7 + 7));
            assert_eq!(response.status, 200, "{collector}");
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{collector}: {:?}", started.elapsed());
        assert_eq!(console.send(&request("GET", "/api/journeys")).json()["total"], 200);
    }
}
