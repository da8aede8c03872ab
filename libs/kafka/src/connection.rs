use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use config::HostPort;
use kafka_protocol::{
    error::ResponseError,
    messages::{ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable as _, HeaderVersion as _, StrBytes},
};
use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    lock::SemaphoreGuard,
    net::TcpStream,
};

use crate::{
    Error, Malformed, memory,
    records::LARGEST_BATCH,
    versions::{Request, Versions},
};

/// Bytes of an answer at most: a batch, and what says where it belongs.
const LARGEST_ANSWER: usize = LARGEST_BATCH + 1024 * 1024;
/// Bytes of an answer that is read into the connection's own buffer, which is kept.
const KEPT_BUFFER: usize = 1024 * 1024 + 64 * 1024;
/// Bytes that are read of an answer that is too large: enough to know what it would have been.
const BEGINNING: usize = 64 * 1024;
/// How this client names its software to a broker.
const SOFTWARE: (&str, &str) = ("patient-management", env!("CARGO_PKG_VERSION"));

/// A connection to one broker: one request after the other. After an error, or when a call was dropped half-way, it is
/// of no use any more.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    client_id: StrBytes,
    correlation_id: i32,
    versions: Versions,
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
    /// Connects, and asks which versions the broker speaks; a host name is looked up on a thread of its own.
    pub(crate) async fn open(broker: &HostPort, client_id: &'static str) -> Result<Self, Error> {
        let stream = TcpStream::connect((broker.host.as_str(), broker.port)).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream,
            client_id: StrBytes::from_static_str(client_id),
            correlation_id: 0,
            versions: Versions::default(),
            buffer: BytesMut::new(),
        };
        connection.versions = connection.negotiate().await?;
        Ok(connection)
    }

    /// The highest version of a request, up to `most`, that both ends speak.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn version<Q: Request>(&self, most: i16) -> Result<i16, Error> {
        self.versions.highest::<Q>(most).ok_or_else(|| {
            let ours = Q::SPOKEN;
            let theirs = self.versions.describe::<Q>();
            let text = format!("it speaks {theirs}, and this client {} to {}", ours.start(), most.min(*ours.end()));
            io::Error::new(io::ErrorKind::Unsupported, text).into()
        })
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
        Ok(Q::Answer::decode(&mut answer, version).map_err(|_| Malformed::Answer)?)
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
            match ResponseError::try_from_code(error) {
                None => return Ok(versions),
                Some(_) if is_unknown && version > 0 => {
                    version = versions.highest::<ApiVersionsRequest>(version - 1).unwrap_or(0);
                }
                Some(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a request in a version that [`version`](Self::version) gave, and reads its answer without decoding it.
    pub(crate) async fn exchange<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Answer, Error> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        self.send(version, request).await?;
        let mut answer = self.receive().await?;
        let header = ResponseHeader::decode(&mut answer.body, Q::Answer::header_version(version));
        match header {
            Ok(header) if header.correlation_id == self.correlation_id => Ok(answer),
            _ => Err(Malformed::Answer.into()),
        }
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
        encoded.and_then(|()| request.encode(&mut message, version)).map_err(io::Error::other)?;
        let length = i32::try_from(message.len() - 4).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&length.to_be_bytes());
        Ok(self.stream.write_all(&message).await?)
    }

    async fn receive(&mut self) -> Result<Answer, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await?;
        let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| Malformed::Answer)?;
        let cut_off = (length > LARGEST_ANSWER).then_some(length);
        let length = if cut_off.is_some() { BEGINNING } else { length };
        let is_large = length > KEPT_BUFFER;
        let large = if is_large { Some(memory::large().await) } else { None };
        let mut own = BytesMut::new();
        let buffer = if is_large { &mut own } else { &mut self.buffer };
        buffer.resize(length, 0);
        self.stream.read_exact(buffer).await?;
        Ok(Answer { body: buffer.split().freeze(), cut_off, large })
    }
}
