//! HTTP answers as a strict client reads them, by no code of the server's.

use serde_json::Value as Json;

use crate::edge::STREAMED;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Whether it is one of HTTP/1.0.
    old: bool,
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header, which must not be there twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice: {self:?}");
        value
    }

    /// Whether no other answer follows.
    pub(crate) fn is_last(&self) -> bool {
        match self.header("connection") {
            Some("close") => true,
            Some("keep-alive") => false,
            _ => self.old,
        }
    }

    /// No answer is a fault of the server's, and each error says what it is: as a problem, or without a body from hyper,
    /// which refuses what is no HTTP and closes the connection.
    fn check(&self, has_body: bool) {
        assert!(self.status < 500, "{self:?}");
        let Some(trace) = self.header("traceparent") else {
            let refused = matches!(self.status, 400 | 414 | 431) && self.body.is_empty() && self.is_last();
            assert!(refused, "nobody of ours has answered: {self:?}");
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

/// All answers of a connection that the server has closed, without those that only tell the client to go on.
///
/// Whether an answer belongs to `HEAD`, and thus has no body, shows from what follows: no body here begins like an answer.
pub(crate) fn read(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = find(bytes, b"\r\n\r\n") else { panic!("a head without an end: {}", bytes.escape_ascii()) };
        let mut answer = head(std::str::from_utf8(&bytes[..end]).expect("a head is text"));
        bytes = &bytes[end + 4..];
        if answer.status == 100 {
            continue;
        }
        assert!(!answers.last().is_some_and(Answer::is_last), "an answer after the last one: {answer:?}");
        let has_body = !(bytes.is_empty() || bytes.starts_with(b"HTTP/"));
        if has_body {
            (answer.body, bytes) = body(&answer, bytes);
        }
        answer.check(has_body);
        answers.push(answer);
    }
    answers
}

fn head(text: &str) -> Answer {
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
    Answer { old: version == "HTTP/1.0", status, headers: headers.collect(), body: Vec::new() }
}

/// The body, and what follows it. It may be cut off where the server sends back what comes, and that has broken off: HTTP
/// has no other way to tell it.
fn body<'a>(answer: &Answer, bytes: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
    let cut = |what| {
        assert!(answer.header(STREAMED).is_some(), "{what} is cut off: {answer:?}");
        (Vec::new(), &bytes[bytes.len()..])
    };
    match (answer.header("content-length"), answer.header("transfer-encoding")) {
        (Some(length), None) => match bytes.split_at_checked(length.parse().expect("a length")) {
            Some((body, rest)) => (body.to_vec(), rest),
            None => cut("a body"),
        },
        (None, Some("chunked")) => {
            let (mut body, mut rest) = (Vec::new(), bytes);
            loop {
                let Some(end) = find(rest, b"\r\n") else { return cut("a chunk") };
                let size = std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
                let size = size.expect("a chunk has a size");
                let Some((chunk, next)) = rest[end + 2..].split_at_checked(size + 2) else { return cut("a chunk") };
                assert!(chunk.ends_with(b"\r\n"), "a chunk that does not end: {answer:?}");
                body.extend_from_slice(&chunk[..size]);
                rest = next;
                if size == 0 {
                    return (body, rest);
                }
            }
        }
        // As HTTP/1.0 has it: until the connection ends.
        (None, None) => (bytes.to_vec(), &bytes[bytes.len()..]),
        both => panic!("two lengths {both:?}: {answer:?}"),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
