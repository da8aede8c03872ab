use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use smol::net::{TcpStream, resolve};

use crate::timeout;

/// How long an address is tried before the next one is tried too (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Resolves a host name and connects to the first of its addresses that answers. The caller has a deadline.
///
/// # Errors
/// If the name cannot be resolved, or every address refuses the connection.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    connect_to(&resolve((host, port)).await?).await
}

/// Connects to the first of these addresses that answers. They are tried in their order, each while those before it are still
/// tried: one that answers nothing costs a quarter of a second, and not the caller's deadline.
///
/// # Errors
/// If every address refuses the connection: its text has each with its reason.
pub async fn connect_to(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let (mut untried, mut attempts, mut errors) = (addresses.iter().copied(), FuturesUnordered::new(), Vec::new());
    loop {
        attempts.extend(untried.next().map(attempt));
        let limit = if untried.len() == 0 { Duration::MAX } else { HEAD_START };
        match timeout(limit, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => errors.push(error),
            Ok(None) => return Err(refused(errors)),
            Err(_) => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect(address).await.map_err(|error| with_address(&address, &error))
}

fn with_address(address: &SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{address}: {error}"))
}

fn refused(errors: Vec<io::Error>) -> io::Error {
    let kind = errors.last().map_or(io::ErrorKind::NotFound, io::Error::kind);
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    io::Error::new(kind, if texts.is_empty() { "the host has no address".to_owned() } else { texts.join("; ") })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Instant};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// An address that answers no connection: its queue is full. It is one as long as the sockets live.
    fn black_hole() -> (SocketAddr, Vec<Socket>) {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut sockets = vec![listener];
        loop {
            let client = socket();
            let connected = client.connect_timeout(&address.into(), Duration::from_millis(200));
            sockets.push(client);
            if connected.is_err() {
                return (address, sockets);
            }
        }
    }

    #[test]
    fn an_address_that_answers_nothing_keeps_nobody_from_the_next_one() {
        let ((hole, _full), (other_hole, _also_full)) = (black_hole(), black_hole());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        for addresses in [vec![good], vec![good, hole], vec![hole, good], vec![hole, other_hole, good]] {
            let started = Instant::now();
            let stream = smol::block_on(timeout(Duration::from_secs(10), connect_to(&addresses))).unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good);
            let holes = addresses.iter().position(|address| *address == good).unwrap() as u32;
            assert!(started.elapsed() >= HEAD_START * holes, "{addresses:?}: {:?}", started.elapsed());
        }
    }

    #[test]
    fn addresses_that_refuse_are_named_and_cost_no_time() {
        let refusing = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (one, two) = (refusing(), refusing());
        let error = smol::block_on(connect_to(&[one, two])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let text = error.to_string();
        assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
        assert!(smol::block_on(connect_to(&[])).is_err());

        let (hole, _full) = black_hole();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let started = Instant::now();
        smol::block_on(connect_to(&[one, two, listener.local_addr().unwrap(), hole])).unwrap();
        assert!(started.elapsed() < HEAD_START, "{:?}", started.elapsed());
    }
}
