//! The memory of the console after many spans, as a process of its own.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{
    Scratch,
    service::{Launch, Service},
};

mod support;

/// An address at which no process listens.
const UNREACHABLE: &str = "127.0.0.1:1";
/// Resident memory at most, in bytes.
const LIMIT: u64 = 40 * 1024 * 1024;

async fn start(scratch: &Scratch) -> Service {
    let services = ["PATIENT_SERVICE_HTTP", "BILLING_SERVICE_HTTP", "ANALYTICS_SERVICE_HTTP"];
    let launch = Launch::new("console", scratch.path(), services.map(|name| (name, UNREACHABLE)));
    let mut console = launch.start_guarded(scratch).unwrap();
    console.until_ready().await.unwrap();
    console
}

/// As many as a message of the maximum size has room for.
const MAX_PARTS: usize = 2 * 1024 * 1024 - 50;

/// A message with so many empty parts of two bytes, each of which becomes a struct or a text.
fn with_empty_parts(count: usize, path: &[u8], field: u8) -> Vec<u8> {
    let mut message = [field << 3 | 2, 0].repeat(count);
    for outer in path.iter().rev() {
        let mut length = Vec::new();
        prost::encoding::encode_varint(message.len() as u64, &mut length);
        message = [&[outer << 3 | 2][..], &length, &message].concat();
    }
    message
}

#[test]
fn a_message_of_many_empty_parts_is_rejected_before_it_is_decoded() {
    runtime::block_on(1, async {
        let scratch = Scratch::new().unwrap();
        let mut console = start(&scratch).await;
        let address: SocketAddr = console.address().parse().unwrap();
        let (traces, logs) = ("/v1/traces", "/v1/logs");
        for (target, path, field) in [
            (traces, &[][..], 1),
            (traces, &[1], 2),
            (traces, &[1, 2], 2),
            (traces, &[1, 2, 2], 9),
            (traces, &[1, 2, 2], 11),
            (traces, &[1, 2, 2], 13),
            (traces, &[1, 2, 2, 9, 2, 5], 1),
            (traces, &[1, 2, 2, 9, 2, 6], 1),
            (traces, &[1, 1], 1),
            (traces, &[1, 1, 3], 3),
            (traces, &[1, 2, 1], 3),
            (logs, &[1, 2], 2),
            (logs, &[1, 2, 2], 6),
            (logs, &[1, 2, 2, 5, 5], 1),
        ] {
            let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n");
            for (count, status) in [(29_000, 200), (MAX_PARTS, 413)] {
                let message = with_empty_parts(count, path, field);
                let response = support::exchange(address, &head, &message);
                assert_eq!(response.status, status, "{count} {target} {path:?} {field}");
            }
        }
        let most = console.process().peak_memory();
        assert!(most < LIMIT, "{most} bytes");
    });
}

#[test]
fn a_hundred_thousand_spans_stay_below_40_mib_and_the_page_answers() {
    runtime::block_on(1, async {
        let scratch = Scratch::new().unwrap();
        let mut console = start(&scratch).await;
        let before = console.process().memory();
        let address: SocketAddr = console.address().parse().unwrap();
        let mut most = 0;
        for batch in 0..200 {
            let message = support::message(None, batch * 500..(batch + 1) * 500);
            let head = "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n";
            assert_eq!(support::exchange(address, head, &message).status, 200);
            most = most.max(console.process().memory());
        }
        let asked = Instant::now();
        let response = console.client().get("/api/journeys").await.unwrap();
        let took = asked.elapsed();
        let after = console.process().memory();
        eprintln!("resident: {before} before, {most} at most, {after} after; the list took {took:?}");
        assert_eq!(response.json()["journeys"].as_array().map(Vec::len), Some(100));
        assert!(most < LIMIT, "{most} bytes");
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}
