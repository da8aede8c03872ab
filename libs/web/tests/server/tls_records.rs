//! TLS records and handshakes that do not end.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use testbed::{
    Scratch,
    certificates::{Authority, Validity},
};
use tls::{
    ClientSettings, Connector, ServerSettings,
    rustls::{ClientConnection, Stream, pki_types::ServerName},
};
use web::{Limits, TrustedProxies};

use crate::support::{HELLO, TestServer};

/// Begins a record of 16 KiB with the rest of a `ClientHello` of 60,000 bytes.
const HANDSHAKE_RECORD: [u8; 9] = [22, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60];
/// Begins a record of 16 KiB with data.
const DATA_RECORD: [u8; 5] = [23, 3, 3, 0x40, 0];
/// The content of such a record.
const RECORD: usize = 16 * 1024;

/// A server with TLS.
struct TlsServer {
    server: TestServer,
    connector: Connector,
    _files: Scratch,
}

impl TlsServer {
    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let files = Scratch::new().unwrap();
        let authority = Authority::new("tests").unwrap();
        let ca = files.path().join("ca.pem");
        authority.write(&ca).unwrap();
        let server = authority.issue(files.path(), "server", &["localhost"], Validity::Now).unwrap();
        let settings = ServerSettings { certificate: server.certificate, key: server.key, clients: None };
        let connector = Connector::new("tests", ClientSettings { ca: Some(ca), identity: None }, &[]).unwrap();
        let server = TestServer::serve(TrustedProxies::default(), Some(settings), change);
        Self { server, connector, _files: files }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// A connection after the handshake.
    fn client(&self) -> TlsClient {
        let mut stream = self.connect();
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::clone(&self.connector.config()), name).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut stream).unwrap();
        }
        TlsClient { session, stream }
    }
}

struct TlsClient {
    session: ClientConnection,
    stream: TcpStream,
}

impl TlsClient {
    /// A request as TLS sends it.
    fn encrypt(&mut self, request: &str) -> Vec<u8> {
        self.session.writer().write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        self.session.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// Reads the response to `HELLO`.
    fn is_greeted(&mut self) -> bool {
        let mut response = Vec::new();
        let mut stream = Stream::new(&mut self.session, &mut self.stream);
        let mut piece = [0; 1000];
        while !response.ends_with(b"\"hello\"") {
            match stream.read(&mut piece) {
                Ok(length @ 1..) => response.extend_from_slice(&piece[..length]),
                _ => return false,
            }
        }
        response.starts_with(b"HTTP/1.1 200")
    }

    /// Begins a request with one long chunk as its body, which is streamed back.
    fn upload(mut self) -> Upload {
        let head = self.encrypt("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n40000000\r\n");
        self.stream.write_all(&head).unwrap();
        Upload { client: self, begun: Vec::new() }
    }

    fn greets(&mut self) -> bool {
        let bytes = self.encrypt(HELLO);
        self.stream.write_all(&bytes).is_ok() && self.is_greeted()
    }
}

/// A body that is streamed back. Each time the server waits, it has the beginning of a record.
struct Upload {
    client: TlsClient,
    /// The record whose beginning is sent.
    begun: Vec<u8>,
}

impl Upload {
    const BEGINNING: usize = 100;

    /// Sends the rest of one record and the beginning of the next, each with as much content; false if the server closes.
    fn goes_on(&mut self, content: usize) -> bool {
        let rest = if self.begun.is_empty() { self.record(content) } else { self.begun.split_off(Self::BEGINNING) };
        self.begun = self.record(content);
        let bytes = [&rest, &self.begun[..Self::BEGINNING]].concat();
        self.client.stream.write_all(&bytes).is_ok() && self.receives(content)
    }

    fn record(&mut self, content: usize) -> Vec<u8> {
        self.client.encrypt(&"y".repeat(content))
    }

