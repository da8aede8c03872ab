//! The head of a request, which the server reads up to its end before hyper does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_lite::AsyncRead as _;

use crate::{chunks::ChunkedBuffer, connections::Socket};

/// Bytes of a head that are read at once.
const READ_SIZE: usize = 4 * 1024;

/// A head that arrives in chunks.
pub(crate) struct Head {
    pub(crate) bytes: ChunkedBuffer,
    end: End,
}

/// How much of a head has been scanned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Only empty lines, which are allowed before a head.
    Before,
    /// Within a line.
    Line,
    /// At the start of a line, possibly after a carriage return.
    Break,
    Whole,
}

impl Head {
    /// A head that starts with these bytes, which hyper has read and handed back.
    pub(crate) fn of(buffer: ChunkedBuffer, bytes: &[u8]) -> Self {
        let mut head = Self { bytes: buffer, end: End::Before };
        head.push(bytes);
        // For hyper it is not complete.
        if head.end == End::Whole {
            head.end = End::Line;
        }
        head
    }

    /// Reads the next bytes; 0 is the end of the connection.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut tls::Stream<Socket>,
    ) -> Poll<io::Result<usize>> {
        let mut piece = [0; READ_SIZE];
        let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut piece))?;
        stream.get_mut().decrypted();
        self.push(&piece[..read]);
        Poll::Ready(Ok(read))
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.end == End::Whole
    }

    /// Appends bytes, unless they are empty lines before the head: those are ignored (RFC 9112, section 2.2), and the
    /// head has not begun.
    fn push(&mut self, bytes: &[u8]) {
        self.scan(bytes);
        if self.end != End::Before {
            self.bytes.push(bytes);
        }
    }

    /// Scans for the empty line that ends a head. What does not start like a method is complete at once, so that hyper
    /// rejects it.
    fn scan(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.end = match (self.end, byte) {
                (End::Whole, _) => return,
                (End::Before, b'\r' | b'\n') => End::Before,
                (End::Before, byte) if !byte.is_ascii_graphic() => End::Whole,
                (End::Break, b'\n') => End::Whole,
                (End::Line, b'\n') | (End::Break, b'\r') => End::Break,
                _ => End::Line,
            };
        }
    }
}
