use std::{
    future::Future,
    io,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest,
        SaslHandshakeRequest,
    },
    protocol::{Decodable, Encodable as _, HeaderVersion as _, StrBytes},
};
use runtime::{connect_to, timeout};
use smol::{
    Timer,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use telemetry::metrics::{self, IntCounterVec};

use crate::{
    BrokerError, Error, Malformed, Sasl, Settings, bounded,
    call::{Deadline, broker_error},
    limits::MAX_BATCH_BYTES,
    memory::{FetchMemory, FetchPermit, LARGE_BATCHES},
    security::Authentication,
    unreachable::{Address, Cause, Unreachable},
    versions::{Request, Versions},
};

/// The largest response: a batch, and the fields around it.
const MAX_RESPONSE_BYTES: usize = MAX_BATCH_BYTES + 1024 * 1024;
/// The largest response that is read into the connection's buffer, which is reused. A consumer may have a lower limit.
const MAX_BUFFER_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// Bytes that are read of a response that is too large: enough to decode the header of its first batch.
const PREFIX_BYTES: usize = 64 * 1024;
/// The largest response to ApiVersions. The first bytes of another protocol would be taken for a length; with this limit
/// the client does not wait for so many bytes.
const MAX_API_VERSIONS_BYTES: usize = 256 * 1024;
/// Name and version of the client software in ApiVersions.
const SOFTWARE: (&str, &str) = ("patient-management", env!("CARGO_PKG_VERSION"));
/// The longest throttle time that is honoured. A megabyte takes nine minutes at two kilobytes a second.
const MAX_THROTTLE: Duration = Duration::from_secs(60 * 60);
/// A throttle is logged if it is at least this long, and the last one of the connection ended at least [`LOG_INTERVAL`] ago.
const MIN_LOGGED_THROTTLE: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

static THROTTLED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Responses by which a quota of the broker throttled this client, by request.";
    metrics::counters("kafka_throttled_total", help, &["request"])
});

/// A connection to one broker, for one request at a time. After an error or a cancelled call it is unusable.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: tls::Stream<TcpStream>,
    address: Address,
    /// The deadline of the current call.
    deadline: Deadline,
    /// Until when the broker mutes the connection because of a quota.
    throttled_until: Option<Instant>,
    /// From when on to authenticate again, where the broker limits how long that counts (KIP-368).
    authenticate_at: Option<Instant>,
    client_id: StrBytes,
    correlation_id: i32,
    /// None before the response to ApiVersions.
    versions: Option<Versions>,
    /// Whether there was a response after that one.
    has_served_a_request: bool,
    /// Reused for each response once the one before is dropped: memory allocated for each fetch would be returned to the
    /// system each time, and its pages faulted in again.
    buffer: BytesMut,
    /// The largest response that is read into it.
    buffer_bytes: usize,
    /// The memory for larger ones.
    memory: FetchMemory,
    /// Whether the rest of a truncated response has not been read.
    has_unread_bytes: bool,
}

/// A response without its header.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) body: Bytes,
    /// The length of the whole response, if only its beginning was read; then the connection is unusable.
    pub(crate) truncated: Option<usize>,
    /// The permit of a response that is not in the connection's buffer.
    pub(crate) permit: Option<FetchPermit>,
}

impl Response {
    /// The body.
    ///
    /// # Errors
    /// If it is truncated.
    fn complete(self) -> Result<Bytes, Malformed> {
        self.truncated.map_or(Ok(self.body), |length| Err(Malformed::ResponseTooLarge(length)))
    }
}

impl Connection {
    /// Connects, negotiates versions and authenticates. Host names are resolved on a thread pool.
    pub(crate) async fn open(address: &Address, settings: &Settings, deadline: Deadline) -> Result<Self, Error> {
        let Settings { client_id, security, .. } = settings;
        let stream = connect(address, security.tls.as_ref(), deadline).await?;
        let mut connection = Self {
            stream,
            address: address.clone(),
            deadline,
            throttled_until: None,
            authenticate_at: None,
            client_id: StrBytes::from_static_str(client_id),
            correlation_id: 0,
            versions: None,
            has_served_a_request: false,
            buffer: BytesMut::new(),
            buffer_bytes: MAX_BUFFER_BYTES,
            memory: LARGE_BATCHES.clone(),
            has_unread_bytes: false,
        };
        match connection.negotiate().await {
            Ok(versions) => connection.versions = Some(versions),
            Err(Error::Malformed(error)) => return Err(connection.unreachable(Cause::NotKafka(error)).into()),
            Err(error) => return Err(error),
        }
        if let Some(sasl) = &security.sasl {
            // Boxed, because it is rare and would be part of every connection's future.
            Box::pin(connection.authenticate(sasl)).await?;
        }
        Ok(connection)
    }