    /// Reads as much of the body as was sent; there is no `y` in the head of the response.
    fn receives(&mut self, content: usize) -> bool {
        let mut stream = Stream::new(&mut self.client.session, &mut self.client.stream);
        let (mut received, mut piece) = (0, [0; RECORD]);
        while received < content {
            match stream.read(&mut piece) {
                Ok(length @ 1..) => received += piece[..length].iter().filter(|byte| **byte == b'y').count(),
                _ => return false,
            }
        }
        true
    }
}

/// Whether the connection ends within `limit`, whatever comes before.
fn ends_within(mut stream: &TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    loop {
        match stream.read(&mut [0; 1000]) {
            Ok(1..) => {}
            Ok(0) => return true,
            Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

#[test]
fn records_without_an_end_share_a_memory_limit() {
    let limits = |limits: &mut Limits| {
        limits.buffers = 400 * 1024;
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    };
    let incomplete = [&HANDSHAKE_RECORD[..], &[0; RECORD - 5]].concat();
    // Records of a message that is not complete.
    let whole = [&HANDSHAKE_RECORD[..], &[0; RECORD - 4]].concat();
    let next = [&HANDSHAKE_RECORD[..5], &[0; RECORD]].concat();
    let message = [whole, next.clone(), next].concat();
    let data = [&DATA_RECORD[..], &[0; RECORD - 1]].concat();
    for (kind, shakes_hands, bytes) in
        [("handshake record", false, incomplete), ("handshake message", false, message), ("data", true, data)]
    {
        let server = TlsServer::with(limits);
        let mut idle = server.client();
        assert!(idle.greets());
        let open = |_| {
            let mut stream = if shakes_hands { server.client().stream } else { server.connect() };
            stream.write_all(&bytes).unwrap();
            stream
        };
        let mut held: Vec<_> = (0..40).map(open).collect();
        // So many fit into the memory. A handshake may take five seconds.
        let started = Instant::now();
        while held.len() > 12 {
            held.retain(|stream| !ends_within(stream, Duration::from_millis(1)));
            assert!(started.elapsed() < Duration::from_secs(4), "{kind}: {} are open", held.len());
        }
        assert!(!held.is_empty(), "{kind}: none is closed without need");
        assert!(server.client().greets(), "{kind}: others are served");
        assert!(idle.greets(), "{kind}: and an idle one is not closed");
    }
}

#[test]
fn a_record_has_to_be_complete_within_the_timeout_of_a_head() {
    let server = TlsServer::with(|limits| {
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_millis(500), Duration::from_secs(60));
    });
    let mut first = server.client();
    first.stream.write_all(&DATA_RECORD).unwrap();
    let mut later = server.client();
    let request = [later.encrypt(HELLO), DATA_RECORD[..1].to_vec()].concat();
    later.stream.write_all(&request).unwrap();
    assert!(later.is_greeted());
    for client in [first, later] {
        assert!(ends_within(&client.stream, Duration::from_secs(5)));
    }
}

#[test]
fn an_upload_is_charged_for_one_record_and_not_for_all_of_them() {
    let server = TlsServer::with(|limits| {
        limits.buffers = 1 << 20;
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    });
    let mut waiting = server.client();
    let request = waiting.encrypt(HELLO);
    waiting.stream.write_all(&request[..20]).unwrap();
    // The server has read those.
    assert!(server.client().greets());
    let mut upload = server.client().upload();
    for record in 0..(3 << 20) / RECORD {
        assert!(upload.goes_on(RECORD), "record {record}");
    }
    waiting.stream.write_all(&request[20..]).unwrap();
    assert!(waiting.is_greeted(), "the upload has not evicted it");
}

#[test]
fn an_upload_may_take_longer_than_the_timeout_of_a_record() {
    let server = TlsServer::with(|limits| (limits.head_timeout, limits.buffers) = (Duration::from_secs(1), 1 << 30));
    let mut upload = server.client().upload();
    let started = Instant::now();
    // Long enough for a sweep after the timeout.
    while started.elapsed() < Duration::from_secs(3) {
        assert!(upload.goes_on(1_000), "after {:?}", started.elapsed());
    }
}

#[test]
fn idle_connections_outlive_that_timeout_however_their_records_came() {
    let server = TlsServer::with(|limits| {
        (limits.head_timeout, limits.idle_timeout) = (Duration::from_millis(100), Duration::from_secs(60));
    });
    let mut client = server.client();
    for split in [1, 5, 6, 20, 50] {
        let request = client.encrypt(HELLO);
        client.stream.write_all(&request[..split]).unwrap();
        // The server reads the pieces one by one.
        assert!(server.client().greets());
        client.stream.write_all(&request[split..]).unwrap();
        assert!(client.is_greeted());
    }
    // Long enough for two sweeps.
    assert!(!ends_within(&client.stream, Duration::from_millis(2_500)));
    client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(client.greets());
}
