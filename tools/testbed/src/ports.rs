//! Ports for processes that cannot bind port 0 and tell which one they got, or that must come back on the same port.

use std::{net::TcpListener, ops::Range};

/// Below the range from which the kernel gives ports to outgoing connections, so that none of those takes ours between
/// two runs of a process.
const PORTS: Range<u16> = 20_000..32_000;

/// A port that nobody listens on. Another process may take it before it is used; whoever starts something on it tries
/// again with another one then.
pub fn free() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        if is_free(port) {
            return port;
        }
    }
}

/// Whether nobody listens on this port of the loopback address.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
