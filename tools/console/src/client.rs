//! An HTTP client over hyper on smol: a connection for each request, one deadline for all of it, and a limit on the size
//! of the response.

use std::{fmt, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{HeaderMap, client::conn::http1, header::HOST};
use runtime::timeout;
use smol::net::TcpStream;
use smol_hyper::rt::FuturesIo;

/// A response with its whole body.
#[derive(Clone, Debug)]
pub(crate) struct ServiceResponse {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl ServiceResponse {
    /// The value of a header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the status is 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON; null if it is not JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Why there is no response.
#[derive(Clone, Debug)]
pub(crate) struct RequestError(String);

impl RequestError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub(crate) struct ServiceRequest<'a> {
    pub(crate) method: &'static str,
    /// With its query.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Bytes,
}

impl<'a> ServiceRequest<'a> {
    /// GET.
    pub(crate) fn get(path: &'a str, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: "GET", path, headers, body: Bytes::new() }
    }
}

/// Sends a request to an address and reads the answer, up to `limit` bytes of it within `time`. `host` is what the request
/// says about where it is sent to, and with TLS the name that the certificate must have.
///
/// # Errors
/// If there is no answer in time, or it is too long.
pub(crate) async fn send(
    address: SocketAddr,
    host: &str,
    tls: Option<&tls::Connector>,
    request: ServiceRequest<'_>,
    limit: usize,
    time: Duration,
) -> Result<ServiceResponse, RequestError> {
    let failed = |error: &dyn fmt::Display| RequestError(error.to_string());
    let work = async {
        let mut message = hyper::Request::builder().method(request.method).uri(request.path).header(HOST, host);
        for (name, value) in request.headers {
            message = message.header(*name, *value);
        }
        let message = message.body(Full::new(request.body)).map_err(|error| failed(&error))?;
        let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let stream = match tls {
            Some(tls) => tls.connect(name(host), stream).await.map_err(|error| failed(&error))?,
            None => tls::Stream::Plain(stream),
        };
        let (mut sender, connection) =
            http1::handshake(FuturesIo::new(stream)).await.map_err(|error| failed(&error))?;
        // It ends with the sender, or when the other side closes it.
        let driven = runtime::spawn(async { drop(connection.await) });
        let (head, body) = sender.send_request(message).await.map_err(|error| failed(&error))?.into_parts();
        let body =
            Limited::new(body, limit).collect().await.map_err(|error| RequestError(error.to_string()))?.to_bytes();
        driven.cancel().await;
        Ok(ServiceResponse { status: head.status.as_u16(), headers: head.headers, body })
    };
    match timeout(time, Box::pin(work)).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(RequestError(elapsed.to_string())),
    }
}

/// The name or the address in `host:port`.
fn name(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']'])
}
