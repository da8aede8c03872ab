//! Brokers that do what real ones seldom do.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use config::{HostPort, HostPorts};
use kafka::Settings;
use kafka_protocol::{
    messages::{ApiKey, ApiVersionsResponse, RequestHeader, ResponseHeader, api_versions_response::ApiVersion},
    protocol::{Decodable, Encodable, HeaderVersion},
};
use smol::{
    Task,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A request as it came.
pub(crate) struct Asked {
    pub(crate) key: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    /// What follows its header.
    body: Bytes,
}

impl Asked {
    fn read(mut request: Bytes) -> Self {
        let key = ApiKey::try_from(i16::from_be_bytes([request[0], request[1]])).unwrap();
        let version = i16::from_be_bytes([request[2], request[3]]);
        let header = RequestHeader::decode(&mut request, key.request_header_version(version)).unwrap();
        Self { key, version, correlation: header.correlation_id, body: request }
    }

    /// The request itself.
    pub(crate) fn request<Q: Decodable>(&self) -> Q {
        Q::decode(&mut self.body.clone(), self.version).unwrap()
    }

    /// An answer to it.
    pub(crate) fn answer<A: Encodable + HeaderVersion>(&self, answer: &A) -> Vec<u8> {
        self.answer_in(self.version, answer)
    }

    /// An answer in another version than was asked for.
    pub(crate) fn answer_in<A: Encodable + HeaderVersion>(&self, version: i16, answer: &A) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        header.encode(&mut bytes, A::header_version(version)).unwrap();
        answer.encode(&mut bytes, version).unwrap();
        [&(bytes.len() as i32).to_be_bytes()[..], &bytes].concat()
    }
}

/// The versions that brokers of most tests speak: the first ones that the client does.
pub(crate) const FIRST: [(ApiKey, RangeInclusive<i16>); 5] = [
    (ApiKey::ApiVersions, 0..=4),
    (ApiKey::Metadata, 4..=4),
    (ApiKey::Produce, 3..=3),
    (ApiKey::Fetch, 4..=4),
    (ApiKey::ListOffsets, 2..=2),
];

/// That a broker speaks these versions.
pub(crate) fn speaking(versions: &[(ApiKey, RangeInclusive<i16>)]) -> ApiVersionsResponse {
    let version = |(key, versions): &(ApiKey, RangeInclusive<i16>)| {
        ApiVersion::default()
            .with_api_key(*key as i16)
            .with_min_version(*versions.start())
            .with_max_version(*versions.end())
    };
    ApiVersionsResponse::default().with_api_keys(versions.iter().map(version).collect())
}

/// A broker that speaks the [`FIRST`] versions and answers each other request with these bytes.
pub(crate) async fn broker(answer: impl Fn(&Asked) -> Vec<u8> + Clone + Send + Sync + 'static) -> (HostPort, Task<()>) {
    any_broker(move |asked| match asked.key {
        ApiKey::ApiVersions => asked.answer(&speaking(&FIRST)),
        _ => answer(asked),
    })
    .await
}

/// A broker that answers each request with these bytes.
pub(crate) async fn any_broker(
    answer: impl Fn(&Asked) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, Task<()>) {
    slow_broker(|| Duration::ZERO, answer).await
}

/// As [`any_broker`], with a delay before each answer.
pub(crate) async fn slow_broker(
    delay: impl Fn() -> Duration + Clone + Send + Sync + 'static,
    answer: impl Fn(&Asked) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (HostPort, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async move |mut stream: TcpStream| {
        let mut length = [0; 4];
        while stream.read_exact(&mut length).await.is_ok() {
            let mut request = vec![0; i32::from_be_bytes(length) as usize];
            stream.read_exact(&mut request).await?;
            smol::Timer::after(delay()).await;
            stream.write_all(&answer(&Asked::read(request.into()))).await?;
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

/// Somebody who is no broker: says this to whoever has sent something, and closes the connection.
pub(crate) async fn stranger(says: &'static [u8]) -> (HostPort, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = runtime::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(says).await;
        }
    });
    (loopback(port), task)
}

/// One that takes connections and says nothing.
pub(crate) async fn silent() -> (HostPort, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (loopback(port), listener)
}

/// A port of this machine.
pub(crate) fn loopback(port: u16) -> HostPort {
    HostPort { host: "127.0.0.1".to_owned(), port }
}

/// Settings of a client that knows these brokers.
pub(crate) fn settings(brokers: Vec<HostPort>) -> Settings {
    Settings { bootstrap: HostPorts(brokers), deadline: Duration::from_secs(2), client_id: "test" }
}
