//! Requests to patient-service with a real PostgreSQL: whatever is in a path, a query, a header or a body, no response is 500.
//! In particular, no value reaches PostgreSQL that it rejects with a data exception (class 22).

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use arbitrary::Arbitrary;
use config::{Environment, Reader};
use form_urlencoded::Serializer;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use patient_service::{
    Service, Settings,
    http::cursor,
    store::{Direction, Order, Position, SortField},
};
use runtime::{Shutdown, timeout};
use serde_json::{Value as Json, json};
use smol::{lock::OnceCell, net::TcpStream};
use uuid::Uuid;

use crate::patient_list::field;

/// Texts with a special meaning in our service or in PostgreSQL, or known from bug reports.
const SPECIAL_TEXTS: [&str; 40] = [
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
/// The statuses that a client can get. 503 is for billing alone, which is not running.
const STATUSES: [u16; 14] = [200, 201, 204, 304, 400, 404, 405, 409, 412, 413, 415, 422, 431, 503];

/// The address of the service, and the id of a patient, unless it has been deleted.
static SERVICE: OnceCell<(SocketAddr, String)> = OnceCell::new();
/// Time until the service is ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A request.
#[derive(Arbitrary, Debug)]
pub struct Input {
    call: Call,
    headers: Vec<(u8, Text)>,
}

#[derive(Arbitrary, Debug)]
enum Call {
    List(Vec<(u8, Text)>),
    Search(Text),
    /// The next page of a list in a valid order.
    NextPage(u8, u128, Text),
    Read(Id),
    Create(Body),
    Update(Id, Body),
    Delete(Id),
    Account(Id),
    Transactions(Id, Vec<(u8, Text)>),
    /// The last field: as an array, which is no transaction.
    Record(Id, Vec<(u8, Text)>, i64, bool),
}

#[derive(Arbitrary, Debug)]
enum Id {
    /// The id of the existing patient.
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
    /// A repeated character.
    Long(char, u16),
    Cursor(u8, u128, Box<Text>),
    CursorOfId(u128),
}

#[derive(Arbitrary, Debug)]
struct Body {
    /// Whether its values are sent as an array, which is no patient.
    is_array: bool,
    /// Invalid values of fields; none is a value of another type.
    wrong: Vec<(u8, Option<Text>)>,
    /// Part of the email.
    number: u32,
}

impl Text {
    fn text(&self) -> String {
        let special = |number: u8| SPECIAL_TEXTS[usize::from(number) % SPECIAL_TEXTS.len()];
        match self {
            Self::Known(number) => special(*number).to_owned(),
            Self::Sort(number) => SORTS[usize::from(*number) % SORTS.len()].to_owned(),
            Self::Any(text) => text.clone(),
            Self::Twice(number, text) => format!("{text}{}{text}", special(*number)),
            Self::Number(number) => number.to_string(),
            Self::Date(year, month, day) => {
                // chrono's format of years with more than four digits.
                let sign = if *year > 9999 { "+" } else { "" };
                format!("{sign}{year:04}-{:02}-{:02}", month % 14, day % 33)
            }
            Self::Long(character, length) => character.to_string().repeat(usize::from(*length) % 5_000),
            Self::Cursor(sort, id, key) => {
                let position = Position { sort_key: key.text(), id: Uuid::from_u128(*id) };
                cursor::encode(&position, order(SORTS[usize::from(*sort) % SORTS.len()]))
            }
            Self::CursorOfId(id) => {
                let id = Uuid::from_u128(*id);
                cursor::encode(&Position { sort_key: id.to_string(), id }, order("id"))
            }
        }
    }

    /// As a path segment.
    fn segment(&self) -> String {
        let bytes = self.text().into_bytes();
        bytes.iter().fold(String::new(), |mut path, byte| {
            write!(path, "%{byte:02x}").expect("writing to memory");
            path
        })
    }
}

impl Id {
    fn segment(&self, patient: &str) -> String {
        match self {
            Self::Known => patient.to_owned(),
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
        shaped(&body, &FIELDS, self.is_array)
    }
}

/// The object, or an array of its values in the order of the fields.
fn shaped(object: &Json, fields: &[&str], is_array: bool) -> Vec<u8> {
    let values: Vec<_> = fields.iter().filter_map(|field| object.get(field)).collect();
    if is_array { json!(values) } else { object.clone() }.to_string().into_bytes()
}

fn query(names: &[&str], parameters: &[(u8, Text)]) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in parameters {
        query.append_pair(names[usize::from(*name) % names.len()], &value.text());
    }
    query.finish()
}

/// The order that a value of `sort` stands for; the list's own order for one that is invalid.
fn order(sort: &str) -> Order {
    let (name, direction) = match sort.strip_prefix('-') {
        Some(name) => (name, Direction::Descending),
        None => (sort, Direction::Ascending),
    };
    Order { field: field(name).unwrap_or(SortField::Id), direction }
}

impl Call {
    /// The method, the target and the body.
    fn request(&self, patient: &str) -> (&'static str, String, Vec<u8>) {
        match self {
            Self::List(parameters) => ("GET", format!("/patients?{}", query(&PARAMETERS, parameters)), Vec::new()),
            Self::Search(term) => {
                let mut query = Serializer::new(String::new());
                query.append_pair("search", &term.text()).append_pair("searchValue", &term.text());
                ("GET", format!("/patients?{}", query.finish()), Vec::new())
            }
            Self::NextPage(sort, id, key) => {
                let sort = SORTS[usize::from(*sort) % SORTS.len()];
                let position = Position { sort_key: key.text(), id: Uuid::from_u128(*id) };
                let cursor = cursor::encode(&position, order(sort));
                ("GET", format!("/patients?limit=2&sort={sort}&cursor={cursor}"), Vec::new())
            }
            Self::Read(id) => ("GET", format!("/patients/{}", id.segment(patient)), Vec::new()),
            Self::Create(body) => ("POST", "/patients".to_owned(), body.json()),
            Self::Update(id, body) => ("PUT", format!("/patients/{}", id.segment(patient)), body.json()),
            Self::Delete(id) => ("DELETE", format!("/patients/{}", id.segment(patient)), Vec::new()),
            Self::Account(id) => ("GET", format!("/patients/{}/billing", id.segment(patient)), Vec::new()),
            Self::Transactions(id, parameters) => {
                let query = query(&["limit", "cursor"], parameters);
                ("GET", format!("/patients/{}/billing/transactions?{query}", id.segment(patient)), Vec::new())
            }
            Self::Record(id, fields, amount, is_array) => {
                let mut body =
                    json!({ "transactionId": "visit-1", "type": "CHARGE", "amount": amount, "currency": "EUR" });
                for (field, text) in fields {
                    body[["transactionId", "type", "currency"][usize::from(*field) % 3]] = text.text().into();
                }
                (
                    "POST",
                    format!("/patients/{}/billing/transactions", id.segment(patient)),
                    shaped(&body, &["transactionId", "type", "amount", "currency"], *is_array),
                )
            }
        }
    }
}

/// Sends the request.
pub fn check(input: Input) {
    let (address, patient) = runtime::block_on(1, SERVICE.get_or_init(start));
    let (method, target, body) = input.call.request(patient);
    let mut request = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n").into_bytes();
    for (name, value) in &input.headers {
        request.extend_from_slice(HEADERS[usize::from(*name) % HEADERS.len()].as_bytes());
        request.extend_from_slice(b": ");
        // The end of a line would start another header.
        request.extend(value.text().bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
        request.extend_from_slice(b"\r\n");
    }
    if !body.is_empty() {
        let length = body.len();
        request.extend(format!("content-type: application/json\r\ncontent-length: {length}\r\n").into_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend(&body);
    let response = runtime::block_on(1, send(*address, &request));
    let status = response.get(9..12).and_then(|status| status.parse().ok());
    let is_known = status.is_some_and(|status| STATUSES.contains(&status));
    let is_of_billing = target.contains("/billing");
    assert!(is_known && (status != Some(503) || is_of_billing), "{method} {target}: {response}");
    assert!(!body.starts_with(b"[") || status >= Some(400) && status < Some(500), "{method} {target}: {response}");
}

async fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the service accepts");
    // The service may reject the request before it has read all of it.
    let _ = stream.write_all(request).await;
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8_lossy(&response).into_owned()
}

/// Starts the service with a new database and some patients, without a broker and without billing.
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
        let ready = b"GET /actuator/health/readiness HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        while !send(address, ready).await.starts_with("HTTP/1.1 200") {
            smol::Timer::after(Duration::from_millis(20)).await;
        }
    };
    timeout(START_TIMEOUT, ready).await.expect("the service is ready");
    let mut patient = String::new();
    for number in 0..30 {
        let body = Body { is_array: false, wrong: Vec::new(), number: u32::MAX - number }.json();
        let head = "POST /patients HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
        let head = format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len());
        let response = send(address, &[head.as_bytes(), &body].concat()).await;
        assert!(response.starts_with("HTTP/1.1 201"), "{response}");
        let location = response.lines().find_map(|line| line.strip_prefix("location: /patients/"));
        location.expect("the response has a Location").clone_into(&mut patient);
    }
    (address, patient)
}
