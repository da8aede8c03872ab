//! Free ports, for processes that cannot bind port 0 and report the port, or that must restart on the same port.

use std::{
    net::TcpListener,
    ops::Range,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

/// Below the kernel's ephemeral ports, so that no outgoing connection takes the port between two runs of a process.
const PORTS: Range<u16> = 20_000..32_000;

/// A port on which no process listens, and that this process has not been given lately: tests run beside each other, and what
/// one starts binds its port later. Another process may bind it before the caller does; the caller must then try another port.
pub fn free() -> u16 {
    // Each process begins elsewhere.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        if is_free(port) {
            return port;
        }
    }
}

/// Whether no process listens on this port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_that_are_not_bound_yet_are_given_to_no_other() {
        let ports: BTreeSet<u16> = (0..1_000).map(|_| free()).collect();
        assert_eq!(ports.len(), 1_000);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }
}
