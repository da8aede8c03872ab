//! Bodies that no handler reads, because the response does not depend on them.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use crate::support::{Client, HELLO, TestServer};

/// Requests whose bodies are not read, and the status of their response.
const UNREAD: [(&str, u16); 6] = [
    ("POST /nothing HTTP/1.1\r\nhost: x\r\n", 404),
    ("GET /nothing HTTP/1.1\r\nhost: x\r\n", 404),
    ("GET /hello HTTP/1.1\r\nhost: x\r\n", 200),
    ("DELETE /json HTTP/1.1\r\nhost: x\r\n", 405),
    ("POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n", 415),
    ("POST /json HTTP/1.1\r\nhost: x\r\nhost: y\r\n", 400),
];
/// Limits of memory: one that is always exceeded by half, and one that never is.
const MEMORY: [usize; 2] = [30 * 1024, 4 << 20];

/// Whether the server closes the connection within five seconds, whatever it sends before.
fn ends(client: &mut Client) -> bool {
    let started = Instant::now();
    client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.rest();
    started.elapsed() < Duration::from_secs(5)
}

#[test]
fn a_body_that_arrives_after_the_response_is_never_taken_for_a_request() {
    for memory in MEMORY {
        let server = TestServer::with(|limits| limits.buffers = memory);
        for (head, status) in UNREAD {
            let chunked = format!("{:x}\r\n{HELLO}\r\n0\r\n\r\n", HELLO.len());
            let by_length = format!("content-length: {}\r\n\r\n", HELLO.len());
            for (framing, body) in [(by_length.as_str(), HELLO), ("transfer-encoding: chunked\r\n\r\n", &chunked)] {
                for split in [0, 1, 30, body.len() - 1] {
                    let mut client = server.connect();
                    client.send(format!("{head}{framing}{}", &body[..split]).as_bytes());
                    assert_eq!(client.response(false).unwrap().status, status, "{head}");
                    client.send(&body.as_bytes()[split..]);
                    // The connection stays usable, and the next response is that to the next request.
                    let next = client.request("GET /created HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
                    assert_eq!(next.status, 201, "{memory} {head}{framing} {split}");
                    assert_eq!(client.rest(), "", "{memory} {head}{framing} {split}");
                }
            }
        }
    }
}

#[test]
fn a_client_that_is_still_sending_its_body_gets_the_response() {
    let server = TestServer::start();
    for (head, status) in UNREAD {
        let mut client = server.connect();
        client.send(format!("{head}content-length: 1000000\r\n\r\n").as_bytes());
        for _ in 0..10 {
            client.reader.get_mut().write_all(&[b'x'; 100_000]).unwrap();
        }
        assert_eq!(client.response(false).unwrap().status, status, "{head}");
        assert_eq!(client.request(HELLO).status, 200, "the connection can be used again: {head}");
    }
}

#[test]
fn an_unread_body_is_not_discarded_for_ever() {
    let server = TestServer::with(|limits| limits.idle_timeout = Duration::from_secs(60));
    let head = "POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    let mut silent = server.connect();
    assert_eq!(silent.request(head).status, 404);
    assert!(ends(&mut silent));
    let mut endless = server.connect();
    assert_eq!(endless.request(head).status, 404);
    let sent = (0..1_000).take_while(|_| endless.reader.get_mut().write_all(&[b'x'; 100_000]).is_ok()).count();
    assert!(sent < 1_000);
    assert_eq!(server.get("/hello").status, 200);
}

#[test]
fn unread_bodies_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let server = TestServer::with(|limits| limits.buffers = 400 * 1024);
    let started = Instant::now();
    let open = |_| {
        let mut client = server.connect();
        assert_eq!(client.request("POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").status, 404);
        client
    };
    let mut held: Vec<_> = (0..60).map(open).collect();
    assert!(held[0].is_closed_within(Duration::from_secs(1)));
    // Otherwise the time to discard a body may be over.
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let mut last = held.pop().unwrap();
    last.send(&[b'x'; 100]);
    assert_eq!(last.request(HELLO).status, 200, "the newest one is kept");
}

#[test]
fn a_shutdown_does_not_wait_for_an_unread_body() {
    let mut server = TestServer::with(|limits| limits.drain = Duration::from_secs(60));
    let mut client = server.connect();
    assert_eq!(client.request("POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").status, 404);
    let started = Instant::now();
    server.shutdown.trigger();
    server.thread.take().unwrap().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
