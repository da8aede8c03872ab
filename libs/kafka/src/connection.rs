use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use config::HostPort;
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes},
};
use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{Error, Malformed};

/// Bytes of an answer at most.
const LARGEST_ANSWER: usize = 32 * 1024 * 1024;
/// Bytes of an answer that is read into the connection's own buffer, which is kept.
const KEPT_BUFFER: usize = 1024 * 1024;

/// A connection to one broker: one request after the other. After an error, or when a call was dropped half-way, it is
/// of no use any more.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    client_id: StrBytes,
    correlation_id: i32,
    /// Every answer is read into the same memory, as soon as nobody holds the one before: memory that is allocated anew
    /// for each fetch is given back to the system each time, and its pages are faulted in again.
    buffer: BytesMut,
}

impl Connection {
    /// Connects; a host name is looked up on a thread of its own.
    pub(crate) async fn open(broker: &HostPort, client_id: &'static str) -> io::Result<Self> {
        let stream = TcpStream::connect((broker.host.as_str(), broker.port)).await?;
        stream.set_nodelay(true)?;
        let client_id = StrBytes::from_static_str(client_id);
        Ok(Self { stream, client_id, correlation_id: 0, buffer: BytesMut::new() })
    }

    /// Sends a request and reads its answer, whose byte fields share the answer's memory.
    pub(crate) async fn call<Q, A>(&mut self, key: ApiKey, version: i16, request: &Q) -> Result<A, Error>
    where
        Q: Encodable + HeaderVersion,
        A: Decodable + HeaderVersion,
    {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        self.send(key, version, request).await?;
        let mut answer = self.receive().await?;
        let unreadable = |_| Malformed::Answer;
        let header = ResponseHeader::decode(&mut answer, A::header_version(version)).map_err(unreadable)?;
        if header.correlation_id != self.correlation_id {
            return Err(Malformed::Answer.into());
        }
        Ok(A::decode(&mut answer, version).map_err(unreadable)?)
    }

    async fn send<Q: Encodable + HeaderVersion>(
        &mut self,
        key: ApiKey,
        version: i16,
        request: &Q,
    ) -> Result<(), Error> {
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
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

    async fn receive(&mut self) -> Result<Bytes, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await?;
        let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| Malformed::Answer)?;
        if length > LARGEST_ANSWER {
            return Err(Malformed::Answer.into());
        }
        let mut large = BytesMut::new();
        let buffer = if length > KEPT_BUFFER { &mut large } else { &mut self.buffer };
        buffer.resize(length, 0);
        self.stream.read_exact(buffer).await?;
        Ok(buffer.split().freeze())
    }
}
