//! An HTTP client for tests and tools: surf with a timeout for every call.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use runtime::timeout;
use serde_json::Value as Json;
use surf::{
    HttpClient,
    http::{self, Method},
    utils::async_trait,
};
use web_client::SingleConnectionClient;

mod access;

pub use access::Access;

/// Timeout of a call. surf's own timeout covers neither connecting nor name resolution.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Connections in the pool of a client.
const CONNECTIONS: usize = 64;
/// The largest body of a response over TLS, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A client of one service.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    surf: surf::Client,
    limit: Duration,
    /// Over TLS.
    access: Option<Access>,
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The bytes of the body.
    pub body: Vec<u8>,
}

/// A request without a response.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {url}: {reason}")]
pub struct RequestError {
    url: String,
    reason: String,
}

impl Client {
    /// A client of the service at `http://<address>`.
    pub fn new(address: impl fmt::Display) -> Self {
        Self { base: format!("http://{address}"), surf: surf(true), limit: TIMEOUT, access: None }
    }

    /// A client of the same service with another timeout, and with a new connection for each request: surf puts the
    /// connection of a cancelled request back into its pool, and would take the late response for that of the next request.
    #[must_use]
    pub fn with_timeout(self, limit: Duration) -> Self {
        // Over TLS, a cancelled request closes its connection.
        let surf = if self.access.is_some() { self.surf } else { surf(false) };
        Self { limit, surf, ..self }
    }

    /// A client of the same service over https. It brings a token where the access has a user.
    #[must_use]
    pub fn with_access(self, access: &Access) -> Self {
        let base = self.base.replacen("http://", "https://", 1);
        let surf = surf::Client::with_http_client(TlsPool { access: access.clone(), idle: Mutex::default() });
        Self { base, surf, access: Some(access.clone()), ..self }
    }

    /// The base URL of the service.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Result<Response, RequestError> {
        let url = format!("{}{path}", self.base);
        let work = async {
            let token = match &self.access {
                Some(access) if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) => {
                    access.token().await.map_err(|error| surf::Error::from_str(401, error.to_string()))?
                }
                _ => None,
            };
            let mut request = self.surf.request(method, &url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.to_string().into_bytes());
            }
            let mut surf_response = request.await?;
            let body = surf_response.body_bytes().await?;
            let mut headers = Vec::new();
            for (name, values) in surf_response.iter() {
                headers.extend(values.iter().map(|value| (name.to_string(), value.to_string())));
            }
            Ok(Response { status: surf_response.status().into(), headers, body })
        };
        match timeout(self.limit, work).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(RequestError { url, reason: cause(error) }),
            Err(elapsed) => Err(RequestError { url, reason: elapsed.to_string() }),
        }
    }

    /// GET.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn get(&self, path: &str) -> Result<Response, RequestError> {
        self.send(Method::Get, path, &[], None).await
    }

    /// POST of JSON.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn post(&self, path: &str, body: &Json) -> Result<Response, RequestError> {
        self.send(Method::Post, path, &[], Some(body)).await
    }

    /// PUT of JSON.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn put(&self, path: &str, body: &Json) -> Result<Response, RequestError> {
        self.send(Method::Put, path, &[], Some(body)).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn delete(&self, path: &str) -> Result<Response, RequestError> {
        self.send(Method::Delete, path, &[], None).await
    }
}

/// Connections over TLS: each request takes one that is idle, or makes one.
#[derive(Debug)]
struct TlsPool {
    access: Access,
    idle: Mutex<Vec<SingleConnectionClient>>,
}

#[async_trait]
impl HttpClient for TlsPool {
    async fn send(&self, request: http::Request) -> Result<http::Response, http::Error> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let connection =
            taken.unwrap_or_else(|| SingleConnectionClient::new(MAX_BODY).with_connector(self.access.tls().clone()));
        let response = connection.send(request).await?;
        idle().push(connection);
        Ok(response)
    }
}

/// The message of an error without the prefix of surf's connection pool.
fn cause(error: surf::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("a new object: ").map_or(text.clone(), |(_, cause)| cause.to_owned())
}

fn surf(keep_alive: bool) -> surf::Client {
    let config = surf::Config::new().set_tcp_no_delay(true).set_max_connections_per_host(CONNECTIONS);
    let config = config.set_http_keep_alive(keep_alive).set_timeout(Some(TIMEOUT));
    // Only a TLS configuration can fail.
    config.try_into().expect("the configuration has no TLS")
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a metric, if the body is that of `/metrics` and has it; `name` includes the labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        metric(&self.text(), name)
    }

    /// The path and query of the next page of a list, from the `Link` header.
    pub fn next(&self) -> Option<String> {
        let link = self.header("link")?.strip_suffix(">; rel=\"next\"")?;
        link.strip_prefix('<').map(str::to_owned)
    }
}

/// The value of a metric in Prometheus text; `name` includes the labels. None if there is no such metric.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        thread,
    };

    use super::*;

    const LATE: Duration = Duration::from_millis(300);

    /// A server that responds to each request with its path, to `/late` after [`LATE`].
    fn server() -> SocketAddr {
        fn serve(stream: TcpStream) {
            let (mut responses, mut requests) = (stream.try_clone().unwrap(), BufReader::new(stream));
            loop {
                let mut head = Vec::new();
                while !head.last().is_some_and(|line: &String| line.trim().is_empty()) {
                    let mut line = String::new();
                    if requests.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(line);
                }
                let path = head[0].split(' ').nth(1).unwrap().to_owned();
                if path == "/late" {
                    thread::sleep(LATE);
                }
                let _ = write!(responses, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
            }
        }

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| serve(stream)))));
        address
    }

    #[test]
    fn a_late_response_is_not_taken_for_that_of_the_next_request() {
        let client = Client::new(server()).with_timeout(LATE * 2 / 3);
        smol::block_on(async {
            assert!(client.get("/late").await.is_err());
            // Before the late response arrives: after that, the pool would find the connection unusable.
            assert_eq!(client.get("/next").await.unwrap().text(), "/next");
        });
    }
}
