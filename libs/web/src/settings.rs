use std::{net::IpAddr, net::SocketAddr, time::Duration};

use config::{Bounded, Reader};

use crate::{Limits, TrustedProxies};

/// Where a server listens, and its limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to bind; port 0 takes a free one.
    pub address: SocketAddr,
    /// The limits.
    pub limits: Limits,
    /// The proxies whose `X-Forwarded-Prefix` counts.
    pub trusted_proxies: TrustedProxies,
}

impl Settings {
    /// Reads `SERVER_ADDRESS`, `SERVER_PORT` and the limits that operators can set.
    pub fn read(reader: &mut Reader, default_port: &'static str) -> Self {
        let mut settings = Self::read_for_operations(reader, default_port);
        let in_flight: Bounded<1, 100_000> =
            reader.variable(&["HTTP_MAX_IN_FLIGHT"], "HTTP requests handled at once; more get 503").or("512");
        settings.limits.in_flight = in_flight.size();
        settings
    }

    /// The same for a service that serves only health and metrics, which have no limit of requests in flight.
    pub fn read_for_operations(reader: &mut Reader, default_port: &'static str) -> Self {
        let ip: IpAddr = reader.variable(&["SERVER_ADDRESS"], "address that the HTTP server binds").or("127.0.0.1");
        let port = reader.variable(&["SERVER_PORT"], "port of the HTTP server").or(default_port);
        let connections: Bounded<1, 100_000> =
            reader.variable(&["HTTP_MAX_CONNECTIONS"], "open HTTP connections").or("4096");
        let buffers: Bounded<1_048_576, 1_073_741_824> = reader
            .variable(
                &["HTTP_BUFFER_MEMORY"],
                "bytes of memory for what HTTP clients have not sent or taken completely",
            )
            .or("16777216");
        // Longer than the idle timeout of load balancers (Google's: 600 s). The server must not close first, because a
        // request may be on its way.
        let idle_timeout: Duration =
            reader.variable(&["HTTP_IDLE_TIMEOUT"], "time that an idle HTTP connection is kept open").or("620s");
        let trusted_proxies = reader
            .variable(&["HTTP_TRUSTED_PROXIES"], "proxies whose X-Forwarded-Prefix counts, by address or network")
            .or("none");
        let drain: Duration =
            reader.variable(&["SHUTDOWN_TIMEOUT"], "time for requests in flight after SIGTERM").or("10s");
        Self {
            address: SocketAddr::new(ip, port),
            limits: Limits {
                connections: connections.size(),
                buffers: buffers.size(),
                idle_timeout,
                drain,
                ..Limits::default()
            },
            trusted_proxies,
        }
    }
}
