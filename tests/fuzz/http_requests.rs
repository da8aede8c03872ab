//! Requests with a known meaning: each gets the expected response in order, however the bytes are split, and no body is parsed
//! as a request.

use arbitrary::Arbitrary;
use serde_json::{Value as Json, json};

use crate::{
    edge::{self, BODY_LIMIT, ECHO, Memory},
    responses::{self, Response},
};

/// A request that is sent in bodies only. A response with 204 would be for it.
const SMUGGLED: &str = "DELETE /items/1 HTTP/1.1\r\nhost: x\r\n\r\n";
/// The last request of each conversation, after which the server closes the connection.
const LAST: Request<'_> =
    Request { call: Call::Hello, hosts: HostHeaders::One, headers: Vec::new(), ending: Ending::Close };
/// The maximum number of requests, headers of a request, and pieces.
const MAX_ITEMS: usize = 5;
/// The length of a piece is below this, so that most ends of a piece are within the requests.
const MAX_PIECE: u16 = 300;

/// What a client sends on a connection.
#[derive(Arbitrary, Debug)]
pub struct Conversation<'a> {
    short_memory: bool,
    requests: Vec<Request<'a>>,
    /// Sent after the requests.
    ambiguous: Option<Ambiguous>,
    /// Lengths of the pieces in which the bytes are sent.
    pieces: Vec<u16>,
}

#[derive(Arbitrary, Debug)]
struct Request<'a> {
    call: Call<'a>,
    hosts: HostHeaders,
    /// Values of headers without a meaning.
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
    Unread(Unread, Content<'a>),
}

