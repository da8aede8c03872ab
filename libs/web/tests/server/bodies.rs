//! Bodies of requests: their size, media type, coding and streaming.

use std::io::BufRead as _;

use crate::support::{HELLO, TestServer};

#[test]
fn bodies_are_bounded_by_length_and_as_they_come() {
    let server = TestServer::start();
    let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let body = format!("{{{}}}", " ".repeat(20_000));
    let by_length = server.connect().request(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(by_length.status, 413);
    let chunk = format!("{:x}\r\n{}\r\n", 1000, " ".repeat(1000));
    let by_chunks =
        server.connect().request(&format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(20)));
    assert_eq!(by_chunks.status, 413);
    assert_eq!(by_chunks.header("content-type"), Some("application/problem+json"));
    let fits = format!("{{{}}}", " ".repeat(9_998));
    assert_eq!(server.connect().request(&format!("{head}content-length: {}\r\n\r\n{fits}", fits.len())).status, 200);
    let mut patient = server.connect();
    let rejected = patient.request(&format!("{head}expect: 100-continue\r\ncontent-length: 20000\r\n\r\n"));
    assert_eq!(rejected.status, 413, "without asking for the body");
    let cut = server.raw(format!("{head}content-length: 100\r\n\r\n{{\"a").as_bytes());
    assert!(cut.starts_with("HTTP/1.1 408"), "{cut}");
}

#[test]
fn bodies_that_are_not_json_are_rejected_and_the_connection_stays_open() {
    let server = TestServer::start();
    let mut client = server.connect();
    let nested = r#"{"a":"#.repeat(1_500);
    for (content_type, body, status) in [
        ("application/json", "{", 400),
        ("application/json", "", 400),
        ("application/json", "{} {}", 400),
        ("application/json", nested.as_str(), 400),
        ("application/json", r#"{"a":"\ud800"}"#, 400),
        ("application/json", "[]", 400),
        ("application/json", " [{}]", 400),
        ("application/json", "\u{feff}\n[1]", 400),
        ("application/json", "\"{}\"", 400),
        ("application/json", "null", 400),
        ("text/plain", "{}", 415),
        ("application/x-www-form-urlencoded", "a=b", 415),
    ] {
        let length = body.len();
        let response = client.request(&format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(response.status, status, "{content_type} {body:.20}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
    }
    let untyped = client.request("POST /json HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(untyped.status, 415);
    assert_eq!(client.request(HELLO).status, 200);
}

#[test]
fn a_byte_order_mark_before_json_is_ignored() {
    let server = TestServer::start();
    let mut client = server.connect();
    for (body, status) in [
        ("\u{feff}{}", 200),
        ("\u{feff} {}", 200),
        ("\u{feff}", 400),
        ("\u{feff}\u{feff}{}", 400),
        ("{\u{feff}}", 400),
        ("{}\u{feff}", 400),
    ] {
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        let response = client.request(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(response.status, status, "{body:?}");
    }
}

#[test]
fn bodies_with_a_content_coding_are_rejected() {
    let server = TestServer::start();
    let mut client = server.connect();
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x8b\x8e\x05\0\x29\xbb\x4c\x0d\x02\0\0\0";
    for (codings, body, status) in [
        ("content-encoding: gzip\r\n", &gzip[..], 415),
        ("content-encoding: gzip\r\n", b"{}", 415),
        ("content-encoding: identity, br\r\n", b"{}", 415),
        ("content-encoding: identity\r\ncontent-encoding: x\r\n", b"{}", 415),
        ("content-encoding: gzîp\r\n", b"{}", 415),
        ("content-encoding: Identity\r\n", b"{}", 200),
        ("content-encoding: \r\n", b"{}", 200),
    ] {
        let head = format!("POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{codings}");
        client.send(&[format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat());
        let response = client.response(false).unwrap();
        assert_eq!(response.status, status, "{codings}");
        assert_eq!(response.header("accept-encoding"), (status == 415).then_some("identity"));
    }
}

#[test]
fn bodies_stream_both_ways() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        client.reader.read_line(&mut line).unwrap();
    }
    // Each chunk comes back before the next one is sent.
    for n in 0..5 {
        let text = format!("part {n}");
        client.send(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
        line.clear();
        client.reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), format!("{:X}", text.len()));
        line.clear();
        client.reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), text);
    }
    client.send(b"0\r\n\r\n");
    line.clear();
    client.reader.read_line(&mut line).unwrap();
    assert_eq!(line, "0\r\n");
}
