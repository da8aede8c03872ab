//! Network addresses in settings. They are validated at the start, with a reason: an address that is accepted and
//! cannot be used would show as an outage hours later.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{Value, value::from_str};

/// The longest host name, in characters (RFC 1035).
const MAX_NAME_LENGTH: usize = 253;

/// An IP address to bind. `localhost` is 127.0.0.1, and an IPv6 address may stand in brackets; other names are
/// rejected, because one name may have several addresses.
impl Value for IpAddr {
    const EXPECTED: &'static str = "an IP address";

    fn parse(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Self::V4(Ipv4Addr::LOCALHOST));
        }
        match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(inner) => from_str::<Ipv6Addr>(inner).map(Self::V6),
            None => from_str(text),
        }
    }
}

/// A host name or address, with a port or without: `host`, `host:port`, `[::1]:9001`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port, never 0.
    pub port: Option<u16>,
}

impl Value for Authority {
    const EXPECTED: &'static str = "host or host:port; an IPv6 address in brackets";

    fn parse(text: &str) -> Result<Self, String> {
        if text.parse::<Ipv6Addr>().is_ok() {
            // Ambiguous: the last group of `::1:9001` could be a port.
            return Err("it is an IPv6 address without brackets".to_owned());
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inner, rest) = rest.split_once(']').ok_or("its bracket is not closed")?;
                inner.parse::<Ipv6Addr>().map_err(|_| "its brackets do not contain an IPv6 address")?;
                match rest.strip_prefix(':') {
                    _ if rest.is_empty() => (inner, None),
                    Some(port) => (inner, Some(port)),
                    None => return Err("something other than a port follows its bracket".to_owned()),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (check_name(host)?, Some(port)),
                None => (check_name(text)?, None),
            },
        };
        let port = port.map(parse_port).transpose()?;
        Ok(Self { host: host.to_owned(), port })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("its port is not a number".to_owned());
    }
    match from_str(text).map_err(|why| format!("in its port, {why}"))? {
        0 => Err("its port is 0".to_owned()),
        port => Ok(port),
    }
}

/// A host name or an IPv4 address. Host names may not contain underscores, but names of containers do.
fn check_name(name: &str) -> Result<&str, String> {
    let letters = |label: &str| label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let mut labels = name.strip_suffix('.').unwrap_or(name).split('.');
    if name.len() > MAX_NAME_LENGTH || !labels.all(|label| !label.is_empty() && label.len() < 64 && letters(label)) {
        return Err("its host is not a host name".to_owned());
    }
    // A last label that is a number makes it an address; resolvers would read `10.1` as 10.0.0.1.
    let number = name.rsplit('.').find(|label| !label.is_empty()).is_some_and(|label| label.parse::<u64>().is_ok());
    if number && name.parse::<Ipv4Addr>().is_err() {
        return Err("its host is not an IP address".to_owned());
    }
    Ok(name)
}

/// A host name or address with a port, `host:port`; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Value for HostPort {
    const EXPECTED: &'static str = "host:port; an IPv6 address in brackets";

    fn parse(text: &str) -> Result<Self, String> {
        let Authority { host, port } = Authority::parse(text)?;
        Ok(Self { host, port: port.ok_or("it has no port")? })
    }
}

/// One or more [`HostPort`]s, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts(pub Vec<HostPort>);

impl Value for HostPorts {
    const EXPECTED: &'static str = "host:port, or several of them separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        parse_list(text, |text| match text.split_once("://") {
            Some(_) => Err("it has a protocol".to_owned()),
            None => HostPort::parse(text),
        })
    }
}

fn parse_list(text: &str, one: impl Fn(&str) -> Result<HostPort, String>) -> Result<HostPorts, String> {
    text.split(',').map(|address| one(address.trim())).collect::<Result<_, _>>().map(HostPorts)
}

/// Kafka's `bootstrap.servers`: [`HostPorts`], each of which may have the security protocol before it, as in Kafka's
/// listeners, if that is PLAINTEXT: `PLAINTEXT://host:port`. Another one is a setting of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapServers(pub HostPorts);

impl Value for BootstrapServers {
    const EXPECTED: &'static str = HostPorts::EXPECTED;

