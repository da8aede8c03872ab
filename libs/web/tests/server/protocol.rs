//! Requests and responses on the wire: framing, heads, headers, pipelining, hostile bytes.

use std::{
    io::{BufRead as _, Write as _},
    net::Shutdown,
    time::{Duration, Instant},
};

use config::Value as _;
use proptest::{collection::vec, prelude::*, sample::select};
use web::TrustedProxies;

use crate::support::{HELLO, TestServer};

#[test]
fn keep_alive_does_not_stall() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(client.request(HELLO).body, "\"hello\"");
            started.elapsed()
        })
        .collect();
    times.sort();
    // The stall of tide's own listener is a constant 40 ms.
    assert!(times[25] < Duration::from_millis(10), "{times:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = TestServer::start();
    let mut client = server.connect();
    let post = |body: &str| {
        format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    client.send(format!("{}{}{HELLO}{}", post(r#"{"a":1}"#), post(r#"{"a":2}"#), post(r#"{"a":3}"#)).as_bytes());
    let bodies: Vec<_> = (0..4).map(|_| client.response(false).unwrap().body).collect();
    assert_eq!(bodies, [r#"{"a":1}"#, r#"{"a":2}"#, "\"hello\"", r#"{"a":3}"#]);
}

#[test]
fn a_path_is_the_same_with_encoded_letters() {
    let server = TestServer::start();
    for (path, status) in [
        ("/%68ello", 200),
        ("/hell%6F?a=%70", 200),
        ("/%68%65%6c%6C%6f", 200),
        ("/created/%2E%2e/hello", 200),
        ("/hello%3F", 404),
        ("/%2Fhello", 404),
        ("/hell%256f", 404),
        ("/hell%6", 404),
        ("/created/%%32e%%32e/hello", 404),
        ("/hell%+6", 404),
        ("/%C3%B6", 404),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
}

#[test]
fn heads_and_options() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(b"HEAD /hello HTTP/1.1\r\nhost: x\r\n\r\n");
    let head = client.response(true).unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("7")));
    let options = client.request("OPTIONS /hello HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    let wrong = client.request("DELETE /json HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST, OPTIONS")));
    for unknown in ["BREW", "get"] {
        let response = client.request(&format!("{unknown} /hello HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
        assert_eq!(client.request(&format!("{unknown} /nothing HTTP/1.1\r\nhost: x\r\n\r\n")).status, 404);
    }
}

#[test]
fn options_for_the_server_as_a_whole_is_a_ping() {
    let server = TestServer::start();
    let mut client = server.connect();
    let ping = client.request("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((ping.status, ping.header("content-type"), ping.body.as_str()), (204, None, ""));
    assert!(ping.header("traceparent").is_some());
    // These targets are for OPTIONS and CONNECT alone.
    for target in ["*", "hello"] {
        assert_eq!(client.request(&format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")).status, 400, "{target}");
    }
    assert_eq!(client.request(HELLO).status, 200);
}

#[test]
fn http_1_0_and_connection_close_are_honoured() {
    let server = TestServer::start();
    let old = server.raw(b"GET /hello HTTP/1.0\r\n\r\n");
    assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("\"hello\""), "{old}");
    let closing = server.raw(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(closing.contains("connection: close") && closing.ends_with("\"hello\""), "{closing}");
    let absolute = server.get("http://elsewhere.example/hello");
    assert_eq!(absolute.status, 200);
}

#[test]
fn ambiguous_requests_never_desynchronise_the_connection() {
    let server = TestServer::start();
    // Under one interpretation of the framing, the second request is part of the first one's body.
    let hidden = "GET /panics HTTP/1.1\r\nhost: x\r\n\r\n";
    let with = |headers: &str| format!("POST /json HTTP/1.1\r\n{headers}\r\n{hidden}");
    for (headers, status) in [
        ("host: x\r\ncontent-length: 0\r\ncontent-length: 36\r\n", 400),
        ("host: x\r\ncontent-length: 1, 2\r\n", 400),
        ("host: x\r\ncontent-length: +3\r\n", 400),
        ("host: x\r\ncontent-length: -1\r\n", 400),
        ("host: x\r\ntransfer-encoding: gzip\r\n", 400),
        ("host: x\r\ntransfer-encoding: chunked, gzip\r\n", 400),
        ("content-length: 0\r\n", 400),
        ("host: x\r\nhost: y\r\ncontent-length: 0\r\n", 400),
        ("host: São\r\ncontent-length: 0\r\n", 400),
        ("host: x y\r\ncontent-length: 0\r\n", 400),
        ("host: x\r\ncontent-length : 0\r\n", 400),
        ("host: x\r\n folded: 0\r\n", 400),
        ("host: x\r\nbad\u{0}name: 0\r\n", 400),
    ] {
        let response = server.raw(with(headers).as_bytes());
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{headers:?}: {response}");
        assert!(!response.contains(" 500 ") || headers.contains("content-length: 0\r\n"), "{headers:?}: {response}");
    }
    // With both lengths the chunks count (RFC 9112), and no bytes are left to be parsed as a request.
    let both = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let response = server.raw(format!("{both}{HELLO}").as_bytes());
    assert!(response.starts_with("HTTP/1.1 400") || response.contains("\r\n\r\n{}"), "{response}");
}

#[test]
fn non_ascii_values_of_unused_headers_are_accepted() {
    let server = TestServer::start();
    let mut client = server.connect();
    for value in ["São Paulo", "\u{80}", "Größe;\t\"", "日本"].map(str::as_bytes).into_iter().chain([&b"\xe3\xff"[..]])
    {
        client.send(&[b"GET /hello HTTP/1.1\r\nhost: x\r\ncf-ipcity: ", value, b"\r\n\r\n"].concat());
        assert_eq!(client.response(false).unwrap().status, 200, "{}", value.escape_ascii());
    }
    // A value that is used is checked: it is not the required media type.
    client.send(
        "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/jsonß\r\ncontent-length: 2\r\n\r\n{}".as_bytes(),
    );
    assert_eq!(client.response(false).unwrap().status, 415);
}

#[test]
fn a_trace_continues_from_exactly_one_valid_traceparent() {
    let server = TestServer::start();
    let mut client = server.connect();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut continues = |headers: &[&str]| {
        let headers: String = headers.iter().map(|value| format!("traceparent: {value}\r\n")).collect();
        let response = client.request(&format!("GET /hello HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
        assert_eq!(response.status, 200, "{headers}");
        response.header("traceparent").unwrap().contains("4bf92f3577b34da6a3ce929d0e0e4736")
    };
    assert!(continues(&[trace]));
    for wrong in [&[trace, trace][..], &["é"], &["00-é"], &[""], &["nonsense"]] {
        assert!(!continues(wrong), "{wrong:?}");
    }
}

#[test]
fn answers_without_a_body_have_no_media_type() {
    let server = TestServer::start();
    let mut client = server.connect();
    for (request, status) in [("OPTIONS /hello", 204), ("GET /unchanged", 304)] {
        client.send(format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        let response = client.response(true).unwrap();
        assert_eq!((response.status, response.header("content-type")), (status, None), "{request}");
    }
}

#[test]
fn a_forwarded_prefix_counts_from_trusted_proxies_alone() {
    let links = |server: &TestServer, prefix: &str| {
        let response = server
            .connect()
            .request(&format!("GET /created HTTP/1.1\r\nhost: x\r\nx-forwarded-prefix: {prefix}\r\n\r\n"));
        [response.header("location").unwrap().to_owned(), response.header("link").unwrap().to_owned()]
    };
    let plain = ["/created/1", "</hello?cursor=a%3C%2F>; rel=\"next\""];
    let trusting = TestServer::behind(TrustedProxies::parse("127.0.0.0/8").unwrap(), |_| {});
    assert_eq!(links(&trusting, "/api/"), ["/api/created/1", "</api/hello?cursor=a%3C%2F>; rel=\"next\""]);
    for garbage in ["//evil.example", "evil", "/../x", "/a\u{e9}", "/a>; rel=\"evil\"", "/a\r\nx-forwarded-prefix: /b"]
    {
        assert_eq!(links(&trusting, garbage), plain, "{garbage}");
    }
    let others = TestServer::behind(TrustedProxies::parse("192.0.2.0/24,::1").unwrap(), |_| {});
    for server in [TestServer::start(), others] {
        assert_eq!(links(&server, "/api"), plain);
    }
}

#[test]
fn metrics_are_also_served_at_actuator_prometheus() {
    let server = TestServer::start();
    for path in ["/metrics", "/actuator/prometheus"] {
        let response = server.get(path);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"), "{path}");
        assert!(response.body.contains("http_connections"), "{path}");
    }
}

/// Pages of other origins cannot read responses or send requests that need a CORS preflight.
#[test]
fn no_other_origin_is_allowed() {
    let server = TestServer::start();
    let origin = "host: x\r\norigin: https://example.org\r\n";
    let preflight = "access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n";
    for (request, headers) in [("GET /hello", ""), ("GET /nowhere", ""), ("OPTIONS /json", preflight)] {
        let mut client = server.connect();
        client.send(format!("{request} HTTP/1.1\r\n{origin}{headers}\r\n").as_bytes());
        let response = client.response(true).unwrap();
        assert!(response.status < 500, "{request}");
        assert!(!response.headers.iter().any(|header| header.starts_with("access-control-")), "{response:?}");
    }
}

#[test]
fn malformed_requests_are_answered_or_closed() {
    let server = TestServer::start();
    for nonsense in [
        "\r\n\r\n\r\n",
        "hello",
        "GET\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
    ] {
        let mut client = server.connect();
        client.send(nonsense.as_bytes());
        let _ = client.reader.get_mut().shutdown(Shutdown::Write);
        let response = client.rest();
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400"), "{nonsense:?}: {response}");
    }
    assert_eq!(server.get("/hello").status, 200);
}

#[test]
fn a_head_that_does_not_end_is_rejected() {
    let server = TestServer::start();
    let large =
        server.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}\r\n\r\n", "x".repeat(20_000)).as_bytes());
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    let many: String = (0..200).map(|n| format!("h{n}: x\r\n")).collect();
    let many = server.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let mut endless = server.connect();
    let sent = (0..1_000).take_while(|_| endless.reader.get_mut().write_all(&[b'x'; 10_000]).is_ok()).count();
    assert!(sent < 1_000, "a head without a line is not read for ever");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// For any input, each response is complete HTTP, none is a 500, and the server keeps working.
    #[test]
    fn any_bytes_get_whole_answers_or_none(pieces in vec(piece(), 1..12)) {
        let server = TestServer::start();
        let mut client = server.connect();
        client.send(&pieces.concat());
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        while client.reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            let response = client.response(false).unwrap();
            prop_assert!(response.status < 500 || response.status == 503, "{:?}", response);
        }
        prop_assert_eq!(server.get("/hello").status, 200);
    }
}

/// A part of a request, valid or not.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = vec![
        "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "POST /json HTTP/1.1\r\n",
        "GET ",
        "/hello",
        " HTTP/1.1\r\n",
        " HTTP/9.9\r\n",
        "host: x\r\n",
        "content-type: application/json\r\n",
        "content-length: 7\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "expect: 100-continue\r\n",
        "upgrade: h2c\r\nconnection: upgrade\r\n",
        "\r\n",
        "\n",
        "7\r\n{\"a\":1}\r\n",
        "ffffffffffffffff\r\n",
        "0\r\n\r\n",
        "{\"a\":1}",
        "\0",
    ];
    prop_oneof![
        8 => select(known).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ]
}
