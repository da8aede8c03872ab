use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

/// A type that a setting can have.
pub trait Value: Sized {
    /// What a right value is, to complete the sentence "expected ...".
    const EXPECTED: &'static str;
    /// Whether the text of the value must never be shown.
    const SECRET: bool = false;

    /// Reads the value; the error says why the text is wrong, without repeating it.
    fn parse(text: &str) -> Result<Self, String>;
}

impl Value for String {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text)
    }
}

impl Value for u16 {
    const EXPECTED: &'static str = "a port number from 0 (any free port) to 65535";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text)
    }
}

impl Value for IpAddr {
    const EXPECTED: &'static str = "an IP address";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text)
    }
}

/// A time span: `250ms`, `5s`, `2m` or `1h`; a bare number counts milliseconds.
impl Value for Duration {
    const EXPECTED: &'static str = "a time span such as 250ms, 5s, 2m or 1h, greater than zero";

    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = from_str(number)?;
        let milliseconds = match unit {
            "" | "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err("its unit is not ms, s, m or h".to_owned()),
        };
        match number.checked_mul(milliseconds) {
            None => Err("it is too long".to_owned()),
            Some(0) => Err("it is zero".to_owned()),
            Some(total) => Ok(Self::from_millis(total)),
        }
    }
}

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number as a size of something in memory.
    pub fn size(self) -> usize {
        self.0 as usize
    }
}

impl<const MIN: u32, const MAX: u32> Value for Bounded<MIN, MAX> {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Result<Self, String> {
        match from_str(text)? {
            number if number < MIN => Err(format!("it is less than {MIN}")),
            number if number > MAX => Err(format!("it is more than {MAX}")),
            number => Ok(Self(number)),
        }
    }
}

/// A host name or address with a port, `host:port`; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address.
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
    const EXPECTED: &'static str = "host:port";

    fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err("its host is not a host name".to_owned());
        }
        match from_str::<u16>(port).map_err(|why| format!("in its port, {why}"))? {
            0 => Err("its port is 0".to_owned()),
            port => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

/// One or more [`HostPort`]s, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts(pub Vec<HostPort>);

impl Value for HostPorts {
    const EXPECTED: &'static str = "host:port, or several of them separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(|one| HostPort::parse(one.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn from_str<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_have_units() {
        assert_eq!(Duration::parse("250"), Ok(Duration::from_millis(250)));
        assert_eq!(Duration::parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(Duration::parse("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "ms", "5 s", "-1s", "0s", "3d", "18446744073709551615h"] {
            assert!(Duration::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bounds_are_included() {
        type Few = Bounded<1, 3>;
        assert_eq!(Few::parse("1").map(Few::get), Ok(1));
        assert_eq!(Few::parse("3").map(Few::get), Ok(3));
        assert_eq!(Few::parse("0"), Err("it is less than 1".to_owned()));
        assert_eq!(Few::parse("4"), Err("it is more than 3".to_owned()));
        assert!(Few::parse("two").is_err());
    }

    #[test]
    fn addresses_need_a_port() {
        let address = HostPort::parse("[::1]:9092").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("::1", 9092));
        assert_eq!(address.to_string(), "[::1]:9092");
        for wrong in ["localhost", "localhost:", ":9092", "http://x:1", "localhost:0", "localhost:99999"] {
            assert!(HostPort::parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(HostPorts::parse("a:1, b:2").unwrap().0.len(), 2);
        assert!(HostPorts::parse("a:1,,b:2").is_err());
    }
}
