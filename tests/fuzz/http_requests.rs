//! Requests of which it is known what they mean: each gets the answer that is due to it, in its turn, wherever the bytes
//! are cut, and nothing in a body is ever taken for a request.

use arbitrary::Arbitrary;
use serde_json::{Value as Json, json};

use crate::{
    answers::{self, Answer},
    edge::{self, BODY_LIMIT, ECHO},
};

/// A request that no conversation sends but within bodies. Its answer would be the only one with 204.
const SMUGGLED: &str = "DELETE /items/1 HTTP/1.1\r\nhost: x\r\n\r\n";
/// The last request of each conversation, after which the server closes the connection.
const LAST: Request<'_> = Request { call: Call::Hello, hosts: Hosts::One, headers: Vec::new(), ending: Ending::Close };
/// Requests of a conversation, and headers of a request, of its own choice: more would only be more of the same.
const MOST: usize = 5;

/// What a client sends on a connection.
#[derive(Arbitrary, Debug)]
pub struct Conversation<'a> {
    requests: Vec<Request<'a>>,
    /// Sent after the requests.
    ambiguous: Option<Ambiguous>,
    /// Lengths of the pieces in which the bytes come.
    pieces: Vec<u16>,
}

#[derive(Arbitrary, Debug)]
struct Request<'a> {
    call: Call<'a>,
    hosts: Hosts,
    /// Values of headers that mean nothing.
    headers: Vec<&'a [u8]>,
    ending: Ending,
}

