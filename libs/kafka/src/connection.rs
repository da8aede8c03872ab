use std::{
    future::Future,
    io,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable as _, HeaderVersion as _, StrBytes},
};
use runtime::timeout;
use smol::{
    Timer,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    lock::SemaphoreGuard,
    net::TcpStream,
};
use telemetry::metrics::{self, IntCounterVec};

use crate::{
    BrokerError, Error, Malformed,
    call::{Deadline, answered},
    memory,
    records::LARGEST_BATCH,
    unreachable::{Address, Cause, Unreachable},
    versions::{Request, Versions},
};

/// Bytes of an answer at most: a batch, and what says where it belongs.
const LARGEST_ANSWER: usize = LARGEST_BATCH + 1024 * 1024;
/// Bytes of an answer that is read into the connection's own buffer, which is kept.
const KEPT_BUFFER: usize = 1024 * 1024 + 64 * 1024;
/// Bytes that are read of an answer that is too large: enough to know what it would have been.
const BEGINNING: usize = 64 * 1024;
/// Bytes of an answer to ApiVersions at most. Whoever is no broker begins with something that is no length, and then the
/// rest of it is not waited for.
const LARGEST_VERSIONS: usize = 256 * 1024;
/// How this client names its software to a broker.
const SOFTWARE: (&str, &str) = ("patient-management", env!("CARGO_PKG_VERSION"));
/// The longest time for which a broker's quota is believed to silence a connection. A megabyte takes nine minutes at two
/// kilobytes a second.
const MAX_THROTTLE: Duration = Duration::from_secs(60 * 60);
/// A throttle is logged if it is as long, and none on this connection ended as shortly ago.
const LOGGED_THROTTLE: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

static THROTTLED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Answers by which a quota of the broker made this client wait before its next request.";
    metrics::counters("kafka_throttled_total", help, &["request"])
});

/// A connection to one broker: one request after the other. After an error, or when a call was dropped half-way, it is
/// of no use any more.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    address: Address,
    /// When the call that it is used for has to be over.
    deadline: Deadline,
    /// Until when the broker reads nothing of this connection, because of a quota.
    throttled_until: Option<Instant>,
    client_id: StrBytes,
    correlation_id: i32,
    /// None before the answer to ApiVersions.
    versions: Option<Versions>,
    /// Whether there was an answer after that one.
    is_proven: bool,
    /// Every answer is read into the same memory, as soon as nobody holds the one before: memory that is allocated anew
    /// for each fetch is given back to the system each time, and its pages are faulted in again.
    buffer: BytesMut,
}

/// An answer, up to where its header ends.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    /// The bytes of all of it, if it is too large and only its beginning is here; then the connection is of no use any more.
    pub(crate) cut_off: Option<usize>,
    /// The right to the memory of a large one.
    pub(crate) large: Option<SemaphoreGuard<'static>>,
}

impl Answer {
    /// The whole body.
    ///
    /// # Errors
    /// If it is too large.
    fn whole(self) -> Result<Bytes, Malformed> {
        self.cut_off.map_or(Ok(self.body), |length| Err(Malformed::AnswerTooLarge(length)))
    }
}

impl Connection {
    /// Connects, and asks which versions the broker speaks, in the time of the call; a host name is looked up on a thread of
    /// its own.
    pub(crate) async fn open(address: &Address, client_id: &'static str, deadline: Deadline) -> Result<Self, Error> {
        let stream = connect(address, deadline).await?;
        let mut connection = Self {
            stream,
            address: address.clone(),
            deadline,
            throttled_until: None,
            client_id: StrBytes::from_static_str(client_id),
            correlation_id: 0,
            versions: None,
            is_proven: false,
            buffer: BytesMut::new(),
        };
        match connection.negotiate().await {
            Ok(versions) => connection.versions = Some(versions),
            Err(Error::Malformed(error)) => return Err(connection.unreachable(Cause::Foreign(error)).into()),
            Err(error) => return Err(error),
        }
        Ok(connection)
    }

