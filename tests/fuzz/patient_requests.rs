//! Requests to patient-service with a real PostgreSQL behind it: whatever is in a path, a query, a header or a body, PostgreSQL
//! is asked nothing that it refuses as data (class 22 of its errors, which is answered 500), and nothing else ends in 500.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use arbitrary::Arbitrary;
use config::{Environment, Reader};
use form_urlencoded::Serializer;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use patient_service::{Service, Settings, http::cursor, store::Position};
use runtime::{Shutdown, timeout};
use serde_json::{Value as Json, json};
use smol::{lock::OnceCell, net::TcpStream};
use uuid::Uuid;

/// Texts that mean something to us, to PostgreSQL or to those who have written of its errors.
const KNOWN: [&str; 40] = [
    "",
    "\0",
    "a\0b",
    "%",
    "\\",
    "a\\",
    "abc\\%_",
    "%00",
    "infinity",
    "-infinity",
    "today",
    "now",
    "epoch",
    "0000-01-01",
    "0001-01-01",
    "9999-12-31",
    "10000-01-01",
    "+262142-12-31",
    "-4713-11-24",
    "2024-02-30",
    "24:00",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-0",
    "1e9",
    "NaN",
    "\u{feff}",
    "\u{fffe}",
    "\u{10ffff}",
    "İ",
    "ß",
    "e\u{301}",
    "\u{202e}",
    "'; DROP TABLE patients; --",
    "$1",
    "{}",
    "*",
    "\"1\"",
    "W/\"9223372036854775808\"",
];
const PARAMETERS: [&str; 9] = ["limit", "sort", "sortField", "search", "searchValue", "cursor", "page", "size", "more"];
const FIELDS: [&str; 6] = ["name", "email", "address", "dateOfBirth", "registeredDate", "more"];
const SORTS: [&str; 13] = [
    "id",
    "name",
    "email",
    "dateOfBirth",
    "registeredDate",
    "-id",
    "-name",
    "-email",
    "-dateOfBirth",
    "-registeredDate",
    "asc",
    "desc",
    "age",
];
const HEADERS: [&str; 6] =
    ["if-match", "if-none-match", "idempotency-key", "traceparent", "tracestate", "x-forwarded-prefix"];
/// The answers that a client can get for what it sends. 503 is billing's, which is not there.
const ANSWERS: [u16; 14] = [200, 201, 204, 304, 400, 404, 405, 409, 412, 413, 415, 422, 431, 503];

/// The service, and the id of a patient that there is, unless it has been deleted.
static SERVICE: OnceCell<(SocketAddr, String)> = OnceCell::new();
/// Time for the service to be ready.
const START: Duration = Duration::from_secs(60);

/// What a client asks for.
#[derive(Arbitrary, Debug)]
pub struct Input {
    call: Call,
    headers: Vec<(u8, Text)>,
}

#[derive(Arbitrary, Debug)]
enum Call {
    List(Vec<(u8, Text)>),
    Search(Text),
    /// A list that goes on, in an order that there is.
    GoOn(u8, u128, Text),
    Read(Id),
    Create(Body),
    Update(Id, Body),
    Delete(Id),
    Account(Id),
    Transactions(Id, Vec<(u8, Text)>),
    Record(Id, Vec<(u8, Text)>, i64),
}

#[derive(Arbitrary, Debug)]
enum Id {
    /// That of the patient that there is.
    Known,
    Any(u128),
    Text(Text),
}

#[derive(Arbitrary, Debug)]
enum Text {
    Known(u8),
    Sort(u8),
    Any(String),
    Twice(u8, String),
    Number(i64),
    Date(i16, u8, u8),
    /// A long one of a single character.
    Long(char, u16),
    Cursor(u128, Box<Text>),
    CursorOfId(u128),
}

#[derive(Arbitrary, Debug)]
struct Body {
    /// Fields in the place of right ones; of another type where none is given.
    wrong: Vec<(u8, Option<Text>)>,
    /// Makes another email of it.
    number: u32,
}

impl Text {
    fn text(&self) -> String {
        let known = |number: u8| KNOWN[usize::from(number) % KNOWN.len()];
        match self {
            Self::Known(number) => known(*number).to_owned(),
            Self::Sort(number) => SORTS[usize::from(*number) % SORTS.len()].to_owned(),
            Self::Any(text) => text.clone(),
            Self::Twice(number, text) => format!("{text}{}{text}", known(*number)),
            Self::Number(number) => number.to_string(),
            Self::Date(year, month, day) => {
                // As chrono writes and reads years of more digits.
                let sign = if *year > 9999 { "+" } else { "" };
                format!("{sign}{year:04}-{:02}-{:02}", month % 14, day % 33)
            }
            Self::Long(character, length) => character.to_string().repeat(usize::from(*length) % 5_000),
            Self::Cursor(id, key) => cursor::encode(&Position { sort_key: key.text(), id: Uuid::from_u128(*id) }),
            Self::CursorOfId(id) => {
                let id = Uuid::from_u128(*id);
                cursor::encode(&Position { sort_key: id.to_string(), id })
            }
        }
    }

    /// As a part of a path.
    fn segment(&self) -> String {
        let bytes = self.text().into_bytes();
        bytes.iter().fold(String::new(), |mut path, byte| {
            write!(path, "%{byte:02x}").expect("writing to memory");
            path
        })
    }
}

