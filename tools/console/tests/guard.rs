//! Who may ask the console for what, over real connections.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use support::{Console, request};

#[test]
fn the_page_is_served_with_headers_that_forbid_everything_foreign() {
    let console = Console::start();
    for path in
        ["/", "/journeys", "/journeys/4bf92f3577b34da6a3ce929d0e0e4736", "/patients/1", "/lab/r1", "/dead-letters"]
    {
        let response = console.send(&request("GET", path));
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    }
    for path in ["/", "/nowhere", "/api/info", "/assets/nothing.js"] {
        let response = console.send(&request("GET", path));
        let policy = response.header("content-security-policy").unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert!(response.header("access-control-allow-origin").is_none());
    }
}

#[test]
fn an_asset_is_sent_once_and_packed() {
    let console = Console::start();
    let response = console.send(&request("GET", "/assets/index.html"));
    let tag = response.header("etag").unwrap().to_owned();
    let again = console.send(&format!("{}If-None-Match: {tag}\r\n", request("GET", "/assets/index.html")));
    assert_eq!((again.status, again.body.len()), (304, 0));
    let packed = console.send(&format!("{}Accept-Encoding: gzip\r\n", request("GET", "/assets/index.html")));
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_ne!(packed.header("etag"), Some(tag.as_str()), "another representation");
    assert_eq!(console.send(&request("GET", "/assets/..%2fsrc%2fmain.rs")).status, 404);
}

#[test]
fn a_foreign_host_gets_nothing() {
    let console = Console::start();
    for host in ["example.org", "127.0.0.1.example.org", "10.0.0.1"] {
        for path in ["/", "/api/info", "/assets/index.html", "/metrics"] {
            let response = console.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n"));
            assert_eq!(response.status, 403, "{host} {path}");
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
        }
    }
}

#[test]
fn a_write_comes_from_our_page_or_not_at_all() {
    let console = Console::start();
    let host = console.host();
    let right = [
        ("Origin", format!("http://{host}")),
        ("Sec-Fetch-Site", "same-origin".to_owned()),
        ("Content-Type", "application/json".to_owned()),
        ("X-Console", "1".to_owned()),
    ];
    let send = |headers: &[(&str, String)]| {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        console.send_with(&format!("POST /api/patients HTTP/1.1\r\nHost: {host}\r\n{headers}"), b"{}").status
    };
    assert_ne!(send(&right), 403);
    for left_out in 0..right.len() {
        let mut headers = right.to_vec();
        let (name, _) = headers.remove(left_out);
        assert_eq!(send(&headers), 403, "without {name}");
    }
    for (at, wrong) in [
        (0, "http://example.org"),
        (0, "null"),
        (1, "cross-site"),
        (1, "same-site"),
        (2, "text/plain"),
        (2, "application/x-www-form-urlencoded"),
    ] {
        let mut headers = right.to_vec();
        headers[at].1 = wrong.to_owned();
        assert_eq!(send(&headers), 403, "{wrong}");
    }
    let foreign = format!("{}Sec-Fetch-Site: cross-site\r\n", request("GET", "/api/info"));
    assert_eq!(console.send(&foreign).status, 403, "another site reads nothing");
}
