//! A console on a port of its own, and requests written by hand: a client would choose the headers that are tested.
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use config::{Environment, Reader};
use console::{Service, Settings};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use runtime::Shutdown;

/// A running console. It ends with the process of the test.
pub(crate) struct Console {
    address: SocketAddr,
}

/// A response.
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }
}

impl Console {
    /// One of its own settings, whose services are nowhere.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let nowhere = "127.0.0.1:1";
        let services = ["PATIENT_SERVICE_HTTP", "BILLING_SERVICE_HTTP", "ANALYTICS_SERVICE_HTTP"];
        let environment = Environment::empty().with("SERVER_PORT", "0");
        let environment = services.iter().fold(environment, |all, name| all.with(*name, nowhere));
        let environment = settings.iter().fold(environment, |all, (name, value)| all.with(*name, *value));
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        let (settings, _) = reader.finish(settings).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            runtime::block_on(1, async move {
                let service = Service::build(settings).unwrap();
                sender.send(service.address()).unwrap();
                service.run(Shutdown::new()).await.unwrap();
            });
        });
        Self { address: receiver.recv().unwrap() }
    }

    /// What a browser calls it.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Sends a head that lacks its end, and reads the response.
    pub(crate) fn send(&self, head: &str) -> Response {
        self.send_with(head, b"")
    }

    /// The same with a body.
    pub(crate) fn send_with(&self, head: &str, body: &[u8]) -> Response {
        exchange(self.address, head, body)
    }
}

/// Sends a request whose head lacks its end to any console, and reads the response.
pub(crate) fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream.write_all(format!("{head}{length}Connection: close\r\n\r\n").as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    response(&bytes)
}

/// The head of a request to the console, without its end.
pub(crate) fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost:4010\r\n")
}

fn response(bytes: &[u8]) -> Response {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a response has a head");
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Response { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() }
}

fn text(name: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}

/// An OTLP message with a span for each number in `spans`, in one trace or each in its own.
pub(crate) fn message(trace: Option<[u8; 16]>, spans: std::ops::Range<u64>) -> Vec<u8> {
    let span = |number: u64| Span {
        trace_id: trace.map_or_else(|| u128::from(number / 7 + 1).to_be_bytes().to_vec(), |id| id.to_vec()),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: "POST /patients".to_owned(),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000 + number,
        end_time_unix_nano: 1_700_000_000_006_000_000 + number,
        attributes: vec![
            text("http.route", "/patients"),
            text("http.request.method", "POST"),
            text("messaging.destination.name", "patient"),
            text("server.address", "127.0.0.1"),
        ],
        ..Span::default()
    };
    let scope = ScopeSpans { spans: spans.map(span).collect(), ..ScopeSpans::default() };
    let resource = Resource { attributes: vec![text("service.name", "patient-service")], ..Resource::default() };
    let spans = ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
}