impl Id {
    fn segment(&self, known: &str) -> String {
        match self {
            Self::Known => known.to_owned(),
            Self::Any(id) => Uuid::from_u128(*id).to_string(),
            Self::Text(text) => text.segment(),
        }
    }
}

impl Body {
    fn json(&self) -> Vec<u8> {
        let mut body = json!({
            "name": "Jane Doe",
            "email": format!("jane.{}@example.org", self.number),
            "address": "1 Main Street",
            "dateOfBirth": "1990-12-31",
        });
        for (field, text) in &self.wrong {
            let field = FIELDS[usize::from(*field) % FIELDS.len()];
            body[field] = text.as_ref().map_or_else(|| json!([1, {}]), |text| Json::from(text.text()));
        }
        body.to_string().into_bytes()
    }
}

fn query(names: &[&str], parameters: &[(u8, Text)]) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in parameters {
        query.append_pair(names[usize::from(*name) % names.len()], &value.text());
    }
    query.finish()
}

impl Call {
    /// Method, target and body.
    fn request(&self, known: &str) -> (&'static str, String, Vec<u8>) {
        match self {
            Self::List(parameters) => ("GET", format!("/patients?{}", query(&PARAMETERS, parameters)), Vec::new()),
            Self::Search(term) => {
                let mut query = Serializer::new(String::new());
                query.append_pair("search", &term.text()).append_pair("searchValue", &term.text());
                ("GET", format!("/patients?{}", query.finish()), Vec::new())
            }
            Self::GoOn(sort, id, key) => {
                let sort = SORTS[usize::from(*sort) % SORTS.len()];
                let cursor = cursor::encode(&Position { sort_key: key.text(), id: Uuid::from_u128(*id) });
                ("GET", format!("/patients?limit=2&sort={sort}&cursor={cursor}"), Vec::new())
            }
            Self::Read(id) => ("GET", format!("/patients/{}", id.segment(known)), Vec::new()),
            Self::Create(body) => ("POST", "/patients".to_owned(), body.json()),
            Self::Update(id, body) => ("PUT", format!("/patients/{}", id.segment(known)), body.json()),
            Self::Delete(id) => ("DELETE", format!("/patients/{}", id.segment(known)), Vec::new()),
            Self::Account(id) => ("GET", format!("/patients/{}/billing", id.segment(known)), Vec::new()),
            Self::Transactions(id, parameters) => {
                let query = query(&["limit", "cursor"], parameters);
                ("GET", format!("/patients/{}/billing/transactions?{query}", id.segment(known)), Vec::new())
            }
            Self::Record(id, fields, amount) => {
                let mut body =
                    json!({ "transactionId": "visit-1", "type": "CHARGE", "amount": amount, "currency": "EUR" });
                for (field, text) in fields {
                    body[["transactionId", "type", "currency"][usize::from(*field) % 3]] = text.text().into();
                }
                ("POST", format!("/patients/{}/billing/transactions", id.segment(known)), body.to_string().into_bytes())
            }
        }
    }
}

/// Sends the request.
pub fn check(input: Input) {
    let (address, known) = runtime::block_on(1, SERVICE.get_or_init(start));
    let (method, target, body) = input.call.request(known);
    let mut request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n").into_bytes();
    for (name, value) in &input.headers {
        request.extend_from_slice(HEADERS[usize::from(*name) % HEADERS.len()].as_bytes());
        request.extend_from_slice(b": ");
        // A line's end would make another header of the rest.
        request.extend(value.text().bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
        request.extend_from_slice(b"\r\n");
    }
    if !body.is_empty() {
        let length = body.len();
        request.extend(format!("content-type: application/json\r\ncontent-length: {length}\r\n").into_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend(body);
    let answer = runtime::block_on(1, ask(*address, &request));
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let is_known = status.is_some_and(|status| ANSWERS.contains(&status));
    let is_of_billing = target.contains("/billing");
    assert!(is_known && (status != Some(503) || is_of_billing), "{method} {target}: {answer}");
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the service accepts");
    // It may refuse a head before it has read all of it.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The service with a database of its own, some patients, no broker and no billing.
async fn start() -> (SocketAddr, String) {
    let environment = Environment::empty()
        .with("DATABASE_URL", testbed::shared_database().await)
        .with("SERVER_PORT", "0")
        .with("BILLING_SERVICE_ADDRESS", "127.0.0.1:9")
        .with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader);
    let (settings, _) = reader.finish(settings).expect("the settings are right");
    let service = Service::build(settings).await.expect("loopback has a free port");
    let address = service.address();
    runtime::spawn(service.run(Shutdown::new())).detach();
    let ready = async {
        let ready = b"GET /actuator/health/readiness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        while !ask(address, ready).await.starts_with("HTTP/1.1 200") {
            smol::Timer::after(Duration::from_millis(20)).await;
        }
    };
    timeout(START, ready).await.expect("the service is ready");
    let mut known = String::new();
    for number in 0..30 {
        let body = Body { wrong: Vec::new(), number: u32::MAX - number }.json();
        let head = "POST /patients HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
        let head = format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = ask(address, &[head.as_bytes(), &body].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let location = answer.lines().find_map(|line| line.strip_prefix("location: /patients/"));
        location.expect("it says where the patient is").clone_into(&mut known);
    }
    (address, known)
}
