//! Fake brokers.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use config::{HostPort, HostPorts};
use kafka::{Security, Settings};
use kafka_protocol::{
    messages::{ApiKey, ApiVersionsResponse, RequestHeader, ResponseHeader, api_versions_response::ApiVersion},
    protocol::{Decodable, Encodable, HeaderVersion},
};
use smol::{
    Task,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A request of the client.
pub(crate) struct ReceivedRequest {
    pub(crate) key: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    /// The bytes after its header.
    body: Bytes,
}

impl ReceivedRequest {
    fn read(mut request: Bytes) -> Self {
        let key = ApiKey::try_from(i16::from_be_bytes([request[0], request[1]])).unwrap();
        let version = i16::from_be_bytes([request[2], request[3]]);
        let header = RequestHeader::decode(&mut request, key.request_header_version(version)).unwrap();
        Self { key, version, correlation: header.correlation_id, body: request }
    }

    /// The decoded request.
    pub(crate) fn decode<Q: Decodable>(&self) -> Q {
        Q::decode(&mut self.body.clone(), self.version).unwrap()
    }

    /// The encoded response, in the version of the request.
    pub(crate) fn response<R: Encodable + HeaderVersion>(&self, response: &R) -> Vec<u8> {
        self.response_in(self.version, response)
    }

    /// The encoded response in another version.
    pub(crate) fn response_in<R: Encodable + HeaderVersion>(&self, version: i16, response: &R) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        header.encode(&mut bytes, R::header_version(version)).unwrap();
        response.encode(&mut bytes, version).unwrap();
        [&(bytes.len() as i32).to_be_bytes()[..], &bytes].concat()
    }
}

/// The versions that the brokers of most tests support: the lowest that the client supports.
pub(crate) const LOWEST: [(ApiKey, RangeInclusive<i16>); 5] = [
    (ApiKey::ApiVersions, 0..=4),
    (ApiKey::Metadata, 4..=4),
    (ApiKey::Produce, 3..=3),
    (ApiKey::Fetch, 4..=4),
    (ApiKey::ListOffsets, 2..=2),
];

/// A response to ApiVersions with these versions.
pub(crate) fn supporting(versions: &[(ApiKey, RangeInclusive<i16>)]) -> ApiVersionsResponse {
    let version = |(key, versions): &(ApiKey, RangeInclusive<i16>)| {
        ApiVersion::default()
            .with_api_key(*key as i16)
            .with_min_version(*versions.start())
            .with_max_version(*versions.end())
    };
    ApiVersionsResponse::default().with_api_keys(versions.iter().map(version).collect())
}

/// A broker that supports the [`LOWEST`] versions and sends these responses to other requests than ApiVersions.
pub(crate) async fn broker(
    response: impl Fn(&ReceivedRequest) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, Task<()>) {
    any_broker(move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&LOWEST)),
        _ => response(received),
    })
    .await
}

/// A broker that sends these responses.
pub(crate) async fn any_broker(
    response: impl Fn(&ReceivedRequest) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, Task<()>) {
    slow_broker(|| Duration::ZERO, response).await
}

/// As [`any_broker`], with a delay before each response.
pub(crate) async fn slow_broker(
    delay: impl Fn() -> Duration + Clone + Send + Sync + 'static,
    response: impl Fn(&ReceivedRequest) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async move |mut stream: TcpStream| {
        let mut length = [0; 4];
        while stream.read_exact(&mut length).await.is_ok() {
            let mut request = vec![0; i32::from_be_bytes(length) as usize];
            stream.read_exact(&mut request).await?;
            smol::Timer::after(delay()).await;
            stream.write_all(&response(&ReceivedRequest::read(request.into()))).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let serve = Arc::new(serve);
    let task = runtime::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = serve.clone();
            runtime::spawn(async move { drop(serve(stream).await) }).detach();
        }
    });
    (loopback(port), task)
}

/// A server of another protocol: sends these bytes after the first request, and closes the connection.
pub(crate) async fn foreign_server(sends: &'static [u8]) -> (HostPort, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = runtime::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(sends).await;
        }
    });
    (loopback(port), task)
}

/// A server that accepts connections and never responds.
pub(crate) async fn unresponsive() -> (HostPort, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (loopback(port), listener)
}

/// A port of the loopback address.
pub(crate) fn loopback(port: u16) -> HostPort {
    HostPort { host: "127.0.0.1".to_owned(), port }
}

/// Client settings with these bootstrap brokers.
pub(crate) fn settings(brokers: Vec<HostPort>) -> Settings {
    Settings {
        bootstrap: HostPorts(brokers),
        deadline: Duration::from_secs(2),
        client_id: "test",
        security: Security::default(),
    }
}