    /// Authenticates, and with SCRAM has the broker prove that it knows the password too.
    async fn authenticate(&mut self, sasl: &Sasl) -> Result<(), Error> {
        let failed = |connection: &Self, why| connection.unreachable(Cause::Authentication(why));
        let handshake =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(sasl.mechanism.name()));
        let answer = self.call(&handshake).await?;
        if let Some(error) = answer.error_code.err() {
            let supported: Vec<_> = answer.mechanisms.iter().map(|name| name.as_str()).collect();
            let message = format!("{} is not among its mechanisms: {}", sasl.mechanism.name(), supported.join(", "));
            return Err(self.broker_error::<SaslHandshakeRequest>(error, Some(&message)));
        }
        let mut authentication = Authentication::new(sasl).map_err(|why| failed(self, why))?;
        let mut received: Option<Bytes> = None;
        self.authenticate_at = None;
        loop {
            // On the thread pool: the iterations of SCRAM would keep the executor's thread from everything else.
            let input = received.take();
            let (stepped, step) = smol::unblock(move || {
                let step = authentication.step(input.as_deref());
                (authentication, step)
            })
            .await;
            authentication = stepped;
            let (message, is_finished) = step.map_err(|why| failed(self, why))?;
            if let Some(message) = message {
                let answer = self.call(&SaslAuthenticateRequest::default().with_auth_bytes(message.into())).await?;
                if let Some(error) = answer.error_code.err() {
                    let message = answer.error_message.as_deref();
                    return Err(self.broker_error::<SaslAuthenticateRequest>(error, message));
                }
                self.authenticate_at = session_renewal(answer.session_lifetime_ms);
                received = Some(answer.auth_bytes);
            }
            if is_finished {
                return Ok(());
            }
        }
    }

    /// The connection for another call. Authenticates again if the broker would soon close it otherwise.
    pub(crate) async fn reuse(mut self, settings: &Settings, deadline: Deadline) -> Result<Self, Error> {
        self.deadline = deadline;
        if let Some(sasl) = &settings.security.sasl
            && self.authenticate_at.is_some_and(|time| time <= Instant::now())
        {
            // Boxed, because it is rare and would be part of every call's future.
            Box::pin(self.authenticate(sasl)).await?;
        }
        Ok(self)
    }

    /// Keeps no larger buffer than that, up to [`MAX_BUFFER_BYTES`]; larger responses are read into this memory.
    pub(crate) fn limit_buffer(&mut self, bytes: usize, memory: &FetchMemory) {
        (self.buffer_bytes, self.memory) = (bytes.min(MAX_BUFFER_BYTES), memory.clone());
    }

    /// Waits for the permit. The deadline of the call is moved by that time: it is not the broker that is late.
    pub(crate) async fn acquire(&mut self, memory: &FetchMemory) -> FetchPermit {
        let started = Instant::now();
        let permit = memory.acquire().await;
        self.deadline = self.deadline.extended(started.elapsed());
        permit
    }

    /// Whether the next bytes on the connection are not those of a response that nobody has read.
    pub(crate) fn is_usable(&self) -> bool {
        !self.has_unread_bytes
    }

    /// Until when the broker mutes the connection because of a quota, if that is in the future.
    pub(crate) fn throttled_until(&self) -> Option<Instant> {
        self.throttled_until.filter(|until| *until > Instant::now())
    }

    /// Applies the throttle time of a response (KIP-219).
    pub(crate) fn throttle<Q: Request>(&mut self, milliseconds: i32) {
        let throttle = Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default()).min(MAX_THROTTLE);
        if throttle.is_zero() {
            return;
        }
        THROTTLED.with_label_values(&[&format!("{:?}", Q::KEY)]).inc();
        let logged_before = self.throttled_until.is_some_and(|until| until.elapsed() < LOG_INTERVAL);
        if throttle >= MIN_LOGGED_THROTTLE && !logged_before {
            let (broker, request) = (self.address.broker.to_string(), Q::KEY);
            tracing::info!(broker, ?request, milliseconds, "a quota of the broker throttles this client");
        }
        self.throttled_until = Some(Instant::now() + throttle);
    }

    /// Counts and converts an error code of a response, with the broker's message if there is one.
    pub(crate) fn broker_error<Q: Request>(&self, code: ResponseError, message: Option<&str>) -> Error {
        let error = BrokerError::new(code).with_message(message).with_broker(&self.address.broker);
        broker_error(&format!("{:?}", Q::KEY), error)
    }

    /// The highest version of a request, up to `max`, that both ends support.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn version<Q: Request>(&self, max: i16) -> Result<i16, Error> {
        let none = Versions::default();
        let versions = self.versions.as_ref().unwrap_or(&none);
        versions.highest::<Q>(max).ok_or_else(|| {
            let ours = Q::SUPPORTED;
            let theirs = versions.describe::<Q>();
            let text = format!("supports {theirs}, and this client {} to {}", ours.start(), max.min(*ours.end()));
            self.unreachable(Cause::UnsupportedVersion(text)).into()
        })
    }

    fn unreachable(&self, cause: Cause) -> Unreachable {
        Unreachable { address: self.address.clone(), cause }
    }

    /// Sends a request in the highest version that both ends support, and decodes the response, whose byte fields share its
    /// buffer.
    pub(crate) async fn call<Q: Request>(&mut self, request: &Q) -> Result<Q::Response, Error> {
        let version = self.version::<Q>(i16::MAX)?;
        self.call_in(version, request).await
    }

    /// As [`call`](Self::call), in a version from [`version`](Self::version).
    pub(crate) async fn call_in<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Q::Response, Error> {
        let body = self.exchange(version, request).await?.complete()?;
        let response: Q::Response = bounded::decode(body, version)?;
        self.throttle::<Q>(Q::throttle_ms(&response));
        Ok(response)
    }

    /// Requests the versions that the broker supports, in the highest version of ApiVersions that it supports.
    async fn negotiate(&mut self) -> Result<Versions, Error> {
        let (name, version) = SOFTWARE;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(name))
            .with_client_software_version(StrBytes::from_static_str(version));
        let mut version = *ApiVersionsRequest::SUPPORTED.end();
        loop {
            let body = self.exchange(version, &request).await?.complete()?;
            let error = body.get(..2).map(|code| i16::from_be_bytes([code[0], code[1]])).ok_or(Malformed::Response)?;
            // A broker that does not support this version responds in version 0, mostly with those that it supports.
            let is_unsupported = error == ResponseError::UnsupportedVersion.code();
            let decoded: ApiVersionsResponse = bounded::decode(body, if is_unsupported { 0 } else { version })?;
            let versions = Versions::new(&decoded);
            self.throttle::<ApiVersionsRequest>(decoded.throttle_time_ms);
            match ResponseError::try_from_code(error) {
                None => return Ok(versions),
                Some(_) if is_unsupported && version > 0 => {
                    version = versions.highest::<ApiVersionsRequest>(version - 1).unwrap_or(0);
                }
                Some(error) => return Err(self.broker_error::<ApiVersionsRequest>(error, None)),
            }
        }
    }

    /// Sends a request in a version from [`version`](Self::version), and reads the response without decoding it. If the
    /// connection is throttled, it waits first.
    pub(crate) async fn exchange<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Response, Error> {
        let (deadline, broker) = (self.deadline, self.address.broker.clone());
        let length = deadline.timeout(Some(&broker), self.request(version, request)).await?;
        let permit = if read_length(length) > self.buffer_bytes {
            let memory = self.memory.clone();
            Some(self.acquire(&memory).await)
        } else {
            None
        };
        let deadline = self.deadline;
        let mut response = deadline.timeout(Some(&broker), self.receive(length, permit)).await?;
        let header = ResponseHeader::decode(&mut response.body, Q::Response::header_version(version));
        match header {
            Ok(header) if header.correlation_id == self.correlation_id => {
                self.has_served_a_request = self.versions.is_some();
                Ok(response)
            }
            _ => Err(Malformed::Response.into()),
        }
    }

    /// Sends a request, and returns the length of the response.
    async fn request<Q: Request>(&mut self, version: i16, request: &Q) -> Result<usize, Error> {
        if let Some(until) = self.throttled_until() {
            Timer::at(until).await;
        }
        self.correlation_id = self.correlation_id.wrapping_add(1);
        self.send(version, request).await?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await.map_err(|error| self.io_error(error))?;
        if let (None, Some(protocol)) = (&self.versions, foreign_protocol(length)) {
            return Err(self.unreachable(protocol).into());
        }
        let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| Malformed::Response)?;
        if self.versions.is_none() && length > MAX_API_VERSIONS_BYTES {
            return Err(Malformed::ResponseTooLarge(length).into());
        }
        Ok(length)
    }

    /// The error of a failed connection, by how far it got.
    fn io_error(&self, error: io::Error) -> Error {
        let is_closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        let cause = match self.versions {
            None if is_closed => Cause::Closed,
            Some(_) if is_closed && !self.has_served_a_request => Cause::ClosedAfterVersions,
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
        encoded.map_err(|error| self.io_error(io::Error::other(error)))?;
        let length = i32::try_from(message.len() - 4).map_err(|error| self.io_error(io::Error::other(error)))?;
        message[..4].copy_from_slice(&length.to_be_bytes());
        let sent = async {
            self.stream.write_all(&message).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| self.io_error(error))
    }

    async fn receive(&mut self, length: usize, permit: Option<FetchPermit>) -> Result<Response, Error> {
        let truncated = (length > MAX_RESPONSE_BYTES).then_some(length);
        self.has_unread_bytes = truncated.is_some();
        let mut own = BytesMut::new();
        let buffer = if permit.is_some() { &mut own } else { &mut self.buffer };
        if !buffer.try_reclaim(read_length(length)) {
            // Not grown: that keeps the part of the response before, up to twice the length.
            *buffer = BytesMut::with_capacity(read_length(length));
        }
        buffer.resize(read_length(length), 0);
        if let Err(error) = self.stream.read_exact(buffer).await {
            return Err(self.io_error(error));
        }
        Ok(Response { body: buffer.split().freeze(), truncated, permit })
    }
}

