use std::{net::IpAddr, net::SocketAddr, path::Path, time::Duration};

use config::{Bounded, Reader};

use crate::{Hosts, Limits, Origins, TrustedProxies};

/// Where a server listens, and its limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to bind; port 0 takes a free one.
    pub address: SocketAddr,
    /// The limits.
    pub limits: Limits,
    /// The proxies whose `X-Forwarded-Prefix` counts.
    pub trusted_proxies: TrustedProxies,
    /// Who has to say who they are.
    pub auth: auth::Settings,
    /// Names of the service, for [`Edge`](crate::Edge).
    pub hosts: Hosts,
    /// Origins whose scripts may call.
    pub origins: Origins,
    /// The callers whose trace a request continues; those of others begin a new one, with a link to theirs.
    pub trace_callers: TrustedProxies,
    /// Where health with its details and metrics are served, besides the port of the service.
    pub operations: Option<SocketAddr>,
    /// TLS; none for plaintext.
    pub tls: Option<tls::ServerSettings>,
}

impl Settings {
    /// Reads `SERVER_ADDRESS`, `SERVER_PORT`, the files for TLS and the limits that operators can set.
    pub fn read(reader: &mut Reader, default_port: &'static str) -> Self {
        let settings = Self::read_for_operations(reader, default_port);
        settings.with_in_flight(reader)
    }

    /// The same for a service that serves only health and metrics, which have no limit of requests in flight.
    pub fn read_for_operations(reader: &mut Reader, default_port: &'static str) -> Self {
        let settings = Self::read_server(reader, default_port);
        let ip = settings.address.ip();
        let auth = auth::Settings::read(reader);
        auth.check_address(reader, "SERVER_ADDRESS", ip);
        let is_off = matches!(auth.mode, auth::Mode::Off { .. });
        let hosts = reader
            .variable(&["HTTP_HOSTS"], "names by which clients reach the service, besides localhost, while AUTH is off")
            .or("none");
        let origins =
            reader.variable(&["CORS_ORIGINS"], "origins of the pages whose scripts may call the service").or("none");
        let about =
            "callers whose trace is continued, by address or network: by default all while AUTH is off, else none";
        let trace_callers = reader.variable(&["HTTP_TRACE_CALLERS"], about).optional();
        let trace_callers =
            trace_callers.unwrap_or_else(|| if is_off { TrustedProxies::all() } else { TrustedProxies::default() });
        let operations_ip: IpAddr =
            reader.variable(&["OPERATIONS_ADDRESS"], "address that the operations port binds").or("127.0.0.1");
        let about = "port of metrics and of health with its details; with AUTH=jwt they are on no other port";
        let operations: Option<u16> = reader.variable(&["OPERATIONS_PORT"], about).optional();
        let operations = operations.map(|port| SocketAddr::new(operations_ip, port));
        Self { auth, hosts, origins, trace_callers, operations, ..settings }
    }

    /// The same for a program that identifies nobody by a token on any address: one that issues them, or a tool.
    pub fn read_open(reader: &mut Reader, default_port: &'static str) -> Self {
        Self::read_server(reader, default_port).with_in_flight(reader)
    }

    fn with_in_flight(mut self, reader: &mut Reader) -> Self {
        let in_flight: Bounded<1, 100_000> =
            reader.variable(&["HTTP_MAX_IN_FLIGHT"], "HTTP requests handled at once; more get 503").or("512");
        self.limits.in_flight = in_flight.size();
        self
    }

    fn read_server(reader: &mut Reader, default_port: &'static str) -> Self {
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
        let variables = tls::ServerVariables {
            certificate: &["SERVER_TLS_CERTIFICATE"],
            key: &["SERVER_TLS_KEY"],
            client_ca: None,
        };
        let tls = tls::ServerSettings::read(reader, variables);
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
            auth: auth::Settings { mode: auth::Mode::Off { on_network: false } },
            hosts: Hosts::default(),
            origins: Origins::default(),
            trace_callers: TrustedProxies::all(),
            operations: None,
            tls,
        }
    }

    /// The settings of the operations port's server.
    pub fn for_operations(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// Where the server listens, and the file with its certificate if it speaks TLS.
    pub(crate) fn address_and_certificate(&self) -> (SocketAddr, Option<&Path>) {
        (self.address, self.tls.as_ref().map(|files| files.certificate.as_path()))
    }
}
