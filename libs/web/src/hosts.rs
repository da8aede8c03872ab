use std::net::Ipv4Addr;

use config::Value;

/// Names under which clients reach the service, besides `localhost` and its addresses; without the dot that may end a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Whether the value of a `Host` header is one of them. HTTP/1.0 clients may omit it.
    pub(crate) fn contain(&self, host: &str) -> bool {
        if host.starts_with('[') {
            return true;
        }
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name);
        name.is_empty()
            || name.eq_ignore_ascii_case("localhost")
            || name.parse::<Ipv4Addr>().is_ok()
            || self.0.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

impl Value for Hosts {
    const EXPECTED: &'static str = "none, or host names, separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        // none may be one of several: the compose files add what the user has set to their own names.
        let names = text.split(',').map(str::trim).filter(|name| *name != "none").map(|name| {
            let config::Authority { host, port } = config::Authority::parse(name)?;
            match port {
                Some(_) => Err("one of them has a port".to_owned()),
                None => Ok(host.strip_suffix('.').unwrap_or(&host).to_owned()),
            }
        });
        names.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_ours_by_name_or_is_an_address() {
        let hosts = Hosts::parse("patient-service, Gateway.example.org,patients.svc.cluster.local.").unwrap();
        for own in [
            "",
            "localhost",
            "LOCALHOST:4000",
            "localhost.",
            "127.0.0.1:4000",
            "10.0.0.7",
            "[::1]:4000",
            "[fe80::1]",
            "patient-service:4000",
            "gateway.example.org",
            "gateway.example.org.:80",
            "patients.svc.cluster.local",
            "patients.svc.cluster.local.:4000",
        ] {
            assert!(hosts.contain(own), "{own}");
        }
        for foreign in
            ["evil.example", "evil.example:4000", "127.0.0.1.evil.example", "localhost.evil.example", "service", "1"]
        {
            assert!(!hosts.contain(foreign), "{foreign}");
        }
        for wrong in ["", "a:80", "a b", "a,", "none:80"] {
            assert!(Hosts::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Hosts::parse("none"), Ok(Hosts::default()));
        for one in ["a,none", "none, a"] {
            assert_eq!(Hosts::parse(one), Hosts::parse("a"), "{one}");
        }
    }
}
