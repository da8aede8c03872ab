//! Load at a fixed rate for a bounded time, against a service that responds at once.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::Console;

/// Answers every POST with 201 and everything else with 404; counts the POSTs.
fn service() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counted = counted.clone();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).unwrap_or_default();
                let is_post = bytes[..read].starts_with(b"POST /patients ");
                counted.fetch_add(u64::from(is_post), Ordering::Relaxed);
                let status = if is_post { "201 Created" } else { "404 Not Found" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes());
            });
        }
    });
    (address, count)
}

fn write(console: &Console, method: &str, body: &str) -> support::Response {
    let host = console.host();
    let head = format!(
        "{method} /api/lab/load HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/json\r\nX-Console: 1\r\n"
    );
    console.send_with(&head, body.as_bytes())
}

fn load(console: &Console, member: &str) -> serde_json::Value {
    console.send(&support::request("GET", "/api/lab")).json()[member].clone()
}

fn until(what: &str, happened: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < end, "it has not happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_has_its_rate_and_stops_on_time() {
    let (address, count) = service();
    let console = Console::with(&[("PATIENT_SERVICE_HTTP", &address.to_string())]);
    for wrong in ["{\"rate\":0,\"seconds\":1}", "{\"rate\":201,\"seconds\":1}", "{\"rate\":1,\"seconds\":61}", "{}"] {
        assert_eq!(write(&console, "POST", wrong).status, 400, "{wrong}");
    }
    let begun = Instant::now();
    assert_eq!(write(&console, "POST", "{\"rate\":50,\"seconds\":4}").status, 202);
    assert_eq!(write(&console, "POST", "{\"rate\":50,\"seconds\":4}").status, 409, "one at a time");
    assert_eq!(load(&console, "load")["rate"], 50);
    until("it is over", || load(&console, "load").is_null());
    let took = begun.elapsed().as_secs_f64();
    assert!((3.9..5.0).contains(&took), "{took}");
    let last = load(&console, "last_load");
    let sent = last["sent"].as_u64().unwrap();
    assert!((190..=210).contains(&sent), "{last}");
    until("each is answered", || {
        count.load(Ordering::Relaxed) == sent && load(&console, "last_load")["answered"] == sent
    });
    assert_eq!(load(&console, "last_load")["failed"], 0);

    assert_eq!(write(&console, "POST", "{\"rate\":200,\"seconds\":60}").status, 202);
    until("some are sent", || count.load(Ordering::Relaxed) > sent + 20);
    assert_eq!(write(&console, "DELETE", "").status, 200);
    until("it is over before its time", || load(&console, "load").is_null());
}
