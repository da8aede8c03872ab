//! A backend for surf: hyper's http1 on smol, over one keep-alive connection.
//!
//! surf's own backends depend on tokio's timers, or resolve names on the executor's thread, which blocks it.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use smol::lock::Mutex;
use smol_hyper::rt::FuturesIo;
use surf::{
    HttpClient, StatusCode, Url,
    http::{Error, Request, Response},
    utils::async_trait,
};

/// The schemes of URLs that it supports.
pub const SCHEMES: &[&str] = &["http", "https"];
/// The protocol that it offers in a TLS handshake.
const ALPN: &[&str] = &["http/1.1"];

/// A backend of surf for one host. It has no deadline; dropping a request closes its connection. It follows no redirect.
#[derive(Debug)]
pub struct SingleConnectionClient {
    open: Mutex<Option<SendRequest<Full<Bytes>>>>,
    max_response: usize,
    /// For URLs whose scheme is https.
    tls: Option<tls::Connector>,
}

impl SingleConnectionClient {
    /// A client without a connection yet. A response body of more than `max_response` bytes is an error.
    pub fn new(max_response: usize) -> Self {
        Self { open: Mutex::new(None), max_response, tls: None }
    }

    /// The same, which trusts and shows what these files have where a URL's scheme is https. `endpoint` is the server in logs and
    /// metrics.
    ///
    /// # Errors
    /// If the files are not valid.
    pub fn with_tls(self, endpoint: &'static str, files: tls::ClientSettings) -> Result<Self, tls::Error> {
        Ok(Self { tls: Some(connector(endpoint, files)?), ..self })
    }

    /// The same by a connector of [`connector`].
    #[must_use]
    pub fn with_connector(self, connector: tls::Connector) -> Self {
        Self { tls: Some(connector), ..self }
    }
}

/// A connector for HTTP by these files. `endpoint` is the server in logs and metrics.
///
/// # Errors
/// If the files are not valid.
pub fn connector(endpoint: &'static str, files: tls::ClientSettings) -> Result<tls::Connector, tls::Error> {
    tls::Connector::new(endpoint, files, ALPN)
}

#[async_trait]
impl HttpClient for SingleConnectionClient {
    async fn send(&self, mut request: Request) -> Result<Response, Error> {
        let body = request.take_body().into_bytes().await?;
        let message = message(&request, body)?;
        let mut open = self.open.lock().await;
        let mut connection = match ready(open.take()).await {
            Some(connection) => connection,
            None => connect(request.url(), self.tls.as_ref()).await?,
        };
        let (head, body) = connection.send_request(message).await.map_err(unavailable)?.into_parts();
        let body = Limited::new(body, self.max_response).collect().await.map_err(unavailable)?.to_bytes();
        *open = Some(connection);
        let mut response = Response::new(StatusCode::try_from(head.status.as_u16())?);
        for (name, value) in &head.headers {
            // No header with a value that is not text is used.
            if let Ok(value) = value.to_str() {
                response.append_header(name.as_str(), value);
            }
        }
        response.set_body(&*body);
        Ok(response)
    }
}

/// The connection, unless the server has closed it.
async fn ready(connection: Option<SendRequest<Full<Bytes>>>) -> Option<SendRequest<Full<Bytes>>> {
    let mut connection = connection?;
    connection.ready().await.is_ok().then_some(connection)
}

/// Converts a request to hyper's type.
fn message(request: &Request, body: Vec<u8>) -> Result<hyper::Request<Full<Bytes>>, Error> {
    let url = request.url();
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let mut message = hyper::Request::builder().method(request.method().as_ref()).uri(target).header(HOST, host);
    for (name, values) in request.iter() {
        for value in values {
            message = message.header(name.as_str(), value.as_str());
        }
    }
    message.body(Full::from(body)).map_err(|error| Error::new(StatusCode::BadRequest, error))
}

async fn connect(url: &Url, tls: Option<&tls::Connector>) -> Result<SendRequest<Full<Bytes>>, Error> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let stream = runtime::connect(host, url.port_or_known_default().unwrap_or(80)).await?;
    stream.set_nodelay(true)?;
    let stream = match (url.scheme(), tls) {
        ("https", Some(tls)) => tls.connect(host, stream).await?,
        ("https", None) => return Err(unavailable("the client of an https URL has no certificate authorities")),
        _ => tls::Stream::Plain(stream),
    };
    let (sender, connection) = http1::handshake(FuturesIo::new(stream)).await.map_err(unavailable)?;
    // It ends with the sender, or when the server closes it; then the pending request fails.
    runtime::spawn(async { drop(connection.await) }).detach();
    Ok(sender)
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::from_str(StatusCode::BadGateway, error.into().to_string())
}
