//! A strict parser of HTTP responses, independent of the server's code.

use serde_json::Value as Json;

use crate::edge::STREAMED;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    /// Whether its version is HTTP/1.0.
    is_http_1_0: bool,
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of a header; panics if there are two.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "there are two {name}: {self:?}");
        value
    }

    /// Whether it is the last response on the connection.
    pub(crate) fn is_last(&self) -> bool {
        match self.header("connection") {
            Some("close") => true,
            Some("keep-alive") => false,
            _ => self.is_http_1_0,
        }
    }

    /// Checks that the status is below 500, and that each error is a problem, or comes from hyper: hyper rejects what is not
    /// HTTP without a body, and closes the connection.
    fn check(&self, has_body: bool) {
        assert!(self.status < 500, "{self:?}");
        let Some(trace) = self.header("traceparent") else {
            let is_from_hyper = matches!(self.status, 400 | 414 | 431) && self.body.is_empty() && self.is_last();
            assert!(is_from_hyper, "neither from our server nor from hyper: {self:?}");
            return;
        };
        if self.status >= 400 {
            assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
            if has_body {
                let problem: Json = serde_json::from_slice(&self.body).expect("a problem is JSON");
                assert_eq!(problem["status"], self.status, "{self:?}");
                assert!(trace.contains(problem["traceId"].as_str().expect("it has a trace")), "{self:?}");
                assert!(problem["instance"].is_string() && problem["detail"].is_string(), "{self:?}");
            }
        }
    }
}

/// All responses on a connection that the server has closed, without `100 Continue`.
///
/// A response to `HEAD`, which has no body, is recognised by what follows: no body here starts like a response.
pub(crate) fn read(mut bytes: &[u8]) -> Vec<Response> {
    let mut responses = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = find(bytes, b"\r\n\r\n") else { panic!("an incomplete head: {}", bytes.escape_ascii()) };
        let mut response = head(std::str::from_utf8(&bytes[..end]).expect("a head is text"));
        bytes = &bytes[end + 4..];
        if response.status == 100 {
            continue;
        }
        assert!(!responses.last().is_some_and(Response::is_last), "a response after the last one: {response:?}");
        let has_body = !(bytes.is_empty() || bytes.starts_with(b"HTTP/"));
        if has_body {
            (response.body, bytes) = body(&response, bytes);
        }
        response.check(has_body);
        responses.push(response);
    }
    responses
}

fn head(text: &str) -> Response {
    let mut lines = text.split("\r\n");
    let status = lines.next().expect("a text has a line");
    let (version, status) = status.split_once(' ').expect("a status line has spaces");
    assert!(["HTTP/1.0", "HTTP/1.1"].contains(&version), "{version}");
    let status = status.split(' ').next().and_then(|code| code.parse().ok()).expect("a status is a number");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").expect("a header has a name and a value");
        assert!(!value.contains(['\r', '\n', '\0']) && !name.contains(' '), "{line:?}");
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Response { is_http_1_0: version == "HTTP/1.0", status, headers: headers.collect(), body: Vec::new() }
}

/// The body, and what follows it. A streamed body may be incomplete, if its request was: HTTP has no other way to report an
/// error after the head.
fn body<'a>(response: &Response, bytes: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
    let incomplete = |name| {
        assert!(response.header(STREAMED).is_some(), "{name} is incomplete: {response:?}");
        (Vec::new(), &bytes[bytes.len()..])
    };
    match (response.header("content-length"), response.header("transfer-encoding")) {
        (Some(length), None) => match bytes.split_at_checked(length.parse().expect("a length")) {
            Some((body, rest)) => (body.to_vec(), rest),
            None => incomplete("a body"),
        },
        (None, Some("chunked")) => {
            let (mut body, mut rest) = (Vec::new(), bytes);
            loop {
                let Some(end) = find(rest, b"\r\n") else { return incomplete("a chunk") };
                let size = std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
                let size = size.expect("a chunk has a size");
                let Some((chunk, next)) = rest[end + 2..].split_at_checked(size + 2) else {
                    return incomplete("a chunk");
                };
                assert!(chunk.ends_with(b"\r\n"), "a chunk that does not end: {response:?}");
                body.extend_from_slice(&chunk[..size]);
                rest = next;
                if size == 0 {
                    return (body, rest);
                }
            }
        }
        // HTTP/1.0: until the connection is closed.
        (None, None) => (bytes.to_vec(), &bytes[bytes.len()..]),
        both => panic!("two lengths {both:?}: {response:?}"),
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}
