use config::{Authority, Value};

/// Schemes before `//` for plaintext HTTP/2 to a host that the system's resolver knows. `static` is written by Spring's gRPC
/// clients; `dns` and `passthrough` are gRPC's own.
const PLAINTEXT: [&str; 5] = ["http", "grpc", "dns", "passthrough", "static"];
/// Those of them with an authority, which names a resolver and is empty here: `dns:///host:port`.
const WITH_AUTHORITY: [&str; 2] = ["dns", "passthrough"];
/// Schemes for HTTP/2 over TLS.
const TLS: [&str; 4] = ["https", "grpcs", "ssl", "tls"];

/// The address of a gRPC peer in any common form: `host`, `host:port`, `http://host:port`, `https://host:port`,
/// `dns:///host:port`, `[::1]:port`, `ipv4:` and `ipv6:` addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port.
    pub authority: Authority,
    /// Whether its scheme is one of TLS.
    pub is_tls: bool,
}

impl Value for Target {
    const EXPECTED: &'static str =
        "host, host:port, http://host:port, https://host:port or dns:///host:port; an IPv6 address in brackets";

    fn parse(text: &str) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            let scheme = scheme.to_ascii_lowercase();
            if TLS.contains(&scheme.as_str()) {
                return authority(rest.strip_suffix('/').unwrap_or(rest)).map(|target| Self { is_tls: true, ..target });
            }
            if !PLAINTEXT.contains(&scheme.as_str()) {
                return Err("its scheme is none of http, https, grpc, grpcs, dns, passthrough and static".to_owned());
            }
            let rest = match rest.strip_prefix('/') {
                Some(rest) if WITH_AUTHORITY.contains(&scheme.as_str()) => rest,
                None if WITH_AUTHORITY.contains(&scheme.as_str()) => {
                    return Err("it names a resolver; the system's own is used: write dns:///host:port".to_owned());
                }
                _ => rest,
            };
            // A slash at the end is the empty path of a URL.
            return authority(rest.strip_suffix('/').unwrap_or(rest));
        }
        // gRPC's schemes without slashes. A host may have such a name too, with a port or nothing after it.
        let is_port = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        match text.split_once(':') {
            Some(("dns", rest)) if !is_port(rest) => authority(rest),
            Some(("ipv4", rest)) if !is_port(rest) => address(rest, |host| host.parse::<std::net::Ipv4Addr>().is_ok()),
            Some(("ipv6", rest)) if !is_port(rest) => address(rest, |host| host.parse::<std::net::Ipv6Addr>().is_ok()),
            Some(("unix" | "unix-abstract" | "vsock", rest)) if !is_port(rest) => {
                Err("it is not a TCP address, and nothing else is supported".to_owned())
            }
            _ => authority(text),
        }
    }
}

fn authority(text: &str) -> Result<Target, String> {
    if text.contains('/') {
        return Err("it has a path, which a gRPC peer does not have".to_owned());
    }
    if text.contains('@') {
        return Err("it has a user, and gRPC has no such authentication".to_owned());
    }
    if text.contains(',') {
        return Err("it is more than one address".to_owned());
    }
    Authority::parse(text).map(|authority| Target { authority, is_tls: false })
}

fn address(text: &str, is_right: impl Fn(&str) -> bool) -> Result<Target, String> {
    let target = authority(text)?;
    if is_right(&target.authority.host) {
        Ok(target)
    } else {
        Err("its address is not of the family that it names".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_is_read() {
        for (text, host, port) in [
            ("billing-service", "billing-service", None),
            ("billing-service:9001", "billing-service", Some(9001)),
            ("http://billing-service", "billing-service", None),
            ("http://billing-service/", "billing-service", None),
            ("http://billing-service:9001", "billing-service", Some(9001)),
            ("HTTP://billing-service:9001/", "billing-service", Some(9001)),
            ("grpc://10.0.0.7:9001", "10.0.0.7", Some(9001)),
            ("static://localhost:9001", "localhost", Some(9001)),
            ("dns:///billing.example.org:9001", "billing.example.org", Some(9001)),
            ("dns:///billing", "billing", None),
            ("dns:billing:9001", "billing", Some(9001)),
            ("passthrough:///billing:9001", "billing", Some(9001)),
            ("ipv4:10.0.0.7:9001", "10.0.0.7", Some(9001)),
            ("ipv6:[::1]:9001", "::1", Some(9001)),
            ("[::1]", "::1", None),
            ("[::1]:9001", "::1", Some(9001)),
            ("http://[::1]:9001", "::1", Some(9001)),
            // Hosts with the name of a scheme.
            ("dns", "dns", None),
            ("dns:9001", "dns", Some(9001)),
            ("unix:9001", "unix", Some(9001)),
        ] {
            let expected = Target { authority: Authority { host: host.to_owned(), port }, is_tls: false };
            assert_eq!(Target::parse(text), Ok(expected), "{text:?}");
        }
        for scheme in ["https", "grpcs", "ssl", "TLS"] {
            let expected = Target { authority: Authority::parse("billing-service:9001").unwrap(), is_tls: true };
            assert_eq!(Target::parse(&format!("{scheme}://billing-service:9001/")), Ok(expected), "{scheme}");
        }
    }

    #[test]
    fn unusable_addresses_are_rejected_with_the_reason() {
        for (text, reason) in [
            ("https://billing-service:9001/api", "path"),
            ("xds:///billing-service", "scheme"),
            ("discovery:///billing-service", "scheme"),
            ("://billing-service", "scheme"),
            ("dns://8.8.8.8/billing-service:9001", "resolver"),
            ("unix:/run/billing.sock", "TCP"),
            ("unix:///run/billing.sock", "scheme"),
            ("vsock:1:2", "TCP"),
            ("http://billing-service:9001/api", "path"),
            ("billing-service/", "path"),
            ("http://user:hunter2@billing-service", "user"),
            ("http://", "host name"),
            ("http://:9001", "host name"),
            ("billing-service:", "port"),
            ("billing-service:0", "port is 0"),
            ("billing-service:70000", "port"),
            ("http://billing-service:http", "port"),
            ("billing service", "host name"),
            ("billing-1:9001,billing-2:9001", "more than one"),
            ("ipv4:billing:9001", "family"),
            ("ipv6:10.0.0.7:9001", "family"),
            ("::1", "brackets"),
            ("http://::1:9001", "brackets"),
            ("[::1", "bracket"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
