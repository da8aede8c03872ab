//! Free ports, for processes that cannot bind port 0 and report the port, or that must restart on the same port.

use std::{net::TcpListener, ops::Range};

/// Below the kernel's ephemeral ports, so that no outgoing connection takes the port between two runs of a process.
const PORTS: Range<u16> = 20_000..32_000;

/// A port on which no process listens. Another process may bind it before the caller does; the caller must then try another
/// port.
pub fn free() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        if is_free(port) {
            return port;
        }
    }
}

/// Whether no process listens on this port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
