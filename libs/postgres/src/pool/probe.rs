//! Whether a port speaks PostgreSQL's protocol, before sqlx reads from it.
//!
//! sqlx takes the first bytes of whatever answers for the head of a message and reserves memory for its length: `HTTP` is one of
//! 1.4 GB. With TLS it reads a single byte first.

use smol::{
    io::{self, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::unavailable;
use crate::Error;

/// `SSLRequest`: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Longest `ErrorResponse` to it, as libpq has it.
const MAX_ERROR_LENGTH: u32 = 30_000;

/// What the postmaster writes, and closes the connection, if it has no process for it: `E` and a line of text without a length.
const FORK_FAILURE: &[u8] = b"Ecould not fork";

/// Asks for TLS on a connection of its own. If that cannot be opened, connecting finds out why.
///
/// # Errors
/// If the answer is not one of PostgreSQL's, or if it has no process for a connection.
pub(super) async fn check(options: &PgConnectOptions) -> Result<(), Error> {
    let is_plaintext_tcp = options.get_socket().is_none() && matches!(options.get_ssl_mode(), PgSslMode::Disable);
    if !is_plaintext_tcp {
        return Ok(());
    }
    let (host, port) = (options.get_host(), options.get_port());
    let Ok(mut stream) = TcpStream::connect((host, port)).await else { return Ok(()) };
    let asking = async {
        stream.write_all(&SSL_REQUEST).await?;
        Answer::read(stream).await
    };
    match asking.await.map_err(sqlx::Error::Io)? {
        Answer::OfPostgresql => Ok(()),
        Answer::ForkFailure => {
            Err(unavailable(format!("the server at {host}:{port} could not fork a process for the connection")))
        }
        Answer::Missing => Err(unavailable(format!("{host}:{port} closes the connection without an answer"))),
        Answer::OfOther => {
            Err(unavailable(format!("{host}:{port} is no PostgreSQL server; check the host and the port")))
        }
    }
}

/// The answer to `SSLRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// One that PostgreSQL, or a proxy before it, may give.
    OfPostgresql,
    /// [`FORK_FAILURE`]. sqlx would take it for the length of a message too.
    ForkFailure,
    Missing,
    OfOther,
}

impl Answer {
    /// Reads as much as shows what it is: a message may arrive in parts.
    async fn read(mut stream: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut answer = [0; FORK_FAILURE.len()];
        let mut length = 0;
        loop {
            let more = stream.read(&mut answer[length..]).await?;
            length += more;
            match Self::of(&answer[..length]) {
                Some(answer) => return Ok(answer),
                None if length == 0 => return Ok(Self::Missing),
                None if more == 0 => return Ok(Self::OfOther),
                None => {}
            }
        }
    }

    /// What these first bytes show, if they suffice. After `S` or `N`, PostgreSQL waits for the client.
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [b'S' | b'N'] => Some(Self::OfPostgresql),
            [b'E', a, b, c, d, ..] if (4..=MAX_ERROR_LENGTH).contains(&u32::from_be_bytes([*a, *b, *c, *d])) => {
                Some(Self::OfPostgresql)
            }
            FORK_FAILURE => Some(Self::ForkFailure),
            [b'E', rest @ ..] if rest.len() < size_of::<u32>() => None,
            _ if FORK_FAILURE.starts_with(start) => None,
            _ => Some(Self::OfOther),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_of_postgresql_are_read_on_in_however_many_parts_they_arrive() {
        runtime::block_on(1, async {
            for (answer, expected) in [
                (&b"S"[..], Answer::OfPostgresql),
                (b"N", Answer::OfPostgresql),
                (b"E\0\0\0\x60SFATAL\0C53300\0", Answer::OfPostgresql),
                (b"Ecould not fork new process for connection: Cannot allocate memory\n", Answer::ForkFailure),
                (b"", Answer::Missing),
                (b"E", Answer::OfOther),
                (b"Ecould not", Answer::OfOther),
                (b"HTTP/1.1 400 Bad Request\r\n", Answer::OfOther),
                (b"ERROR\r\n", Answer::OfOther),
                (b"-ERR unknown command\r\n", Answer::OfOther),
                (b"220 smtp\r\n", Answer::OfOther),
            ] {
                for first in 0..=answer.len() {
                    let (first, rest) = answer.split_at(first);
                    // A read returns bytes of one of the two.
                    assert_eq!(Answer::read(first.chain(rest)).await.unwrap(), expected, "{first:?} {rest:?}");
                }
            }
            // Its first byte is an answer of PostgreSQL's.
            assert_eq!(Answer::read(&b"SSH-2.0-OpenSSH_9.6\r\n"[..]).await.unwrap(), Answer::OfOther);
        });
    }
}