/// What does not read its body.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Unread {
    Hello,
    Nowhere,
    WrongMethod,
    WrongType,
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
    Array(&'a str),
    Smuggled(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum HostHeaders {
    One,
    None,
    Two,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Open,
    Close,
    /// HTTP/1.0, where a connection is closed by default.
    Http10,
}

/// A request whose body has two possible ends. It is the last one.
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

/// The expected response to a request.
struct ExpectedResponse {
    status: u16,
    body: Option<Vec<u8>>,
    /// Whether the server closes the connection.
    must_end: bool,
}

/// Sends the requests and compares the responses with the expected ones.
pub fn check(conversation: Conversation<'_>) {
    let Conversation { short_memory, mut requests, ambiguous, pieces: lengths } = conversation;
    requests.truncate(MAX_ITEMS);
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
    for length in lengths.iter().take(MAX_ITEMS) {
        let (piece, next) = rest.split_at(usize::from(length % MAX_PIECE).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    pieces.push(rest);
    let memory = if short_memory { Memory::Short } else { Memory::Ample };
    compare(&requests, ambiguous, responses::read(&edge::exchange(&pieces, false, memory)));
}

fn compare(requests: &[Request<'_>], ambiguous: Option<Ambiguous>, responses: Vec<Response>) {
    for response in &responses {
        assert_ne!(response.status, 204, "a request in a body got a response: {responses:?}");
    }
    let mut given = responses.iter();
    for request in requests {
        let expected = request.expected();
        let response = given.next().unwrap_or_else(|| panic!("no response to {request:?}: {responses:?}"));
        assert_eq!(response.status, expected.status, "{request:?}: {response:?}");
        assert!(
            expected.status < 400 || !response.body.is_empty() || matches!(request.call, Call::Head),
            "{response:?}"
        );
        if let Some(body) = expected.body {
            assert_eq!(response.body.escape_ascii().to_string(), body.escape_ascii().to_string(), "{request:?}");
        }
        let ends = given.len() == 0;
        if expected.must_end {
            assert!(ends, "a response after the last one: {responses:?}");
            return;
        }
        assert!(!response.is_last(), "the connection was closed: {request:?}: {response:?}");
    }
    // It is rejected, or parsed in the only way that RFC 9112 allows, and nothing after it is parsed.
    assert_eq!(given.len(), usize::from(ambiguous.is_some()), "{responses:?}");
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
            Call::Unread(unread, content) => (unread.line().to_owned(), Some(content)),
        };
        let version = if self.ending == Ending::Http10 { "1.0" } else { "1.1" };
        bytes.extend_from_slice(format!("{line} HTTP/{version}\r\n").as_bytes());
        let hosts = match self.hosts {
            HostHeaders::One => "host: x\r\n",
            HostHeaders::None => "",
            HostHeaders::Two => "host: x\r\nhost: y\r\n",
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
        if !matches!(self.call, Call::Unread(..)) && content.is_some() {
            bytes.extend_from_slice(b"content-type: application/json\r\n");
        }
        match content {
            Some(content) => content.write(self.ending != Ending::Http10, bytes),
            None => bytes.extend_from_slice(b"\r\n"),
        }
    }

    /// The values of its headers, without bytes that a value cannot contain.
    fn headers(&self) -> impl Iterator<Item = Vec<u8>> {
        let allowed = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        self.headers.iter().take(MAX_ITEMS).map(move |value| value.iter().copied().filter(allowed).take(100).collect())
    }

    fn expected(&self) -> ExpectedResponse {
        // HTTP/1.0 does not require Host.
        let is_rejected = match self.hosts {
            HostHeaders::One => false,
            HostHeaders::None => self.ending != Ending::Http10,
            HostHeaders::Two => true,
        };
        let content = match &self.call {
            Call::Json(content) | Call::Echo(content) => Some(content.bytes()),
            _ => None,
        };
        let json = |value: Json| Some(value.to_string().into_bytes());
        let (status, body) = match (&self.call, content) {
            _ if is_rejected => (400, None),
            (Call::Hello, _) => (200, json(json!("hello"))),
            (Call::Head, _) => (200, Some(Vec::new())),
            (Call::Item(id), _) if encoded(id).is_empty() => (404, None),
            (Call::Item(id), _) => (200, json(json!(encoded(id)))),
            (Call::WrongMethod | Call::UnknownMethod | Call::Unread(Unread::WrongMethod, _), _) => (405, None),
            (Call::Unread(Unread::Hello, _), _) => (200, json(json!("hello"))),
            (Call::Unread(Unread::WrongType, _), _) => (415, None),
            (Call::Json(_), Some(content)) if content.len() > BODY_LIMIT => (413, None),
            (Call::Json(_), Some(content)) => match serde_json::from_slice::<Json>(json_of(&content)) {
                Ok(value) if value.is_object() => (200, json(json!([value]))),
                _ => (400, None),
            },
            (Call::Echo(_), Some(content)) => (200, Some([ECHO.as_bytes(), &content].concat())),
            _ => (404, None),
        };
        ExpectedResponse { status, body, must_end: self.ending != Ending::Open }
    }
}

impl Unread {
    fn line(self) -> &'static str {
        match self {
            Self::Hello => "GET /hello",
            Self::Nowhere => "POST /nowhere",
            Self::WrongMethod => "DELETE /hello",
            Self::WrongType => "POST /json",
        }
    }
}

impl Content<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self.bytes {
            Bytes::Any(bytes) => bytes.to_vec(),
            Bytes::Text(text) => json!({ "text": text }).to_string().into_bytes(),
            Bytes::Array(text) => json!([text]).to_string().into_bytes(),
            Bytes::Smuggled(times) => SMUGGLED.repeat(usize::from(times % 8)).into_bytes(),
        }
    }

    /// The rest of the head, and the body.
    fn write(&self, may_chunk: bool, bytes: &mut Vec<u8>) {
        let content = self.bytes();
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
            // An empty chunk would be the last one.
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
        // Five bytes, which are also the last chunk; then the smuggled request, if they were the whole body.
        format!(
            "POST /json HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}"
        )
    }
}

/// The bytes without a byte order mark.
fn json_of(content: &[u8]) -> &[u8] {
    content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(content)
}

/// A path segment without characters that need an encoding.
fn encoded(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}
