use std::{convert::Infallible, error::Error, net::Ipv4Addr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Responds to every request with the same few bytes.
pub(crate) async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = http1::Builder::new().serve_connection(
            TokioIo::new(stream),
            service_fn(|_| async {
                let response = Response::new(Full::new(Bytes::from_static(b"\"Hello, world\"")));
                let (mut head, body) = response.into_parts();
                head.headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
                Ok::<_, Infallible>(Response::from_parts(head, body))
            }),
        );
        tokio::spawn(connection);
    }
}
