//! What tonic's client runs on: our executor and smol's sockets. Of tokio it has the timers alone, so that a call crosses
//! no thread; the bridge's own thread would be passed four times.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use async_compat::Compat;
use config::HostPort;
use hyper::rt::Executor;
use smol::net::TcpStream;
use smol_hyper::rt::FuturesIo;
use tonic::codegen::http::Uri;
use tower::Service;

/// Runs the tasks of a connection among our own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OurExecutor;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for OurExecutor {
    fn execute(&self, task: F) {
        // Its keep-alive and its deadlines are tokio's timers, which are found by way of the thread that polls them.
        runtime::spawn(Compat::new(task)).detach();
    }
}

/// Connects to a peer, over TLS if that is set.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) address: HostPort,
    /// The handshakes, and the name that the peer's certificate must have.
    pub(crate) tls: Option<(tls::Connector, String)>,
}

impl Service<Uri> for Connector {
    type Response = FuturesIo<tls::Stream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address: HostPort { host, port }, tls } = self.clone();
        Box::pin(async move {
            let stream = runtime::connect(&host, port).await?;
            // A request's head and body are two frames, and the second one would wait for an acknowledgement.
            stream.set_nodelay(true)?;
            Ok(FuturesIo::new(match tls {
                Some((connector, name)) => connector.connect(&name, stream).await?,
                None => tls::Stream::Plain(stream),
            }))
        })
    }
}
