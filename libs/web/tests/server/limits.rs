//! Limits that all clients share: requests in flight and memory.

use std::{
    io::BufRead as _,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Client, HELLO, LARGE, TestServer};

#[test]
fn beyond_the_limit_requests_get_503_and_health_is_answered() {
    let server = TestServer::start();
    let (sender, statuses) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..20 {
            let sender = sender.clone();
            let server = &server;
            scope.spawn(move || {
                let response = server.get("/slow");
                sender.send((response.status, response.header("retry-after").map(str::to_owned))).unwrap();
            });
        }
        thread::sleep(Duration::from_millis(100));
        let started = Instant::now();
        assert_eq!(server.get("/actuator/health/readiness").status, 200);
        assert_eq!(server.get("/metrics").status, 200);
        assert!(started.elapsed() < Duration::from_secs(2));
    });
    drop(sender);
    let statuses: Vec<_> = statuses.iter().collect();
    assert!(statuses.iter().all(|(status, retry)| *status == 200 || (*status == 503 && retry.as_deref() == Some("1"))));
    assert!(statuses.iter().filter(|(status, _)| *status == 200).count() >= 5);
    assert!(statuses.iter().any(|(status, _)| *status == 503));
    assert_eq!(server.get("/slow").status, 200, "and recovers at once");
}

/// The head of a request with a JSON body, and the beginning of the body.
const BODY_BEGUN: &str =
    "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";

#[test]
fn unfinished_bodies_take_no_place_among_requests_in_flight() {
    let server = TestServer::with(|limits| limits.body_timeout = Duration::from_secs(60));
    let mut held: Vec<_> = (0..50).map(|_| server.connect()).collect();
    held.iter_mut().for_each(|client| client.send(BODY_BEGUN.as_bytes()));
    for client in &mut held {
        assert!(!client.is_closed_within(Duration::from_millis(1)), "slow bodies are allowed");
    }
    for _ in 0..25 {
        assert_eq!(server.get("/hello").status, 200);
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(server.connect().request(&format!("{head}{{}}")).status, 200);
    }
    for client in &mut held {
        client.send(format!("{}}}", " ".repeat(98)).as_bytes());
    }
    for mut client in held {
        client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // All bodies arrive at once now, and five requests may be in flight.
        assert!([200, 503].contains(&client.response(false).unwrap().status));
    }
}

#[test]
fn requests_count_as_in_flight_once_their_body_is_read() {
    let server = TestServer::start();
    let head = "POST /slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    // All heads arrive before any body, so that no request is rejected because of its head.
    clients.iter_mut().for_each(|client| client.send(head.as_bytes()));
    assert_eq!(server.get("/hello").status, 200);
    clients.iter_mut().for_each(|client| client.send(b"{}"));
    let statuses: Vec<_> = clients.iter_mut().map(|client| client.response(false).unwrap().status).collect();
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!((5..20).contains(&served), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert_eq!(server.connect().request(&format!("{head}{{}}")).status, 200, "and recovers at once");
}

#[test]
fn unfinished_heads_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let server = TestServer::with(|limits| {
        limits.buffers = 200 * 1024;
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    });
    let begun = format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}", "x".repeat(7_000));
    let begin = || {
        let mut client = server.connect();
        client.send(begun.as_bytes());
        client
    };
    let mut held = Vec::new();
    for _ in 0..9 {
        held.extend((0..10).map(|_| begin()));
        assert_eq!(server.get("/hello").status, 200);
    }
    let rejected = held
        .iter_mut()
        .take(40)
        .map(|client| client.receives_within(Duration::from_millis(50)))
        .filter(|received| *received)
        .count();
    assert!(rejected > 0, "there is no room for all");
    let mut last = begin();
    assert_eq!(server.get("/hello").status, 200);
    last.send(b"\r\n\r\n");
    assert_eq!(last.response(false).unwrap().status, 200);
}

#[test]
fn slow_bodies_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let server = TestServer::with(|limits| {
        limits.buffers = 400 * 1024;
        limits.body_timeout = Duration::from_secs(60);
    });
    let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n";
    let begin = || {
        let mut client = server.connect();
        // The response shows that the server waits for this body, before it waits for the next one.
        client.send(format!("{head}expect: 100-continue\r\n\r\n").as_bytes());
        assert_eq!(client.response(true).unwrap().status, 100);
        client.send(format!("{{{}", " ".repeat(9_000)).as_bytes());
        client
    };
    let mut held: Vec<_> = (0..40).map(|_| begin()).collect();
    assert_eq!(held[0].response(false).unwrap().status, 503);
    let mut last = begin();
    assert_eq!(server.get("/hello").status, 200);
    last.send(format!("{}}}", " ".repeat(998)).as_bytes());
    assert_eq!(last.response(false).unwrap().status, 200);
}

#[test]
fn unread_answers_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let server = TestServer::with(|limits| {
        limits.buffers = LARGE * 5 / 2;
        limits.write_timeout = Duration::from_secs(60);
    });
    let open = |_| {
        let mut client = server.connect();
        client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut status = String::new();
        client.reader.read_line(&mut status).unwrap();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        client
    };
    let mut held: Vec<_> = (0..6).map(open).collect();
    let mut rest = |n: usize| {
        let client: &mut Client = &mut held[n];
        client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        client.rest().len()
    };
    assert!(rest(5) >= LARGE, "the newest one is kept");
    assert!(rest(0) < LARGE, "the oldest one was evicted");
    assert_eq!(server.get("/hello").status, 200);
}

/// When memory is short, hyper serves a connection for one request at a time, and the server reads each head itself.
#[test]
fn requests_in_any_pieces_are_answered_in_order_while_memory_is_short() {
    let server = TestServer::with(|limits| limits.buffers = 30 * 1024);
    let post = |body: &str| {
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
        format!("{head} {}\r\n\r\n{body}", body.len())
    };
    let requests = format!(
        "\r\n{}{}\n\n{HELLO}GET /hello HTTP/1.1\nhost: x\n\n{}",
        post(r#"{"a":1}"#),
        post(r#"{"a":2}"#),
        post(r#"{"a":3}"#)
    );
    for size in [1, 2, 3, 7, 50, 1_000] {
        let mut client = server.connect();
        for piece in requests.as_bytes().chunks(size) {
            client.send(piece);
            thread::yield_now();
        }
        let bodies: Vec<_> = (0..5).map(|_| client.response(false).unwrap().body).collect();
        assert_eq!(bodies, [r#"{"a":1}"#, r#"{"a":2}"#, "\"hello\"", "\"hello\"", r#"{"a":3}"#], "{size}");
    }
    let endless = server.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}", "x".repeat(20_000)).as_bytes());
    assert!(endless.starts_with("HTTP/1.1 431"), "{endless}");
}

/// hyper pauses after some pipelined requests, with others in its buffer.
#[test]
fn many_pipelined_requests_are_all_answered_while_memory_is_short() {
    for count in [15, 16, 17, 32, 40, 200] {
        let server = TestServer::with(|limits| limits.buffers = 30 * 1024);
        let mut client = server.connect();
        client.send(HELLO.repeat(count).as_bytes());
        for n in 0..count {
            assert_eq!(client.response(false).map(|response| response.status).ok(), Some(200), "{n} of {count}");
        }
        client.send(b"GET /hello HTTP/1.1\r\nhost:");
        assert_eq!(client.request(" x\r\n\r\n").status, 200);
    }
}
