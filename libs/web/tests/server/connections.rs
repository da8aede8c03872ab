//! The life of a connection: timeouts, keep-alive, panics, shutdown.

use std::{
    io::Read as _,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use serde_json::Value as Json;
use web::Settings;

use crate::support::{HELLO, TestServer};

#[test]
fn slow_clients_are_disconnected() {
    let server = TestServer::start();
    let mut silent = server.connect();
    let mut slow_head = server.connect();
    slow_head.send(b"GET /hello HTTP/1.1\r\nhost: ");
    let mut slow_body = server.connect();
    slow_body
        .send(b"POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{\"a");
    assert_eq!(slow_body.response(false).unwrap().status, 408);
    assert!(!silent.is_closed_within(Duration::from_millis(500)), "not yet");
    for (name, client) in [("silent", &mut silent), ("slow head", &mut slow_head)] {
        assert!(client.is_closed_within(Duration::from_secs(5)), "{name}");
    }
}

#[test]
fn a_client_that_never_reads_is_disconnected_and_costs_no_memory() {
    let server = TestServer::start();
    let mut never = server.connect();
    never.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n");
    thread::sleep(Duration::from_secs(4));
    // The connection ends although the body does not: only what was in the socket buffers arrives.
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(read @ 1..) = never.reader.read(&mut buffer) {
        total += read;
        assert!(total < 1 << 26, "it is still being sent");
    }
    assert!(total > 0);
}

#[test]
fn idle_connections_outlive_the_timeout_of_a_started_head() {
    let server = TestServer::with(|limits| {
        (limits.idle_timeout, limits.head_timeout) = (Duration::from_secs(60), Duration::from_millis(100));
    });
    let mut kept = server.connect();
    assert_eq!(kept.request(HELLO).status, 200);
    // Long enough for a sweep, in which idle connections release their buffers.
    assert!(!kept.is_closed_within(Duration::from_millis(2_500)));
    kept.reader.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(kept.request(HELLO).status, 200, "it works without its buffers");
    kept.send(b"GET /hello HTTP/1.1\r\n");
    assert!(kept.is_closed_within(Duration::from_secs(10)));
}

#[test]
fn an_empty_line_before_a_request_begins_no_head() {
    for memory in [30 * 1024, 4 << 20] {
        let server = TestServer::with(|limits| {
            limits.buffers = memory;
            (limits.idle_timeout, limits.head_timeout) = (Duration::from_secs(60), Duration::from_millis(100));
        });
        let (mut fresh, mut kept) = (server.connect(), server.connect());
        assert_eq!(kept.request(HELLO).status, 200);
        for client in [&mut fresh, &mut kept] {
            client.send(b"\r\n\r");
        }
        // Long enough for two sweeps.
        assert!(!kept.is_closed_within(Duration::from_millis(2_500)));
        for client in [&mut fresh, &mut kept] {
            client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(client.request(&format!("\n{HELLO}")).status, 200);
        }
    }
}

#[test]
fn keep_alive_outlasts_that_of_load_balancers() {
    // AWS and nginx: 60 s; Traefik: 90 s; Google: 600 s.
    let mut reader = Reader::new(Environment::empty());
    let limits = Settings::read(&mut reader, "0").limits;
    assert!(limits.idle_timeout > Duration::from_secs(610), "{:?}", limits.idle_timeout);
    let mut reader = Reader::new(Environment::empty().with("HTTP_IDLE_TIMEOUT", "2s"));
    let server = TestServer::with(|limits| limits.idle_timeout = Settings::read(&mut reader, "0").limits.idle_timeout);
    let mut client = server.connect();
    assert_eq!(client.request(HELLO).status, 200);
    assert!(!client.is_closed_within(Duration::from_secs(1)), "not yet");
    assert!(client.is_closed_within(Duration::from_secs(10)));
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let server = TestServer::with(|limits| (limits.connections, limits.idle_timeout) = (100, Duration::from_secs(60)));
    let mut idle: Vec<_> = (0..300).map(|_| server.connect()).collect();
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(server.get("/hello").status, 200);
            started.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(20), "{times:?}");
    assert!(idle[0].is_closed_within(Duration::from_secs(1)), "the one that was idle longest made room");
    assert_eq!(idle[299].request(HELLO).status, 200, "the newest ones are kept");
}

#[test]
fn a_panic_is_answered_and_the_connection_stays_open() {
    let server = TestServer::start();
    let mut client = server.connect();
    for _ in 0..3 {
        let response = client.request("GET /panics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!((response.status, response.header("content-type")), (500, Some("application/problem+json")));
        let body: Json = serde_json::from_str(&response.body).unwrap();
        assert!(response.header("traceparent").unwrap().contains(body["traceId"].as_str().unwrap()));
        assert!(!response.body.contains("belongs to the test"));
        assert_eq!(client.request(HELLO).status, 200);
    }
}

#[test]
fn a_shutdown_finishes_what_is_in_flight() {
    let server = TestServer::start();
    let (mut idle, mut busy) = (server.connect(), server.connect());
    idle.request(HELLO);
    busy.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n");
    thread::sleep(Duration::from_millis(100));
    server.shutdown.trigger();
    assert!(idle.is_closed_within(Duration::from_millis(200)));
    let response = busy.response(false).unwrap();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(TcpStream::connect(server.address).is_err(), "new connections are refused");
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let mut server = TestServer::start();
    let mut endless = server.connect();
    endless.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n");
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    server.shutdown.trigger();
    server.thread.take().unwrap().join().unwrap();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(3)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
}