    fn parse(text: &str) -> Result<Self, String> {
        let all = parse_list(text, |text| match text.split_once("://") {
            Some((protocol, address)) if protocol.eq_ignore_ascii_case("PLAINTEXT") => HostPort::parse(address),
            Some(_) => Err("it has a protocol, which KAFKA_SECURITY_PROTOCOL names".to_owned()),
            None => HostPort::parse(text),
        });
        all.map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_port(text: &str) -> Result<String, String> {
        HostPort::parse(text).map(|address| address.to_string())
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port_or_without() {
        for (text, host, port) in [
            ("localhost", "localhost", None),
            ("billing-service:9001", "billing-service", Some(9001)),
            ("billing_service_1:9001", "billing_service_1", Some(9001)),
            ("billing.default.svc.cluster.local.:1", "billing.default.svc.cluster.local.", Some(1)),
            ("10.0.0.7", "10.0.0.7", None),
            ("10.0.0.7:65535", "10.0.0.7", Some(65535)),
            ("[::1]", "::1", None),
            ("[2001:db8::7]:9001", "2001:db8::7", Some(9001)),
        ] {
            let expected = Authority { host: host.to_owned(), port };
            assert_eq!(Authority::parse(text), Ok(expected), "{text:?}");
        }
        for wrong in [
            "",
            ":9001",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:+1",
            "host:a",
            "a:1:2",
            "http://x:1",
            "x/y",
            "x:1/",
            "u@x",
            "u:p@x:1",
            "a b",
            " x",
            "x ",
            "x..y",
            ".x",
            "naïve",
            "::1",
            "::1:9001",
            "[::1",
            "::1]",
            "[::1]9001",
            "[::1]:",
            "[x]:1",
            "[127.0.0.1]:1",
            "[fe80::1%eth0]:1",
            "300.1.1.1",
            "10.1",
            "1",
            "x,y",
            "*",
        ] {
            assert!(Authority::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Authority::parse(&"x".repeat(64)).is_err());
        assert!(Authority::parse(&["x".repeat(63).as_str(); 4].join(".")).is_err());
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(host_port("[::1]:9092").as_deref(), Ok("[::1]:9092"));
        assert_eq!(host_port("localhost:9092").as_deref(), Ok("localhost:9092"));
        for wrong in
            ["localhost", "localhost:", ":9092", "http://x:1", "localhost:0", "localhost:99999", "::1", "::1:9092"]
        {
            assert!(HostPort::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bootstrap_brokers_have_the_form_of_kafka_clients() {
        let read = |text: &str| {
            BootstrapServers::parse(text)
                .map(|BootstrapServers(HostPorts(all))| all.iter().map(HostPort::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read("a:1, b:2").unwrap(), ["a:1", "b:2"]);
        assert_eq!(read("PLAINTEXT://a:1,plaintext://[::1]:2").unwrap(), ["a:1", "[::1]:2"]);
        for wrong in
            ["a:1,,b:2", "a:1,", "SSL://a:1", "SASL_PLAINTEXT://a:1", "http://a:1", "PLAINTEXT://a", "://a:1", "a"]
        {
            assert!(BootstrapServers::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(read("SSL://a:1").unwrap_err().contains("KAFKA_SECURITY_PROTOCOL"));
    }

    #[test]
    fn addresses_of_other_servers_have_no_protocol() {
        assert_eq!(HostPorts::parse("a:1, [::1]:2").map(|HostPorts(all)| all.len()), Ok(2));
        for wrong in ["PLAINTEXT://a:1", "http://a:1", "a:1,https://b:2"] {
            assert_eq!(HostPorts::parse(wrong), Err("it has a protocol".to_owned()), "{wrong:?}");
        }
        for wrong in ["", "a:1,", "a", "a:1/x"] {
            assert!(HostPorts::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_to_bind_is_one_address() {
        for (text, expected) in [
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
            ("[::1]", "::1"),
            ("localhost", "127.0.0.1"),
            ("127.0.0.2", "127.0.0.2"),
        ] {
            assert_eq!(IpAddr::parse(text).map(|ip| ip.to_string()).as_deref(), Ok(expected), "{text:?}");
        }
        for wrong in
            ["", "*", "example.org", "0.0.0.0:4000", "[::1]:4000", "[127.0.0.1]", "http://0.0.0.0", "fe80::1%eth0"]
        {
            assert!(IpAddr::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
