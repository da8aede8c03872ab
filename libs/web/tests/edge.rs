//! The HTTP server, tested over sockets.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{self, SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use config::{Environment, Reader, Value as _};
use proptest::{collection::vec, prelude::*, sample::select};
use runtime::Shutdown;
use serde_json::Value as Json;
use tide::{Body, Request, Response, StatusCode};
use web::{Component, Health, Limits, Problem, Router, Server, Settings, TrustedProxies};

async fn hello(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &"hello"))
}

async fn panics(_: Request<Limits>) -> Result<Response, Problem> {
    panic!("this panic belongs to the test")
}

async fn slow(_: Request<Limits>) -> Result<Response, Problem> {
    smol::Timer::after(Duration::from_millis(300)).await;
    Ok(web::json(StatusCode::Ok, &"slow"))
}

async fn unchanged(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(Response::new(StatusCode::NotModified))
}

/// Reads a JSON body within the limits.
async fn json(mut request: Request<Limits>) -> Result<Response, Problem> {
    let limits = request.state().clone();
    let body: Json = web::read_json(&mut request, &limits).await?;
    Ok(web::json(StatusCode::Ok, &body))
}

/// Reads a body and answers after a pause.
async fn slow_json(mut request: Request<Limits>) -> Result<Response, Problem> {
    let limits = request.state().clone();
    let body: Json = web::read_json(&mut request, &limits).await?;
    smol::Timer::after(Duration::from_millis(300)).await;
    Ok(web::json(StatusCode::Ok, &body))
}

/// Answers with more than socket buffers hold.
async fn large(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::text("text/plain", vec![b'x'; LARGE]))
}

async fn made(_: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Created);
    response.insert_header("location", "/made/1");
    response.insert_header("link", "</hello?cursor=a%3C%2F>; rel=\"next\"");
    Ok(response)
}

/// Streams the body back while it arrives.
async fn echo(mut request: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Ok);
    let length = request.len();
    response.set_body(Body::from_reader(request.take_body(), length));
    Ok(response)
}

/// Streams an endless body.
async fn endless(_: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Ok);
    response.set_body(Body::from_reader(futures_lite::io::BufReader::new(futures_lite::io::repeat(b'x')), None));
    Ok(response)
}

/// A server of a test, with short limits.
struct Edge {
    address: SocketAddr,
    shutdown: Shutdown,
    thread: Option<thread::JoinHandle<()>>,
}

impl Edge {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        Self::behind(TrustedProxies::default(), change)
    }

    fn behind(trusted_proxies: TrustedProxies, change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits {
            connections: 100,
            in_flight: 5,
            head: 8 * 1024,
            body: 10_000,
            buffers: 4 << 20,
            idle_timeout: Duration::from_secs(2),
            head_timeout: Duration::from_secs(2),
            body_timeout: Duration::from_millis(500),
            write_timeout: Duration::from_secs(1),
            drain: Duration::from_secs(1),
        };
        change(&mut limits);
        let environment = Environment::empty().with("SERVER_PORT", "0");
        let settings =
            Settings { limits: limits.clone(), trusted_proxies, ..Settings::read(&mut Reader::new(environment), "0") };
        let server = Server::bind(&settings).unwrap();
        let (address, shutdown) = (server.address(), Shutdown::new());
        let stop = shutdown.clone();
        let thread = thread::spawn(move || {
            let health = Health::new(stop.clone()).component("test", || async { Component::up() });
            let app = Router::new(limits.clone())
                .limit_in_flight(limits.in_flight)
                .get("/hello", hello)
                .get("/panics", panics)
                .get("/slow", slow)
                .get("/unchanged", unchanged)
                .post("/json", json)
                .post("/slow", slow_json)
                .get("/large", large)
                .get("/made", made)
                .post("/echo", echo)
                .get("/endless", endless)
                .operations(health)
                .build();
            runtime::block_on(2, server.serve(app, stop));
        });
        Self { address, shutdown, thread: Some(thread) }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { reader: BufReader::new(stream) }
    }

    fn get(&self, path: &str) -> Answer {
        self.connect().ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
    }

    /// Sends these bytes and returns what the server sends until it closes or stays silent.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers.iter().find_map(|header| header.strip_prefix(prefix.as_str()))
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        // The server may have closed; then the answer shows it.
        let _ = self.reader.get_mut().write_all(bytes);
    }

    fn ask(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.answer(false).unwrap()
    }

    /// The next answer, by its Content-Length.
    fn answer(&mut self, head_only: bool) -> io::Result<Answer> {
        let mut line = || {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            Ok::<_, io::Error>(line.trim_end().to_owned())
        };
        let first = line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no answer: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let header = line()?;
            if header.is_empty() {
                break;
            }
            headers.push(header);
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let length =
            if head_only { 0 } else { answer.header("content-length").map_or(0, |text| text.parse().unwrap()) };
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        answer.body = String::from_utf8(body).unwrap();
        Ok(answer)
    }

    fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.reader.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether anything arrives within `limit`, if only the end of the connection.
    fn has_heard_within(&mut self, limit: Duration) -> bool {
        self.reader.get_mut().set_read_timeout(Some(limit)).unwrap();
        let is_late = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        !self.reader.fill_buf().is_err_and(|error| is_late(&error))
    }

    /// Whether the server closes within `limit`.
    fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.reader.get_mut().set_read_timeout(Some(limit)).unwrap();
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

