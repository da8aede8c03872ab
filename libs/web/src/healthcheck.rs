//! The command `healthcheck` of a service.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use crate::{Settings, health::READINESS};

/// Timeout of the connection, and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Queries the readiness endpoint of the running service with these settings, and prints the response. For the health check of a
/// container: the images have no shell or curl.
pub fn healthcheck(settings: &Settings) -> ExitCode {
    let (address, certificate) = settings.address_and_certificate();
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    match get_readiness(SocketAddr::new(ip, address.port()), certificate) {
        Ok(answer) => {
            let ready = answer.split(' ').nth(1) == Some("200");
            let body = answer.split_once("\r\n\r\n").map_or("no answer", |(_, body)| body);
            println!("{body}");
            if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("no answer from {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn get_readiness(address: SocketAddr, certificate: Option<&Path>) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    match certificate {
        None => ask_readiness(stream),
        Some(file) => ask_readiness(tls::connect_to_own_certificate(file, stream)?),
    }
}

fn ask_readiness(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(format!("GET {READINESS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
