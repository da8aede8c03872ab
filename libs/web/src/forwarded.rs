//! `X-Forwarded-Prefix`: the part of the path that a proxy has stripped.
//!
//! It is added to the paths in `Location` and `Link`. These have no host and scheme, so no other `X-Forwarded-*` header
//! is used. Any client can send it, so it counts only from the proxies that the operator trusts.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use config::Value;
use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue, LINK, LOCATION},
};

use crate::convert;

const HEADER: &str = "x-forwarded-prefix";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Bytes of a prefix at most.
const MAX_LENGTH: usize = 200;

/// The addresses of proxies whose `X-Forwarded-Prefix` counts. By default there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl TrustedProxies {
    /// Every address.
    pub(crate) fn all() -> Self {
        let network = |address: IpAddr| Network { address, bits: 0 };
        Self(vec![network(std::net::Ipv4Addr::UNSPECIFIED.into()), network(std::net::Ipv6Addr::UNSPECIFIED.into())])
    }

    /// Whether a proxy at this address is trusted.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Value for TrustedProxies {
    const EXPECTED: &'static str = "none, or addresses and networks such as 10.0.0.0/8,::1";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',').map(|network| network.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| "one of them is not an IP address")?;
        let max_bits = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(max_bits), str::parse).ok().filter(|bits| *bits <= max_bits);
        Ok(Self { address, bits: bits.ok_or("the prefix length of a network is wrong")? })
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let (other, own, length): (u128, u128, u8) = match (address, self.address) {
            (IpAddr::V4(other), IpAddr::V4(own)) => (other.to_bits().into(), own.to_bits().into(), 32),
            (IpAddr::V6(other), IpAddr::V6(own)) => (other.to_bits(), own.to_bits(), 128),
            _ => return false,
        };
        // For a prefix of 0 bits the shift is by the whole length, which `checked_shr` rejects.
        (other ^ own).checked_shr(u32::from(length - self.bits)).unwrap_or_default() == 0
    }
}

/// The address of the client of a trusted proxy: the last one in `X-Forwarded-For` that no trusted proxy has. Whatever is
/// before it, anybody can have written.
pub(crate) fn client(headers: &HeaderMap, proxy: IpAddr, trusted: &TrustedProxies) -> IpAddr {
    // As bytes, because a client may have written what is no text before the proxy's part of the same value.
    let values = headers.get_all(FORWARDED_FOR).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let values: Vec<_> = values.collect();
    let mut last = proxy;
    for value in values.into_iter().rev() {
        let Some(address) = str::from_utf8(value.trim_ascii()).ok().and_then(address) else { return last };
        last = address;
        if !trusted.contains(address) {
            return last;
        }
    }
    last
}

/// An address in `X-Forwarded-For`. Some proxies add the client's port, or put an IPv6 address in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(in_brackets)
}

/// The stripped prefix; none if it is not a path. Each of several proxies in a row appends its own to the list.
pub(crate) fn prefix(headers: &HeaderMap) -> Option<String> {
    let text = convert::single_value(headers, HEADER)?;
    let mut prefix = String::new();
    for path in text.split(',') {
        let path = path.trim();
        let path = path.strip_suffix('/').unwrap_or(path);
        // Other characters could lead to another host (`//`, `\`), to another path (`..`) or end the header.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_segment = |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(is_plain);
        if !path.is_empty() && !path.strip_prefix('/')?.split('/').all(is_segment) {
            return None;
        }
        prefix += path;
    }
    (!prefix.is_empty() && prefix.len() <= MAX_LENGTH).then_some(prefix)
}

/// Prepends the prefix to the paths in `Location` and `Link`.
pub(crate) fn apply(prefix: &str, headers: &mut HeaderMap) {
    if let Some(location) = headers.get_mut(LOCATION) {
        change(location, |path| path.starts_with('/').then(|| format!("{prefix}{path}")));
    }
    if let Some(link) = headers.get_mut(LINK) {
        // Within the targets `<` is encoded.
        change(link, |links| Some(links.replace("</", &format!("<{prefix}/"))));
    }
}

fn change(value: &mut HeaderValue, by: impl FnOnce(&str) -> Option<String>) {
    let changed = value.to_str().ok().and_then(by).and_then(|text| HeaderValue::from_str(&text).ok());
    if let Some(changed) = changed {
        *value = changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let proxies = TrustedProxies::parse("10.0.0.0/8, 192.0.2.7,2001:db8::/33").unwrap();
        for (address, is_in) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("::ffff:10.1.2.3", true),
            ("::ffff:11.1.2.3", false),
            ("2001:db8:7fff::1", true),
            ("2001:db8:8000::1", false),
        ] {
            assert_eq!(proxies.contains(address.parse().unwrap()), is_in, "{address}");
        }
        let all = TrustedProxies::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("198.51.100.1".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        assert!(TrustedProxies::parse("::/0").unwrap().contains("::1".parse().unwrap()));
        assert_eq!(TrustedProxies::parse("none"), Ok(TrustedProxies::default()));
        for wrong in ["", "proxy", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::1/129", "10.0.0.1,", "10.0.0.1/8/8"] {
            assert!(TrustedProxies::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_no_proxy_of_ours_has() {
        let trusted = TrustedProxies::parse("10.0.0.0/8").unwrap();
        let proxy: IpAddr = "10.0.0.1".parse().unwrap();
        for (value, expected) in [
            ("é, 192.0.2.7", "192.0.2.7"),
            ("\u{fffd}, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
            ("192.0.2.7, é", "10.0.0.1"),
            ("192.0.2.7, é, 10.0.0.2", "10.0.0.2"),
            ("192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("192.0.2.7, nonsense", "10.0.0.1"),
            ("192.0.2.7:51234", "192.0.2.7"),
            ("192.0.2.7:51234, 10.0.0.2:80", "192.0.2.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("192.0.2.7:x", "10.0.0.1"),
            ("[192.0.2.7]", "10.0.0.1"),
            ("[2001:db8::1", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            let headers = HeaderMap::from_iter([(FORWARDED_FOR, HeaderValue::from_bytes(value.as_bytes()).unwrap())]);
            assert_eq!(client(&headers, proxy, &trusted), expected.parse::<IpAddr>().unwrap(), "{value}");
        }
    }

    #[test]
    fn a_prefix_is_a_path_and_nothing_else() {
        let long = format!("/{}", "x".repeat(MAX_LENGTH));
        for (value, expected) in [
            ("/api", Some("/api")),
            ("/api/", Some("/api")),
            ("/api/v1.2~x", Some("/api/v1.2~x")),
            ("/outer, /inner", Some("/outer/inner")),
            ("/, /inner/", Some("/inner")),
            ("/", None),
            ("", None),
            ("api", None),
            ("//evil.example", None),
            ("/api//x", None),
            ("/\\evil.example", None),
            ("/../x", None),
            ("/./x", None),
            ("https://evil.example", None),
            ("/a b", None),
            ("/%2e%2e", None),
            ("/a?b", None),
            ("/a>; rel=\"evil\"", None),
            ("/api, nonsense", None),
            (&long, None),
        ] {
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), HeaderValue::from_str(value).unwrap())]);
            assert_eq!(prefix(&headers).as_deref(), expected, "{value:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(HEADER, HeaderValue::from_static("/a"));
        twice.append(HEADER, HeaderValue::from_static("/b"));
        assert_eq!(prefix(&twice), None);
    }
}
