//! A server with short limits, and a client that sends bytes as they are.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use config::{Environment, Reader};
use runtime::Shutdown;
use serde_json::Value as Json;
use tide::{Body, Request, Response, StatusCode};
use web::{Component, Health, Limits, Problem, Router, Server, Settings, TrustedProxies};

async fn hello(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &"hello"))
}

async fn panics(_: Request<Limits>) -> Result<Response, Problem> {
    panic!("this panic belongs to the test")
}

async fn slow(_: Request<Limits>) -> Result<Response, Problem> {
    smol::Timer::after(Duration::from_millis(300)).await;
    Ok(web::json(StatusCode::Ok, &"slow"))
}

async fn unchanged(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(Response::new(StatusCode::NotModified))
}

/// Reads a JSON body within the limits.
async fn json(mut request: Request<Limits>) -> Result<Response, Problem> {
    let limits = request.state().clone();
    let body: Json = web::read_json(&mut request, &limits).await?;
    Ok(web::json(StatusCode::Ok, &body))
}

/// Reads a body and responds after a pause.
async fn slow_json(mut request: Request<Limits>) -> Result<Response, Problem> {
    let limits = request.state().clone();
    let body: Json = web::read_json(&mut request, &limits).await?;
    smol::Timer::after(Duration::from_millis(300)).await;
    Ok(web::json(StatusCode::Ok, &body))
}

/// Responds with more than socket buffers hold.
async fn large(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::text("text/plain", vec![b'x'; LARGE]))
}

async fn created(_: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Created);
    response.insert_header("location", "/created/1");
    response.insert_header("link", "</hello?cursor=a%3C%2F>; rel=\"next\"");
    Ok(response)
}

/// Streams the body back while it arrives.
async fn echo(mut request: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Ok);
    let length = request.len();
    response.set_body(Body::from_reader(request.take_body(), length));
    Ok(response)
}

/// Streams an endless body.
async fn endless(_: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Ok);
    response.set_body(Body::from_reader(futures_lite::io::BufReader::new(futures_lite::io::repeat(b'x')), None));
    Ok(response)
}

/// A server of a test, with short limits.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) thread: Option<thread::JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Limits)) -> Self {
        Self::behind(TrustedProxies::default(), change)
    }

    pub(crate) fn behind(trusted_proxies: TrustedProxies, change: impl FnOnce(&mut Limits)) -> Self {
        Self::serve(trusted_proxies, None, change)
    }

    pub(crate) fn serve(
        trusted_proxies: TrustedProxies,
        tls: Option<tls::ServerSettings>,
        change: impl FnOnce(&mut Limits),
    ) -> Self {
        let mut limits = Limits {
            connections: 100,
            in_flight: 5,
            head: 8 * 1024,
            body: 10_000,
            buffers: 4 << 20,
            idle_timeout: Duration::from_secs(2),
            head_timeout: Duration::from_secs(2),
            body_timeout: Duration::from_millis(500),
            write_timeout: Duration::from_secs(1),
            drain: Duration::from_secs(1),
        };
        change(&mut limits);
        let environment = Environment::empty().with("SERVER_PORT", "0");
        let settings = Settings::read(&mut Reader::new(environment), "0");
        let settings = Settings { limits: limits.clone(), trusted_proxies, tls, ..settings };
        let server = Server::bind(&settings).unwrap();
        let (address, shutdown) = (server.address(), Shutdown::new());
        let stop = shutdown.clone();
        let thread = thread::spawn(move || {
            let health = Health::new(stop.clone()).component("test", || async { Component::up() });
            let app = Router::new(limits.clone())
                .limit_in_flight(limits.in_flight)
                .get("/hello", hello)
                .get("/panics", panics)
                .get("/slow", slow)
                .get("/unchanged", unchanged)
                .post("/json", json)
                .post("/slow", slow_json)
                .get("/large", large)
                .get("/created", created)
                .post("/echo", echo)
                .get("/endless", endless)
                .operations(health)
                .build();
            runtime::block_on(2, server.serve(app, stop));
        });
        Self { address, shutdown, thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { reader: BufReader::new(stream) }
    }

    pub(crate) fn get(&self, path: &str) -> RawResponse {
        self.connect().request(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
    }

    /// Sends these bytes and returns what the server sends until it closes or stays silent.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(crate) struct Client {
    pub(crate) reader: BufReader<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
}

impl RawResponse {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers.iter().find_map(|header| header.strip_prefix(prefix.as_str()))
    }
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The server may have closed; then the response shows it.
        let _ = self.reader.get_mut().write_all(bytes);
    }

    pub(crate) fn request(&mut self, request: &str) -> RawResponse {
        self.send(request.as_bytes());
        self.response(false).unwrap()
    }

    /// The next response, by its Content-Length.
    pub(crate) fn response(&mut self, head_only: bool) -> io::Result<RawResponse> {
        let mut line = || {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            Ok::<_, io::Error>(line.trim_end().to_owned())
        };
        let first = line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no response: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let header = line()?;
            if header.is_empty() {
                break;
            }
            headers.push(header);
        }
        let mut response = RawResponse { status, headers, body: String::new() };
        let length =
            if head_only { 0 } else { response.header("content-length").map_or(0, |text| text.parse().unwrap()) };
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        response.body = String::from_utf8(body).unwrap();
        Ok(response)
    }

    pub(crate) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.reader.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether anything arrives within `limit`, if only the end of the connection.
    pub(crate) fn receives_within(&mut self, limit: Duration) -> bool {
        self.reader.get_mut().set_read_timeout(Some(limit)).unwrap();
        let is_late = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        !self.reader.fill_buf().is_err_and(|error| is_late(&error))
    }

    /// Whether the server closes within `limit`.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.reader.get_mut().set_read_timeout(Some(limit)).unwrap();
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

/// Bytes of a large response.
pub(crate) const LARGE: usize = 16 << 20;
pub(crate) const HELLO: &str = "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";
