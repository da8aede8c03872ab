//! One HTTP/1.1 connection to the measured service.
//!
//! It is hyper's client connection on smol, as libs/web has hyper's server connection. surf, our client elsewhere, costs
//! nearly one and a half times its CPU a request, which a generator that shares the machine would take from what it
//! measures: 14.6 against 10.1 µs, 60,000 against 77,000 requests/s with 64 connections on one thread
//! (`cargo run --release -p load --example clients`). It also distinguishes a refused connection from a broken one.

use std::{
    fmt, io,
    net::SocketAddr,
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode, Uri, Version,
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderValue},
};
use runtime::timeout;
use smol::net::{TcpStream, resolve};
use smol_hyper::rt::FuturesIo;

/// The protocol that a TLS handshake offers.
const ALPN: &[&str] = &["http/1.1"];

/// A service's base URL, resolved.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    host: String,
    prefix: String,
    tls: Option<tls::Connector>,
    /// The value of the header Authorization.
    authorization: Option<HeaderValue>,
}

impl Target {
    /// Reads `http://host[:port][/prefix]`, or the same with https, and looks the host up.
    ///
    /// # Errors
    /// If it is no such URL or the host is unknown; the text names the URL.
    pub async fn resolve(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{url}: expected a URL that begins with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| format!("{url}: a host is missing"))?;
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let found = resolve((authority.host(), port)).await;
        let address = found.map_err(|error| format!("{url}: {error}"))?.first().copied();
        let address = address.ok_or_else(|| format!("{url}: the host has no address"))?;
        let (host, prefix) = (authority.to_string(), uri.path().trim_end_matches('/').to_owned());
        let public = tls::ClientSettings::default();
        let tls =
            is_tls.then(|| tls::Connector::new("load", public, ALPN)).transpose().map_err(|error| error.to_string())?;
        Ok(Self { address, host, prefix, tls, authorization: None })
    }

    /// The same server, whose certificate has to be of this authority instead of a public one.
    ///
    /// # Errors
    /// If the file has no authority, or the URL is not https.
    pub fn with_authority(self, authority: &Path) -> Result<Self, String> {
        if self.tls.is_none() {
            return Err("--cacert needs a URL that begins with https://".to_owned());
        }
        let files = tls::ClientSettings { ca: Some(authority.to_owned()), identity: None };
        let tls = tls::Connector::new("load", files, ALPN).map_err(|error| error.to_string())?;
        Ok(Self { tls: Some(tls), ..self })
    }

    /// The same server; every request carries this token.
    ///
    /// # Errors
    /// If it cannot be the value of a header.
    pub fn with_token(self, token: &str) -> Result<Self, String> {
        let value =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "the token is malformed".to_owned())?;
        Ok(Self { authorization: Some(value), ..self })
    }

    /// The host without its port: the name that the certificate has to have.
    fn name(&self) -> &str {
        self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name).trim_matches(['[', ']'])
    }
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its `Link` header, if there is one.
    pub link: Option<String>,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The connection was refused or could not be made.
    Connect,
    /// There was no response in time.
    Timeout,
    /// The connection ended, or the response was not HTTP.
    Broken,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "cannot connect",
            Self::Timeout => "no response in time",
            Self::Broken => "connection broken",
        })
    }
}

/// A connection that opens at the first request, and again after it has failed or the service has closed it.
pub struct Connection {
    target: Arc<Target>,
    limit: Duration,
    open: Option<OpenConnection>,
    closes_after_each: bool,
}

struct OpenConnection {
    sender: SendRequest<Full<Bytes>>,
    /// Performs the I/O. It is polled together with the request, without a task of its own.
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    /// A connection to `target`, on which each request has `limit` time.
    pub fn new(target: Arc<Target>, limit: Duration) -> Self {
        Self { target, limit, open: None, closes_after_each: false }
    }

    /// The same, with a new connection for each request if `closes`.
    #[must_use]
    pub fn closing_after_each(self, closes: bool) -> Self {
        Self { closes_after_each: closes, ..self }
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// If there is none in time; then the connection is closed.
    pub async fn send(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Response, RequestError> {
        let limit = self.limit;
        let result = timeout(limit, self.attempt(method, path, body)).await.unwrap_or(Err(RequestError::Timeout));
        if result.is_err() || self.closes_after_each {
            self.open = None;
        }
        result
    }

    async fn attempt(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Response, RequestError> {
        let Target { host, prefix, authorization, .. } = &*self.target;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .version(Version::HTTP_11)
            .header(header::HOST, host);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|_| RequestError::Broken)?;
        let open = self.open().await?;
        let exchange = async {
            let response = open.sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let link = parts.headers.get(header::LINK).and_then(|link| link.to_str().ok()).map(str::to_owned);
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Response { status: parts.status, link, body })
        };
        match drive(&mut open.driver, exchange).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(_)) | None => Err(RequestError::Broken),
        }
    }

    /// The open connection, or a new one if the service has closed it since the last response.
    async fn open(&mut self) -> Result<&mut OpenConnection, RequestError> {
        let usable = match &mut self.open {
            Some(open) => matches!(drive(&mut open.driver, open.sender.ready()).await, Some(Ok(()))),
            None => false,
        };
        if !usable {
            self.open = None;
            let open = connect(&self.target).await.map_err(|_| RequestError::Connect)?;
            return Ok(self.open.insert(open));
        }
        self.open.as_mut().ok_or(RequestError::Connect)
    }
}

async fn connect(target: &Target) -> io::Result<OpenConnection> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let stream = match &target.tls {
        Some(tls) => tls.connect(target.name(), stream).await?,
        None => tls::Stream::Plain(stream),
    };
    let handshake = http1::handshake(FuturesIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(io::Error::other)?;
    // The request on it reports how it ended.
    let driver = Box::pin(async { drop(connection.await) });
    Ok(OpenConnection { sender, driver })
}

/// The result of `work`, while the connection's I/O is performed; none if the connection ends before.
async fn drive<T>(driver: &mut Pin<Box<dyn Future<Output = ()> + Send>>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        // The request first, which may have bytes to send; then the I/O; then the request again for what it has received.
        if let Poll::Ready(result) = work.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        let ended = driver.as_mut().poll(context).is_ready();
        match work.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if ended => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