    /// The same connection for another call.
    pub(crate) fn until(self, deadline: Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// Until when the broker reads nothing of this connection, because a quota was used up. A call that begins later does
    /// not lose its time to it.
    pub(crate) fn throttled_until(&self) -> Option<Instant> {
        self.throttled_until.filter(|until| *until > Instant::now())
    }

    /// Notes what an answer says of the broker's quotas: for so long the broker reads nothing of this connection (KIP-219).
    pub(crate) fn throttle<Q: Request>(&mut self, milliseconds: i32) {
        let throttle = Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default()).min(MAX_THROTTLE);
        if throttle.is_zero() {
            return;
        }
        THROTTLED.with_label_values(&[&format!("{:?}", Q::KEY)]).inc();
        let logged_before = self.throttled_until.is_some_and(|until| until.elapsed() < LOG_INTERVAL);
        if throttle >= LOGGED_THROTTLE && !logged_before {
            let (broker, request) = (self.address.broker.to_string(), Q::KEY);
            tracing::info!(broker, ?request, milliseconds, "a quota of the broker makes this client wait");
        }
        self.throttled_until = Some(Instant::now() + throttle);
    }

    /// An error that the broker answered a request with, with its own words if it has some.
    pub(crate) fn answered<Q: Request>(&self, code: ResponseError, message: Option<&str>) -> Error {
        answered(&format!("{:?}", Q::KEY), BrokerError::new(code).saying(message).at(&self.address.broker))
    }

