//! HTTP/2 frame by frame, for tests of what no client library does: slow readers, incomplete headers, wrong order.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use smol::{
    Async,
    future::or,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};

/// The connection preface of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame type.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// The flag of the last frame of a stream.
pub const END_STREAM: u8 = 1;
/// The flag of a HEADERS frame without CONTINUATION frames.
pub const END_HEADERS: u8 = 4;
/// The flag of the acknowledgement of a SETTINGS or a PING frame.
pub const ACK: u8 = 1;

/// A setting: the size of the header compression table.
const HEADER_TABLE_SIZE: u16 = 1;
/// A setting: the initial flow-control window of a stream.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A connection to an HTTP/2 server without TLS.
#[derive(Debug)]
pub struct Connection {
    stream: Async<std::net::TcpStream>,
}

/// A received frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream that it belongs to; 0 is the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it ends its stream.
    pub fn is_end(&self) -> bool {
        self.kind == RST_STREAM || (matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0)
    }

    /// The value of `grpc-status` in a HEADERS frame.
    pub fn grpc_status(&self) -> Option<u8> {
        let field = huffman_string("grpc-status");
        let at = self.payload.windows(field.len()).position(|bytes| bytes == field)? + field.len();
        (0..=16).find(|code| self.payload[at..].starts_with(&huffman_string(&code.to_string())))
    }
}

impl Connection {
    /// Connects, and sends nothing yet.
    ///
    /// # Errors
    /// If no process listens.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = Async::<std::net::TcpStream>::connect(address).await?;
        // Frames are written one at a time.
        stream.get_ref().set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Connects and sends the preface, with `window` bytes as the initial flow-control window of streams.
    ///
    /// # Errors
    /// If no process listens.
    pub async fn open_with_window(address: SocketAddr, window: u32) -> io::Result<Self> {
        let mut connection = Self::open(address).await?;
        connection.send(PREFACE).await?;
        let mut settings = Vec::new();
        // Without a compression table, no header block refers to an earlier one, so `grpc_status` needs no state.
        for (name, value) in [(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, window)] {
            settings.extend(name.to_be_bytes());
            settings.extend(u32::to_be_bytes(value));
        }
        connection.frame(SETTINGS, 0, 0, &settings).await?;
        Ok(connection)
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// If the server has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the server has closed the connection.
    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.send(&frame).await
    }

    /// Calls a gRPC method on the stream with this odd number: sends the headers, and the request as one message.
    ///
    /// # Errors
    /// If the server has closed the connection.
    pub async fn call(&mut self, stream: u32, path: &str, more: &[(&str, &str)], request: &[u8]) -> io::Result<()> {
        self.frame(HEADERS, END_HEADERS, stream, &head(path, more)).await?;
        let mut message = vec![0];
        message.extend((request.len() as u32).to_be_bytes());
        message.extend(request);
        self.frame(DATA, END_STREAM, stream, &message).await
    }

    /// Increases the flow-control window of a stream, or of the connection (0), by this many bytes.
    ///
    /// # Errors
    /// If the server has closed the connection.
    pub async fn increase_window(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await
    }

    /// The next frame; none if the server closes the connection. Acknowledges SETTINGS and PING frames before it.
    ///
    /// # Errors
    /// If no frame arrives within `limit`, or the connection breaks.
    pub async fn receive(&mut self, limit: Duration) -> io::Result<Option<Frame>> {
        let end = Instant::now() + limit;
        loop {
            let timeout = async {
                smol::Timer::at(end).await;
                Err(io::Error::new(io::ErrorKind::TimedOut, "no frame has arrived"))
            };
            let Some(frame) = or(self.read_frame(), timeout).await? else { return Ok(None) };
            if !matches!(frame.kind, SETTINGS | PING) || frame.flags & ACK != 0 {
                return Ok(Some(frame));
            }
            self.frame(frame.kind, ACK, 0, if frame.kind == PING { &frame.payload } else { &[] }).await?;
        }
    }

    async fn read_frame(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [_, rest @ ..] = head;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) & 0x7fff_ffff;
        Ok(Some(Frame { kind: head[3], flags: head[4], stream, payload }))
    }

    /// Waits until the server closes the connection, and ignores the frames before that.
    ///
    /// # Errors
    /// If it does not close within `limit`.
    pub async fn until_closed(&mut self, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let timeout = async {
                smol::Timer::at(end).await;
                Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was not closed"))
            };
            match or(self.read_frame(), timeout).await {
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }
}

/// The header block of a gRPC call.
pub fn head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let call = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")];
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut block = Vec::new();
    for (name, value) in call.iter().chain(&grpc).chain(more) {
        // A literal header field without indexing.
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len(), 0);
            block.extend(text.bytes());
        }
    }
    block
}

/// An HPACK integer with a 7-bit prefix.
fn length(block: &mut Vec<u8>, mut length: usize, flag: u8) {
    if length < 127 {
        block.push(flag | length as u8);
        return;
    }
    block.push(flag | 127);
    length -= 127;
    while length >= 128 {
        block.push((length % 128) as u8 | 128);
        length /= 128;
    }
    block.push(length as u8);
}

/// An HPACK string in the Huffman code, which servers use; for the characters of `grpc-status` alone.
fn huffman_string(text: &str) -> Vec<u8> {
    let (mut bits, mut count) = (0_u128, 0);
    for character in text.chars() {
        let (code, width) = match character {
            '0' => (0x0, 5),
            '1' => (0x1, 5),
            '2' => (0x2, 5),
            digit @ '3'..='9' => (0x19 + u128::from(digit as u8 - b'3'), 6),
            'a' => (0x3, 5),
            'c' => (0x4, 5),
            's' => (0x8, 5),
            't' => (0x9, 5),
            '-' => (0x16, 6),
            'g' => (0x26, 6),
            'p' => (0x2b, 6),
            'r' => (0x2c, 6),
            'u' => (0x2d, 6),
            other => panic!("the code of {other:?} is not in this table"),
        };
        bits = bits << width | code;
        count += width;
    }
    let padding = (8 - count % 8) % 8;
    bits = bits << padding | ((1 << padding) - 1);
    let bytes = (count + padding) / 8;
    let mut string = Vec::new();
    length(&mut string, bytes, 0x80);
    string.extend(&bits.to_be_bytes()[16 - bytes..]);
    string
}
