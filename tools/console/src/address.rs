//! Addresses and URLs in settings.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
};

use config::{Authority, HostPort, Value};

/// Name or address with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostAddress(pub(crate) HostPort);

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl HostAddress {
    /// Every address behind the name, in order: one for each replica where a name has several.
    ///
    /// # Errors
    /// If the name cannot be looked up.
    pub(crate) async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let HostPort { host, port } = self.0.clone();
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        // The resolver blocks.
        let found =
            smol::unblock(move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)).await;
        let mut found = found?;
        // `localhost` and others have an address of either kind, which leads to the same process.
        if found.iter().any(SocketAddr::is_ipv4) {
            found.retain(SocketAddr::is_ipv4);
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

/// `http://host:port/path`, or the same with https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether the scheme is https.
    pub(crate) is_tls: bool,
    pub(crate) authority: HostAddress,
    /// Without a query; empty or with a slash at its beginning.
    pub(crate) path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl Value for Url {
    const EXPECTED: &'static str = "http://host:port or https://host:port, perhaps with a path";

    fn parse(text: &str) -> Result<Self, String> {
        let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("it does not begin with http:// or https://".to_owned()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if path.contains(['?', '#', ' ']) {
            return Err("it has more than a path".to_owned());
        }
        let Authority { host, port } = Authority::parse(authority)?;
        let port = port.unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { is_tls, authority: HostAddress(HostPort { host, port }), path: path.to_owned() })
    }
}
