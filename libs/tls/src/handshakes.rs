//! Handshakes: their time limit and their outcomes, the same for servers and clients.

use std::{future::Future, io, time::Duration};

use futures_rustls::TlsStream;
use runtime::timeout;

use crate::{Stream, metrics::HANDSHAKES};

/// The handshakes of an endpoint.
#[derive(Clone)]
pub(crate) struct Handshakes {
    pub(crate) endpoint: &'static str,
    limit: Duration,
}

impl Handshakes {
    /// Handshakes of `limit` at most. Shows every outcome in the metrics from now on.
    pub(crate) fn new(endpoint: &'static str, limit: Duration) -> Self {
        for outcome in ["ok", "failed", "timeout"] {
            HANDSHAKES.with_label_values(&[endpoint, outcome]);
        }
        Self { endpoint, limit }
    }

    /// Makes a handshake and counts its outcome.
    pub(crate) async fn run<T, S: Into<TlsStream<T>>>(
        &self,
        handshake: impl Future<Output = io::Result<S>>,
    ) -> io::Result<Stream<T>> {
        let done = timeout(self.limit, handshake).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no TLS handshake within {} s", self.limit.as_secs())))
        });
        let outcome = match &done {
            Ok(_) => "ok",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => "timeout",
            Err(_) => "failed",
        };
        HANDSHAKES.with_label_values(&[self.endpoint, outcome]).inc();
        Ok(Stream::Tls(Box::new(done?.into())))
    }
}

/// The names of protocols as ALPN has them.
pub(crate) fn alpn(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}