#[derive(Arbitrary, Debug)]
enum Call<'a> {
    Hello,
    Head,
    Item(&'a str),
    Nowhere,
    WrongMethod,
    UnknownMethod,
    Json(Content<'a>),
    Echo(Content<'a>),
}

#[derive(Arbitrary, Debug)]
struct Content<'a> {
    bytes: Bytes<'a>,
    /// Lengths of the chunks, if it is sent in chunks.
    chunks: Option<Vec<u8>>,
    expect: bool,
}

#[derive(Arbitrary, Debug)]
enum Bytes<'a> {
    Any(&'a [u8]),
    Text(&'a str),
    Smuggled(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Hosts {
    One,
    None,
    Two,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Open,
    Close,
    /// HTTP/1.0, where a connection is closed unless somebody says otherwise.
    Old,
}

/// A request whose body ends at one place by one reading, and at another by another. It is the last one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Ambiguous {
    LengthAndChunks,
    ChunksAndLength,
    TwoLengths,
    SignedLength,
    OtherCoding,
    ChunksNotLast,
    SpaceBeforeColon,
    Folded,
}

/// What is due to a request.
struct Due {
    status: u16,
    body: Option<Vec<u8>>,
    /// Whether the server may close the connection, or has to.
    may_end: bool,
    must_end: bool,
}

/// Has the conversation and compares the answers with what is due.
pub fn check(conversation: Conversation<'_>) {
    let Conversation { mut requests, ambiguous, pieces: lengths } = conversation;
    requests.truncate(MOST);
    if ambiguous.is_none() {
        requests.push(LAST);
    }
    let mut bytes = Vec::new();
    requests.iter().for_each(|request| request.write(&mut bytes));
    if let Some(ambiguous) = ambiguous {
        bytes.extend_from_slice(ambiguous.text().as_bytes());
    }
    let mut pieces = Vec::new();
    let mut rest = bytes.as_slice();
    for length in lengths.iter().take(MOST) {
        let (piece, next) = rest.split_at(usize::from(*length).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    pieces.push(rest);
    compare(&requests, ambiguous, answers::read(&edge::talk(&pieces, false)));
}

fn compare(requests: &[Request<'_>], ambiguous: Option<Ambiguous>, answers: Vec<Answer>) {
    for answer in &answers {
        assert_ne!(answer.status, 204, "a request in a body was answered: {answers:?}");
    }
    let mut given = answers.iter();
    for request in requests {
        let due = request.due();
        let answer = given.next().unwrap_or_else(|| panic!("no answer to {request:?}: {answers:?}"));
        assert_eq!(answer.status, due.status, "{request:?}: {answer:?}");
        assert!(due.status < 400 || !answer.body.is_empty() || matches!(request.call, Call::Head), "{answer:?}");
        if let Some(body) = due.body {
            assert_eq!(answer.body.escape_ascii().to_string(), body.escape_ascii().to_string(), "{request:?}");
        }
        let ends = given.len() == 0;
        if due.must_end || (due.may_end && ends) {
            assert!(ends, "an answer after the end: {answers:?}");
            return;
        }
        assert!(!answer.is_last(), "the connection was closed: {request:?}: {answer:?}");
    }
    // It is refused, or read the one way that RFC 9112 allows, and nothing after it is read.
    assert_eq!(given.len(), usize::from(ambiguous.is_some()), "{answers:?}");
}

impl Request<'_> {
    fn write(&self, bytes: &mut Vec<u8>) {
        let (line, content) = match &self.call {
            Call::Hello => ("GET /hello".to_owned(), None),
            Call::Head => ("HEAD /hello".to_owned(), None),
            Call::Item(id) => (format!("GET /items/{}", encoded(id)), None),
            Call::Nowhere => ("GET /nowhere?q".to_owned(), None),
            Call::WrongMethod => ("PUT /hello".to_owned(), None),
            Call::UnknownMethod => ("BREW /hello".to_owned(), None),
            Call::Json(content) => ("POST /json".to_owned(), Some(content)),
            Call::Echo(content) => ("POST /echo".to_owned(), Some(content)),
        };
        let version = if self.ending == Ending::Old { "1.0" } else { "1.1" };
        bytes.extend_from_slice(format!("{line} HTTP/{version}\r\n").as_bytes());
        let hosts = match self.hosts {
            Hosts::One => "host: x\r\n",
            Hosts::None => "",
            Hosts::Two => "host: x\r\nhost: y\r\n",
        };
        bytes.extend_from_slice(hosts.as_bytes());
        for value in self.headers() {
            bytes.extend_from_slice(b"x-own: ");
            bytes.extend(value);
            bytes.extend_from_slice(b"\r\n");
        }
        if self.ending == Ending::Close {
            bytes.extend_from_slice(b"connection: close\r\n");
        }
        match content {
            Some(content) => content.write(self.ending != Ending::Old, bytes),
            None => bytes.extend_from_slice(b"\r\n"),
        }
    }

    /// The values of the headers of its own, with what can stand in one.
    fn headers(&self) -> impl Iterator<Item = Vec<u8>> {
        let allowed = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        self.headers.iter().take(MOST).map(move |value| value.iter().copied().filter(allowed).take(100).collect())
    }

    fn due(&self) -> Due {
        // HTTP/1.0 knows no Host.
        let refused = match self.hosts {
            Hosts::One => false,
            Hosts::None => self.ending != Ending::Old,
            Hosts::Two => true,
        };
        let content = match &self.call {
            Call::Json(content) | Call::Echo(content) => Some(content.bytes()),
            _ => None,
        };
        let json = |value: Json| Some(value.to_string().into_bytes());
        let (status, body) = match (&self.call, content) {
            _ if refused => (400, None),
            (Call::Hello, _) => (200, json(json!("hello"))),
            (Call::Head, _) => (200, Some(Vec::new())),
            (Call::Item(id), _) if encoded(id).is_empty() => (404, None),
            (Call::Item(id), _) => (200, json(json!(encoded(id)))),
            (Call::WrongMethod | Call::UnknownMethod, _) => (405, None),
            (Call::Json(_), Some(content)) if content.len() > BODY_LIMIT => (413, None),
            (Call::Json(_), Some(content)) => match serde_json::from_slice::<Json>(json_of(&content)) {
                Ok(value) => (200, json(json!([value]))),
                Err(_) => (400, None),
            },
            (Call::Echo(_), Some(content)) => (200, Some([ECHO.as_bytes(), &content].concat())),
            _ => (404, None),
        };
        // A body that nobody has read may cost the connection.
        let unread = match &self.call {
            Call::Json(content) => refused || (content.expect && status == 413),
            Call::Echo(_) => refused,
            _ => false,
        };
        Due { status, body, may_end: unread, must_end: self.ending != Ending::Open }
    }
}

impl Content<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self.bytes {
            Bytes::Any(bytes) => bytes.to_vec(),
            Bytes::Text(text) => Json::from(text).to_string().into_bytes(),
            Bytes::Smuggled(times) => SMUGGLED.repeat(usize::from(times % 8)).into_bytes(),
        }
    }

    /// The rest of the head, and the body.
    fn write(&self, may_chunk: bool, bytes: &mut Vec<u8>) {
        let content = self.bytes();
        bytes.extend_from_slice(b"content-type: application/json\r\n");
        if self.expect {
            bytes.extend_from_slice(b"expect: 100-continue\r\n");
        }
        let Some(chunks) = self.chunks.as_ref().filter(|_| may_chunk) else {
            bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", content.len()).as_bytes());
            bytes.extend(content);
            return;
        };
        bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        let mut rest = content.as_slice();
        let lengths = chunks.iter().map(|length| usize::from(*length)).chain([usize::MAX]);
        for length in lengths {
            let (chunk, next) = rest.split_at(length.min(rest.len()));
            // One without bytes would be the last one.
            if !chunk.is_empty() {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            rest = next;
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
    }
}

impl Ambiguous {
    fn text(self) -> String {
        let length = SMUGGLED.len() + 5;
        let headers = match self {
            Self::LengthAndChunks => format!("content-length: {length}\r\ntransfer-encoding: chunked"),
            Self::ChunksAndLength => format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
            Self::TwoLengths => format!("content-length: {length}\r\ncontent-length: 5"),
            Self::SignedLength => "content-length: +5".to_owned(),
            Self::OtherCoding => "transfer-encoding: gzip".to_owned(),
            Self::ChunksNotLast => "transfer-encoding: chunked, gzip".to_owned(),
            Self::SpaceBeforeColon => "content-length : 5".to_owned(),
            Self::Folded => "x-own: y\r\n content-length: 5".to_owned(),
        };
        // Five bytes, which are also the last chunk; then what would be a request if they were the whole body.
        format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}"
        )
    }
}

/// The bytes without a byte order mark.
fn json_of(content: &[u8]) -> &[u8] {
    content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(content)
}

/// A part of a path that every reader takes as it stands.
fn encoded(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}
