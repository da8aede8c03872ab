//! Whether a port speaks PostgreSQL's protocol, before sqlx reads from it.
//!
//! sqlx takes the first bytes of whatever answers for the head of a message and reserves memory for its length: `HTTP` is one of
//! 1.4 GB. With TLS it reads a single byte first.

use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::unavailable;
use crate::Error;

/// `SSLRequest`: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Longest `ErrorResponse` to it, as libpq has it.
const MAX_ERROR_LENGTH: u32 = 30_000;

/// Asks for TLS on a connection of its own. If there is none, connecting finds out why.
///
/// # Errors
/// If the answer is none of PostgreSQL's.
pub(super) async fn check(options: &PgConnectOptions) -> Result<(), Error> {
    let is_plaintext_tcp = options.get_socket().is_none() && matches!(options.get_ssl_mode(), PgSslMode::Disable);
    if !is_plaintext_tcp {
        return Ok(());
    }
    let (host, port) = (options.get_host(), options.get_port());
    let Ok(mut stream) = TcpStream::connect((host, port)).await else { return Ok(()) };
    let mut answer = [0; 8];
    let asking = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read(&mut answer).await
    };
    match asking.await.map_err(sqlx::Error::Io)? {
        0 => Err(unavailable(format!("{host}:{port} closes the connection without an answer"))),
        length if is_of_postgresql(&answer[..length]) => Ok(()),
        _ => Err(unavailable(format!("{host}:{port} is no PostgreSQL server; check the host and the port"))),
    }
}

/// Whether PostgreSQL, or a proxy before it, may answer `SSLRequest` like this. After `S` or `N` it waits for the client.
fn is_of_postgresql(answer: &[u8]) -> bool {
    match answer {
        [b'S' | b'N'] => true,
        [b'E', a, b, c, d, ..] => (4..=MAX_ERROR_LENGTH).contains(&u32::from_be_bytes([*a, *b, *c, *d])),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_of_postgresql_are_read_on() {
        for answer in [&b"S"[..], b"N", b"E\0\0\0\x60SFA"] {
            assert!(is_of_postgresql(answer), "{answer:?}");
        }
        for answer in [&b"HTTP/1.1"[..], b"SSH-2.0-", b"ERROR\r\n", b"-ERR unk", b"220 smtp"] {
            assert!(!is_of_postgresql(answer), "{answer:?}");
        }
    }
}