/// How much is read of a response of this length.
fn read_length(length: usize) -> usize {
    if length > MAX_RESPONSE_BYTES { PREFIX_BYTES } else { length }
}

/// When to authenticate again in a session that the broker ends after so many milliseconds; none if it does not end. It is well
/// before its end, because the next call may come late.
fn session_renewal(milliseconds: i64) -> Option<Instant> {
    let lifetime = u64::try_from(milliseconds).ok().filter(|lifetime| *lifetime > 0)?;
    Instant::now().checked_add(Duration::from_millis(lifetime / 10 * 8))
}

/// The protocol of a first response that begins with these four bytes, which Kafka has for a length.
fn foreign_protocol(start: [u8; 4]) -> Option<Cause> {
    match start {
        // An alert or a handshake, in any version since SSL 3.
        [0x15 | 0x16, 3, ..] => Some(Cause::Tls),
        [b'H', b'T', b'T', b'P'] => Some(Cause::Http),
        _ => None,
    }
}

/// Resolves the host, connects and makes the TLS handshake. A timeout is an error as specific as a refused connection.
async fn connect(
    address: &Address,
    tls: Option<&tls::Connector>,
    deadline: Deadline,
) -> Result<tls::Stream<TcpStream>, Unreachable> {
    let unreachable = |cause| Unreachable { address: address.clone(), cause };
    let resolved = smol::net::resolve((address.broker.host.as_str(), address.broker.port));
    let resolved = io_timeout(deadline, resolved).await.map_err(|error| unreachable(Cause::Resolve(error)))?;
    let connected = async {
        let stream = connect_to(&resolved).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let stream = io_timeout(deadline, connected).await.map_err(|error| match error.kind() {
        // It does not say which addresses were tried.
        io::ErrorKind::TimedOut => {
            let tried: Vec<_> = resolved.iter().map(ToString::to_string).collect();
            let text = format!("{error} from {}", tried.join(" and "));
            unreachable(Cause::Connect(io::Error::new(error.kind(), text)))
        }
        _ => unreachable(Cause::Connect(error)),
    })?;
    let Some(tls) = tls else { return Ok(tls::Stream::Plain(stream)) };
    let handshake = io_timeout(deadline, tls.connect(&address.broker.host, stream));
    handshake.await.map_err(|error| unreachable(Cause::Handshake(error)))
}

async fn io_timeout<T>(deadline: Deadline, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(deadline.remaining(), work)
        .await
        .unwrap_or_else(|elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)))
}
