//! The live page over a real connection.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use support::{Console, message, request};

const TRACE: [u8; 16] = [0x4b; 16];

/// An open stream, read line by line.
struct Stream(BufReader<TcpStream>);

impl Stream {
    /// A stream that the console has accepted.
    fn open(console: &Console, query: &str) -> Self {
        let mut stream = Self::request(console, query);
        let status = stream.line();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        stream
    }

    /// A stream whose response nobody has read yet.
    fn request(console: &Console, query: &str) -> Self {
        let mut stream = TcpStream::connect(console.host()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("{}\r\n", request("GET", &format!("/api/stream?{query}"))).as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
        line
    }

    /// The name and the data of the next event.
    fn next(&mut self) -> (String, Json) {
        let mut name = String::new();
        loop {
            let line = self.line();
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (name, serde_json::from_str(data).unwrap());
            }
        }
    }

    /// The next event that has a member.
    fn next_with(&mut self, member: &str) -> Json {
        loop {
            let (_, event) = self.next();
            if event.get(member).is_some() {
                return event;
            }
        }
    }
}

fn send(console: &Console, spans: std::ops::Range<u64>) {
    let head = "POST /v1/traces HTTP/1.1\r\nHost: console:4010\r\nContent-Type: application/x-protobuf\r\n";
    assert_eq!(console.send_with(head, &message(Some(TRACE), spans)).status, 200);
}

#[test]
fn a_snapshot_comes_first_and_then_what_changes() {
    let console = Console::start();
    let mut list = Stream::open(&console, "view=journeys");
    let (name, snapshot) = list.next();
    assert_eq!((name.as_str(), &snapshot["seq"]), ("snapshot", &1.into()));
    assert!(snapshot["map"]["parts"].is_array());
    assert_eq!(snapshot["journeys"], Json::Array(Vec::new()));
    let trace = "4b".repeat(16);
    let mut one = Stream::open(&console, &format!("view=journey&trace={trace}"));
    assert_eq!(one.next().1["journey"], Json::Null, "nothing has come of it");

    send(&console, 0..1);
    let delta = list.next_with("journeys");
    assert_eq!(delta["journeys"][0]["trace"], trace.as_str());
    assert!(delta["seq"].as_u64() > snapshot["seq"].as_u64());
    let spans = |event: Json| event["journey"]["spans"].as_array().map(Vec::len);
    assert_eq!(spans(one.next_with("journey")), Some(1));
    send(&console, 1..3);
    assert_eq!(spans(one.next_with("journey")), Some(3), "late spans attach");
    assert_eq!(console.send(&request("GET", "/api/stream?view=journey")).status, 400);
    assert_eq!(console.send(&request("GET", "/api/stream?view=other")).status, 400);
}

#[test]
fn a_stream_that_nobody_reads_any_more_gives_its_place_back() {
    let console = Console::start();
    // More than there are places, closed at once.
    for _ in 0..3 {
        let mut streams: Vec<_> = (0..20).map(|_| Stream::request(&console, "view=map")).collect();
        for stream in &mut streams {
            let status = stream.line();
            assert!(status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.1 503"), "{status}");
        }
    }
    let end = Instant::now() + Duration::from_secs(20);
    while !Stream::request(&console, "view=map").line().starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < end, "no place is free again");
    }
}
