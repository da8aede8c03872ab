use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_lite::AsyncBufRead;

/// [`AsyncRead::poll_read`](futures_lite::AsyncRead::poll_read) of a reader that has its bytes in a buffer.
pub(crate) fn poll_read(
    mut reader: Pin<&mut impl AsyncBufRead>,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let available = ready!(reader.as_mut().poll_fill_buf(context))?;
    let length = available.len().min(buffer.len());
    buffer[..length].copy_from_slice(&available[..length]);
    reader.consume(length);
    Poll::Ready(Ok(length))
}