/// Bytes of a large answer.
const LARGE: usize = 16 << 20;
const HELLO: &str = "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn keep_alive_does_not_stall() {
    let edge = Edge::start();
    let mut client = edge.connect();
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(client.ask(HELLO).body, "\"hello\"");
            started.elapsed()
        })
        .collect();
    times.sort();
    // The stall of tide's own listener is a constant 40 ms.
    assert!(times[25] < Duration::from_millis(10), "{times:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let edge = Edge::start();
    let mut client = edge.connect();
    let post = |body: &str| {
        format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    client.send(format!("{}{}{HELLO}{}", post("[1]"), post("[2]"), post("[3]")).as_bytes());
    let bodies: Vec<_> = (0..4).map(|_| client.answer(false).unwrap().body).collect();
    assert_eq!(bodies, ["[1]", "[2]", "\"hello\"", "[3]"]);
}

#[test]
fn heads_and_options() {
    let edge = Edge::start();
    let mut client = edge.connect();
    client.send(b"HEAD /hello HTTP/1.1\r\nhost: x\r\n\r\n");
    let head = client.answer(true).unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("7")));
    let options = client.ask("OPTIONS /hello HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    let wrong = client.ask("DELETE /json HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST, OPTIONS")));
    for unknown in ["BREW", "get"] {
        let answer = client.ask(&format!("{unknown} /hello HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
        assert_eq!(client.ask(&format!("{unknown} /nothing HTTP/1.1\r\nhost: x\r\n\r\n")).status, 404);
    }
}

#[test]
fn http_1_0_and_connection_close_are_honoured() {
    let edge = Edge::start();
    let old = edge.raw(b"GET /hello HTTP/1.0\r\n\r\n");
    assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("\"hello\""), "{old}");
    let closing = edge.raw(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(closing.contains("connection: close") && closing.ends_with("\"hello\""), "{closing}");
    let absolute = edge.get("http://elsewhere.example/hello");
    assert_eq!(absolute.status, 200);
}

#[test]
fn ambiguous_requests_never_desynchronise_the_connection() {
    let edge = Edge::start();
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
        let answer = edge.raw(with(headers).as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers:?}: {answer}");
        assert!(!answer.contains(" 500 ") || headers.contains("content-length: 0\r\n"), "{headers:?}: {answer}");
    }
    // With both lengths the chunks count (RFC 9112), and no bytes are left to be parsed as a request.
    let both = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n";
    let answer = edge.raw(format!("{both}{HELLO}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400") || answer.contains("\r\n\r\n[]"), "{answer}");
}

#[test]
fn non_ascii_values_of_unused_headers_are_accepted() {
    let edge = Edge::start();
    let mut client = edge.connect();
    for value in ["São Paulo", "\u{80}", "Größe;\t\"", "日本"].map(str::as_bytes).into_iter().chain([&b"\xe3\xff"[..]])
    {
        client.send(&[b"GET /hello HTTP/1.1\r\nhost: x\r\ncf-ipcity: ", value, b"\r\n\r\n"].concat());
        assert_eq!(client.answer(false).unwrap().status, 200, "{}", value.escape_ascii());
    }
    // A value that is used is checked: it is not the required media type.
    client.send(
        "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/jsonß\r\ncontent-length: 2\r\n\r\n[]".as_bytes(),
    );
    assert_eq!(client.answer(false).unwrap().status, 415);
}

#[test]
fn a_trace_continues_from_exactly_one_valid_traceparent() {
    let edge = Edge::start();
    let mut client = edge.connect();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut ask = |headers: &[&str]| {
        let headers: String = headers.iter().map(|value| format!("traceparent: {value}\r\n")).collect();
        let answer = client.ask(&format!("GET /hello HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
        assert_eq!(answer.status, 200, "{headers}");
        answer.header("traceparent").unwrap().contains("4bf92f3577b34da6a3ce929d0e0e4736")
    };
    assert!(ask(&[trace]));
    for wrong in [&[trace, trace][..], &["é"], &["00-é"], &[""], &["nonsense"]] {
        assert!(!ask(wrong), "{wrong:?}");
    }
}

#[test]
fn answers_without_a_body_have_no_media_type() {
    let edge = Edge::start();
    let mut client = edge.connect();
    for (request, status) in [("OPTIONS /hello", 204), ("GET /unchanged", 304)] {
        client.send(format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        let answer = client.answer(true).unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (status, None), "{request}");
    }
}

#[test]
fn a_forwarded_prefix_counts_from_trusted_proxies_alone() {
    let ask = |edge: &Edge, prefix: &str| {
        let answer =
            edge.connect().ask(&format!("GET /made HTTP/1.1\r\nhost: x\r\nx-forwarded-prefix: {prefix}\r\n\r\n"));
        [answer.header("location").unwrap().to_owned(), answer.header("link").unwrap().to_owned()]
    };
    let plain = ["/made/1", "</hello?cursor=a%3C%2F>; rel=\"next\""];
    let trusting = Edge::behind(TrustedProxies::parse("127.0.0.0/8").unwrap(), |_| {});
    assert_eq!(ask(&trusting, "/api/"), ["/api/made/1", "</api/hello?cursor=a%3C%2F>; rel=\"next\""]);
    for garbage in ["//evil.example", "evil", "/../x", "/a\u{e9}", "/a>; rel=\"evil\"", "/a\r\nx-forwarded-prefix: /b"]
    {
        assert_eq!(ask(&trusting, garbage), plain, "{garbage}");
    }
    let others = Edge::behind(TrustedProxies::parse("192.0.2.0/24,::1").unwrap(), |_| {});
    for edge in [Edge::start(), others] {
        assert_eq!(ask(&edge, "/api"), plain);
    }
}

/// Pages of other origins cannot read answers or send requests that need a CORS preflight.
#[test]
fn no_other_origin_is_allowed() {
    let edge = Edge::start();
    let origin = "host: x\r\norigin: https://example.org\r\n";
    let preflight = "access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n";
    for (request, headers) in [("GET /hello", ""), ("GET /nowhere", ""), ("OPTIONS /json", preflight)] {
        let mut client = edge.connect();
        client.send(format!("{request} HTTP/1.1\r\n{origin}{headers}\r\n").as_bytes());
        let answer = client.answer(true).unwrap();
        assert!(answer.status < 500, "{request}");
        assert!(!answer.headers.iter().any(|header| header.starts_with("access-control-")), "{answer:?}");
    }
}

#[test]
fn metrics_are_also_served_at_actuator_prometheus() {
    let edge = Edge::start();
    for path in ["/metrics", "/actuator/prometheus"] {
        let answer = edge.get(path);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"), "{path}");
        assert!(answer.body.contains("http_connections"), "{path}");
    }
}

#[test]
fn malformed_requests_are_answered_or_closed() {
    let edge = Edge::start();
    for nonsense in [
        "\r\n\r\n\r\n",
        "hello",
        "GET\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
    ] {
        let mut client = edge.connect();
        client.send(nonsense.as_bytes());
        let _ = client.reader.get_mut().shutdown(std::net::Shutdown::Write);
        let answer = client.rest();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{nonsense:?}: {answer}");
    }
    assert_eq!(edge.get("/hello").status, 200);
}

#[test]
fn a_head_that_does_not_end_is_rejected() {
    let edge = Edge::start();
    let large = edge.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}\r\n\r\n", "x".repeat(20_000)).as_bytes());
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    let many: String = (0..200).map(|n| format!("h{n}: x\r\n")).collect();
    let many = edge.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let mut endless = edge.connect();
    let sent = (0..1_000).take_while(|_| endless.reader.get_mut().write_all(&[b'x'; 10_000]).is_ok()).count();
    assert!(sent < 1_000, "a head without a line is not read for ever");
}

#[test]
fn slow_clients_are_disconnected() {
    let edge = Edge::start();
    let mut silent = edge.connect();
    let mut slow_head = edge.connect();
    slow_head.send(b"GET /hello HTTP/1.1\r\nhost: ");
    let mut slow_body = edge.connect();
    slow_body
        .send(b"POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n[1,");
    assert_eq!(slow_body.answer(false).unwrap().status, 408);
    assert!(!silent.is_closed_within(Duration::from_millis(500)), "not yet");
    for (name, client) in [("silent", &mut silent), ("slow head", &mut slow_head)] {
        assert!(client.is_closed_within(Duration::from_secs(5)), "{name}");
    }
}

#[test]
fn a_client_that_never_reads_is_disconnected_and_costs_no_memory() {
    let edge = Edge::start();
    let mut never = edge.connect();
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
fn bodies_are_bounded_by_length_and_as_they_come() {
    let edge = Edge::start();
    let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let body = format!("[{}1]", " ".repeat(20_000));
    let by_length = edge.connect().ask(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(by_length.status, 413);
    let chunk = format!("{:x}\r\n{}\r\n", 1000, " ".repeat(1000));
    let by_chunks =
        edge.connect().ask(&format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(20)));
    assert_eq!(by_chunks.status, 413);
    assert_eq!(by_chunks.header("content-type"), Some("application/problem+json"));
    let fits = format!("[{}1]", " ".repeat(9_997));
    assert_eq!(edge.connect().ask(&format!("{head}content-length: {}\r\n\r\n{fits}", fits.len())).status, 200);
    let mut patient = edge.connect();
    let refused = patient.ask(&format!("{head}expect: 100-continue\r\ncontent-length: 20000\r\n\r\n"));
    assert_eq!(refused.status, 413, "without asking for the body");
    let cut = edge.raw(format!("{head}content-length: 100\r\n\r\n[1").as_bytes());
    assert!(cut.starts_with("HTTP/1.1 408"), "{cut}");
}

#[test]
fn bodies_that_are_not_json_are_rejected_and_the_connection_stays_open() {
    let edge = Edge::start();
    let mut client = edge.connect();
    let nested = "[".repeat(9_000);
    for (content_type, body, status) in [
        ("application/json", "{", 400),
        ("application/json", "", 400),
        ("application/json", "[1] [2]", 400),
        ("application/json", nested.as_str(), 400),
        ("application/json", "\"\\ud800\"", 400),
        ("text/plain", "[]", 415),
        ("application/x-www-form-urlencoded", "a=b", 415),
    ] {
        let length = body.len();
        let answer = client.ask(&format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(answer.status, status, "{content_type} {body:.20}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let untyped = client.ask("POST /json HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]");
    assert_eq!(untyped.status, 415);
    assert_eq!(client.ask(HELLO).status, 200);
}

#[test]
fn a_byte_order_mark_before_json_is_ignored() {
    let edge = Edge::start();
    let mut client = edge.connect();
    for (body, status) in [
        ("\u{feff}[1]", 200),
        ("\u{feff} {}", 200),
        ("\u{feff}", 400),
        ("\u{feff}\u{feff}[1]", 400),
        ("[\u{feff}1]", 400),
        ("[1]\u{feff}", 400),
    ] {
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        let answer = client.ask(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(answer.status, status, "{body:?}");
    }
}

#[test]
fn bodies_with_a_content_coding_are_rejected() {
    let edge = Edge::start();
    let mut client = edge.connect();
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x8b\x8e\x05\0\x29\xbb\x4c\x0d\x02\0\0\0";
    for (codings, body, status) in [
        ("content-encoding: gzip\r\n", &gzip[..], 415),
        ("content-encoding: gzip\r\n", b"[]", 415),
        ("content-encoding: identity, br\r\n", b"[]", 415),
        ("content-encoding: identity\r\ncontent-encoding: x\r\n", b"[]", 415),
        ("content-encoding: gzîp\r\n", b"[]", 415),
        ("content-encoding: Identity\r\n", b"[]", 200),
        ("content-encoding: \r\n", b"[]", 200),
    ] {
        let head = format!("POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{codings}");
        client.send(&[format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat());
        let answer = client.answer(false).unwrap();
        assert_eq!(answer.status, status, "{codings}");
        assert_eq!(answer.header("accept-encoding"), (status == 415).then_some("identity"));
    }
}

#[test]
fn bodies_stream_both_ways() {
    let edge = Edge::start();
    let mut client = edge.connect();
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

#[test]
fn a_panic_is_answered_and_the_connection_stays_open() {
    let edge = Edge::start();
    let mut client = edge.connect();
    for _ in 0..3 {
        let answer = client.ask("GET /panics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!((answer.status, answer.header("content-type")), (500, Some("application/problem+json")));
        let body: Json = serde_json::from_str(&answer.body).unwrap();
        assert!(answer.header("traceparent").unwrap().contains(body["traceId"].as_str().unwrap()));
        assert!(!answer.body.contains("belongs to the test"));
        assert_eq!(client.ask(HELLO).status, 200);
    }
}

#[test]
fn beyond_the_limit_requests_get_503_and_health_is_answered() {
    let edge = Edge::start();
    let (sender, statuses) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..20 {
            let sender = sender.clone();
            let edge = &edge;
            scope.spawn(move || {
                let answer = edge.get("/slow");
                sender.send((answer.status, answer.header("retry-after").map(str::to_owned))).unwrap();
            });
        }
        thread::sleep(Duration::from_millis(100));
        let started = Instant::now();
        assert_eq!(edge.get("/actuator/health/readiness").status, 200);
        assert_eq!(edge.get("/metrics").status, 200);
        assert!(started.elapsed() < Duration::from_millis(200));
    });
    drop(sender);
    let statuses: Vec<_> = statuses.iter().collect();
    assert!(statuses.iter().all(|(status, retry)| *status == 200 || (*status == 503 && retry.as_deref() == Some("1"))));
    assert!(statuses.iter().filter(|(status, _)| *status == 200).count() >= 5);
    assert!(statuses.iter().any(|(status, _)| *status == 503));
    assert_eq!(edge.get("/slow").status, 200, "and recovers at once");
}

/// The head of a request with a JSON body, and the beginning of the body.
const BODY_BEGUN: &str =
    "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n[";

#[test]
fn unfinished_bodies_take_no_place_among_requests_in_flight() {
    let edge = Edge::with(|limits| limits.body_timeout = Duration::from_secs(60));
    let mut held: Vec<_> = (0..50).map(|_| edge.connect()).collect();
    held.iter_mut().for_each(|client| client.send(BODY_BEGUN.as_bytes()));
    for client in &mut held {
        assert!(!client.is_closed_within(Duration::from_millis(1)), "slow bodies are allowed");
    }
    for _ in 0..25 {
        assert_eq!(edge.get("/hello").status, 200);
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(edge.connect().ask(&format!("{head}[]")).status, 200);
    }
    for client in &mut held {
        client.send(format!("{}]", " ".repeat(98)).as_bytes());
    }
    for mut client in held {
        client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // All bodies arrive at once now, and five requests may be in flight.
        assert!([200, 503].contains(&client.answer(false).unwrap().status));
    }
}

#[test]
fn requests_count_as_in_flight_once_their_body_is_read() {
    let edge = Edge::start();
    let head = "POST /slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    let mut clients: Vec<_> = (0..20).map(|_| edge.connect()).collect();
    // All heads arrive before any body, so that no request is rejected because of its head.
    clients.iter_mut().for_each(|client| client.send(head.as_bytes()));
    assert_eq!(edge.get("/hello").status, 200);
    clients.iter_mut().for_each(|client| client.send(b"[]"));
    let statuses: Vec<_> = clients.iter_mut().map(|client| client.answer(false).unwrap().status).collect();
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!((5..20).contains(&served), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert_eq!(edge.connect().ask(&format!("{head}[]")).status, 200, "and recovers at once");
}

#[test]
fn unfinished_heads_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let edge = Edge::with(|limits| {
        limits.buffers = 200 * 1024;
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    });
    let begun = format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}", "x".repeat(7_000));
    let begin = || {
        let mut client = edge.connect();
        client.send(begun.as_bytes());
        client
    };
    let mut held = Vec::new();
    for _ in 0..9 {
        held.extend((0..10).map(|_| begin()));
        assert_eq!(edge.get("/hello").status, 200);
    }
    let refused = held
        .iter_mut()
        .take(40)
        .map(|client| client.has_heard_within(Duration::from_millis(50)))
        .filter(|heard| *heard)
        .count();
    assert!(refused > 0, "there is no room for all");
    let mut last = begin();
    assert_eq!(edge.get("/hello").status, 200);
    last.send(b"\r\n\r\n");
    assert_eq!(last.answer(false).unwrap().status, 200);
}

#[test]
fn slow_bodies_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let edge = Edge::with(|limits| {
        limits.buffers = 400 * 1024;
        limits.body_timeout = Duration::from_secs(60);
    });
    let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n";
    let begin = || {
        let mut client = edge.connect();
        client.send(format!("{head}[{}", " ".repeat(9_000)).as_bytes());
        client
    };
    let mut held: Vec<_> = (0..40).map(|_| begin()).collect();
    assert_eq!(held[0].answer(false).unwrap().status, 503);
    let mut last = begin();
    assert_eq!(edge.get("/hello").status, 200);
    last.send(format!("{}]", " ".repeat(998)).as_bytes());
    assert_eq!(last.answer(false).unwrap().status, 200);
}

#[test]
fn unread_answers_share_a_memory_limit_and_the_longest_waiting_is_evicted() {
    let edge = Edge::with(|limits| {
        limits.buffers = LARGE * 5 / 2;
        limits.write_timeout = Duration::from_secs(60);
    });
    let ask = |_| {
        let mut client = edge.connect();
        client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut status = String::new();
        client.reader.read_line(&mut status).unwrap();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        client
    };
    let mut held: Vec<_> = (0..6).map(ask).collect();
    let mut rest = |n: usize| {
        let client: &mut Client = &mut held[n];
        client.reader.get_mut().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        client.rest().len()
    };
    assert!(rest(5) >= LARGE, "the newest one is kept");
    assert!(rest(0) < LARGE, "the oldest one was evicted");
    assert_eq!(edge.get("/hello").status, 200);
}

#[test]
fn idle_connections_outlive_the_timeout_of_a_started_head() {
    let edge = Edge::with(|limits| {
        (limits.idle_timeout, limits.head_timeout) = (Duration::from_secs(60), Duration::from_millis(100));
    });
    let mut kept = edge.connect();
    assert_eq!(kept.ask(HELLO).status, 200);
    // Long enough for a sweep, in which idle connections release their buffers.
    assert!(!kept.is_closed_within(Duration::from_millis(2_500)));
    kept.reader.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(kept.ask(HELLO).status, 200, "it works without its buffers");
    kept.send(b"GET /hello HTTP/1.1\r\n");
    assert!(kept.is_closed_within(Duration::from_secs(10)));
}

#[test]
fn keep_alive_outlasts_that_of_load_balancers() {
    // AWS and nginx: 60 s; Traefik: 90 s; Google: 600 s.
    let mut reader = Reader::new(Environment::empty());
    let limits = Settings::read(&mut reader, "0").limits;
    assert!(limits.idle_timeout > Duration::from_secs(610), "{:?}", limits.idle_timeout);
    let mut reader = Reader::new(Environment::empty().with("HTTP_IDLE_TIMEOUT", "2s"));
    let edge = Edge::with(|limits| limits.idle_timeout = Settings::read(&mut reader, "0").limits.idle_timeout);
    let mut client = edge.connect();
    assert_eq!(client.ask(HELLO).status, 200);
    assert!(!client.is_closed_within(Duration::from_secs(1)), "not yet");
    assert!(client.is_closed_within(Duration::from_secs(10)));
}

/// When memory is short, hyper serves a connection for one request at a time, and the server reads each head itself.
#[test]
fn requests_in_any_pieces_are_answered_in_order_while_memory_is_short() {
    let edge = Edge::with(|limits| limits.buffers = 30 * 1024);
    let post = |body: &str| {
        let head = "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
        format!("{head} {}\r\n\r\n{body}", body.len())
    };
    let requests =
        format!("\r\n{}{}\n\n{HELLO}GET /hello HTTP/1.1\nhost: x\n\n{}", post("[1]"), post("[2]"), post("[3]"));
    for size in [1, 2, 3, 7, 50, 1_000] {
        let mut client = edge.connect();
        for piece in requests.as_bytes().chunks(size) {
            client.send(piece);
            thread::yield_now();
        }
        let bodies: Vec<_> = (0..5).map(|_| client.answer(false).unwrap().body).collect();
        assert_eq!(bodies, ["[1]", "[2]", "\"hello\"", "\"hello\"", "[3]"], "{size}");
    }
    let endless = edge.raw(format!("GET /hello HTTP/1.1\r\nhost: x\r\nlarge: {}", "x".repeat(20_000)).as_bytes());
    assert!(endless.starts_with("HTTP/1.1 431"), "{endless}");
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let edge = Edge::with(|limits| (limits.connections, limits.idle_timeout) = (100, Duration::from_secs(60)));
    let mut idle: Vec<_> = (0..300).map(|_| edge.connect()).collect();
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(edge.get("/hello").status, 200);
            started.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(20), "{times:?}");
    assert!(idle[0].is_closed_within(Duration::from_secs(1)), "the one that was idle longest made room");
    assert_eq!(idle[299].ask(HELLO).status, 200, "the newest ones are kept");
}

#[test]
fn a_shutdown_finishes_what_is_in_flight() {
    let edge = Edge::start();
    let (mut idle, mut busy) = (edge.connect(), edge.connect());
    idle.ask(HELLO);
    busy.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n");
    thread::sleep(Duration::from_millis(100));
    edge.shutdown.trigger();
    assert!(idle.is_closed_within(Duration::from_millis(200)));
    let answer = busy.answer(false).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(TcpStream::connect(edge.address).is_err(), "new connections are refused");
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let mut edge = Edge::start();
    let mut endless = edge.connect();
    endless.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n");
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    edge.shutdown.trigger();
    edge.thread.take().unwrap().join().unwrap();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(3)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// For any input, each answer is complete HTTP, none is a 500, and the server keeps working.
    #[test]
    fn any_bytes_get_whole_answers_or_none(pieces in vec(piece(), 1..12)) {
        let edge = Edge::start();
        let mut client = edge.connect();
        client.send(&pieces.concat());
        client.reader.get_ref().shutdown(net::Shutdown::Write).unwrap();
        while client.reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            let answer = client.answer(false).unwrap();
            prop_assert!(answer.status < 500 || answer.status == 503, "{:?}", answer);
        }
        prop_assert_eq!(edge.get("/hello").status, 200);
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
        "content-length: 5\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "expect: 100-continue\r\n",
        "upgrade: h2c\r\nconnection: upgrade\r\n",
        "\r\n",
        "\n",
        "5\r\n[1,2]\r\n",
        "ffffffffffffffff\r\n",
        "0\r\n\r\n",
        "[1,2]",
        "\0",
    ];
    prop_oneof![
        8 => select(known).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ]
}