    /// The highest version of a request, up to `most`, that both ends speak.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn version<Q: Request>(&self, most: i16) -> Result<i16, Error> {
        let none = Versions::default();
        let versions = self.versions.as_ref().unwrap_or(&none);
        versions.highest::<Q>(most).ok_or_else(|| {
            let ours = Q::SPOKEN;
            let theirs = versions.describe::<Q>();
            let text = format!("speaks {theirs}, and this client {} to {}", ours.start(), most.min(*ours.end()));
            self.unreachable(Cause::Version(text)).into()
        })
    }

    fn unreachable(&self, cause: Cause) -> Unreachable {
        Unreachable { address: self.address.clone(), cause }
    }

    /// Sends a request in the highest version that both ends speak, and reads its answer, whose byte fields share the
    /// answer's memory.
    pub(crate) async fn call<Q: Request>(&mut self, request: &Q) -> Result<Q::Answer, Error> {
        let version = self.version::<Q>(i16::MAX)?;
        self.call_in(version, request).await
    }

    /// As [`call`](Self::call), in a version that [`version`](Self::version) gave.
    pub(crate) async fn call_in<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Q::Answer, Error> {
        let mut answer = self.exchange(version, request).await?.whole()?;
        let answer = Q::Answer::decode(&mut answer, version).map_err(|_| Malformed::Answer)?;
        self.throttle::<Q>(Q::throttle_ms(&answer));
        Ok(answer)
    }

    /// Asks for the versions that the broker speaks, in the highest version of this very request that it knows.
    async fn negotiate(&mut self) -> Result<Versions, Error> {
        let (name, version) = SOFTWARE;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(name))
            .with_client_software_version(StrBytes::from_static_str(version));
        let mut version = *ApiVersionsRequest::SPOKEN.end();
        loop {
            let mut answer = self.exchange(version, &request).await?.whole()?;
            let error = answer.get(..2).map(|code| i16::from_be_bytes([code[0], code[1]])).ok_or(Malformed::Answer)?;
            // A broker that does not know this version says so in version 0, and most say what they know instead.
            let is_unknown = error == ResponseError::UnsupportedVersion.code();
            let decoded = ApiVersionsResponse::decode(&mut answer, if is_unknown { 0 } else { version });
            let decoded = decoded.map_err(|_| Malformed::Answer)?;
            let versions = Versions::new(&decoded);
            self.throttle::<ApiVersionsRequest>(decoded.throttle_time_ms);
            match ResponseError::try_from_code(error) {
                None => return Ok(versions),
                Some(_) if is_unknown && version > 0 => {
                    version = versions.highest::<ApiVersionsRequest>(version - 1).unwrap_or(0);
                }
                Some(error) => return Err(self.answered::<ApiVersionsRequest>(error, None)),
            }
        }
    }

    /// Sends a request in a version that [`version`](Self::version) gave, and reads its answer without decoding it. If a quota
    /// of the broker silences the connection, that comes first.
    pub(crate) async fn exchange<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Answer, Error> {
        let (deadline, broker) = (self.deadline, self.address.broker.clone());
        deadline.within(Some(&broker), self.exchange_late(version, request)).await
    }

    async fn exchange_late<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Answer, Error> {
        if let Some(until) = self.throttled_until() {
            Timer::at(until).await;
        }
        self.correlation_id = self.correlation_id.wrapping_add(1);
        self.send(version, request).await?;
        let mut answer = self.receive().await?;
        let header = ResponseHeader::decode(&mut answer.body, Q::Answer::header_version(version));
        match header {
            Ok(header) if header.correlation_id == self.correlation_id => {
                self.is_proven = self.versions.is_some();
                Ok(answer)
            }
            _ => Err(Malformed::Answer.into()),
        }
    }

    /// What a failure of the connection means.
    fn broken(&self, error: io::Error) -> Error {
        let is_closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        let cause = match self.versions {
            None if is_closed => Cause::Closed,
            Some(_) if is_closed && !self.is_proven => Cause::ClosedAfterVersions,
            _ => Cause::Broken(error),
        };
        self.unreachable(cause).into()
    }

    async fn send<Q: Request>(&mut self, version: i16, request: &Q) -> Result<(), Error> {
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(self.client_id.clone()));
        let mut message = BytesMut::new();
        message.put_i32(0);
        let encoded = header.encode(&mut message, Q::header_version(version));
        let encoded = encoded.and_then(|()| request.encode(&mut message, version));
        encoded.map_err(|error| self.broken(io::Error::other(error)))?;
        let length = i32::try_from(message.len() - 4).map_err(|error| self.broken(io::Error::other(error)))?;
        message[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&message).await.map_err(|error| self.broken(error))
    }

    async fn receive(&mut self) -> Result<Answer, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await.map_err(|error| self.broken(error))?;
        if let (None, Some(other)) = (&self.versions, other_protocol(length)) {
            return Err(self.unreachable(other).into());
        }
        let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| Malformed::Answer)?;
        if self.versions.is_none() && length > LARGEST_VERSIONS {
            return Err(Malformed::AnswerTooLarge(length).into());
        }
        let cut_off = (length > LARGEST_ANSWER).then_some(length);
        let length = if cut_off.is_some() { BEGINNING } else { length };
        let is_large = length > KEPT_BUFFER;
        let large = if is_large { Some(memory::large().await) } else { None };
        let mut own = BytesMut::new();
        let buffer = if is_large { &mut own } else { &mut self.buffer };
        buffer.resize(length, 0);
        if let Err(error) = self.stream.read_exact(buffer).await {
            return Err(self.broken(error));
        }
        Ok(Answer { body: buffer.split().freeze(), cut_off, large })
    }
}

/// What a first answer is that begins so and is none of Kafka's, whose first four bytes are a length.
fn other_protocol(beginning: [u8; 4]) -> Option<Cause> {
    match beginning {
        // An alert or a handshake, in any version since SSL 3.
        [0x15 | 0x16, 3, ..] => Some(Cause::Tls),
        [b'H', b'T', b'T', b'P'] => Some(Cause::Http),
        _ => None,
    }
}

/// A connection, or the reason by name: whoever cannot look the host up or does not get through in time is told the same as
/// one that is refused.
async fn connect(address: &Address, deadline: Deadline) -> Result<TcpStream, Unreachable> {
    let unreachable = |cause| Unreachable { address: address.clone(), cause };
    let resolved = smol::net::resolve((address.broker.host.as_str(), address.broker.port));
    let resolved = in_time(deadline, resolved).await.map_err(|error| unreachable(Cause::Name(error)))?;
    let connected = async {
        let stream = TcpStream::connect(&resolved[..]).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    in_time(deadline, connected).await.map_err(|error| unreachable(Cause::Connect(error)))
}

async fn in_time<T>(deadline: Deadline, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(deadline.left(), work).await.unwrap_or_else(|elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)))
}
