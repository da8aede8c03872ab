//! The types of the values, as the OpenTelemetry specification writes them.

use std::{collections::BTreeMap, str::FromStr as _};

use config::Value;
use percent_encoding::percent_decode_str;
use surf::{
    Url,
    http::headers::{HeaderName, HeaderValue},
};

/// A boolean as the specification has it: true in any case of its letters.
pub(super) struct Flag(pub(super) bool);

impl Value for Flag {
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Self(true)),
            "false" => Ok(Self(false)),
            _ => Err("it is another value".to_owned()),
        }
    }
}

/// A value of `OTEL_TRACES_EXPORTER` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exporter {
    Otlp,
    None,
}

impl Value for Exporter {
    const EXPECTED: &'static str = "otlp or none";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "otlp" => Ok(Self::Otlp),
            "none" => Ok(Self::None),
            _ => Err("it is not a supported exporter".to_owned()),
        }
    }
}

/// The URL of a collector.
#[derive(Clone, Debug)]
pub(super) struct Endpoint(pub(super) Url);

impl Endpoint {
    /// The URL of one signal, as the specification has it: appended to the path, whether that ends with a slash or not.
    pub(super) fn join(self, signal: &str) -> Url {
        let Self(mut url) = self;
        let path = format!("{}/{signal}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }
}

impl Value for Endpoint {
    const EXPECTED: &'static str = "http://host:port or https://host:port, with a path or without";

    fn parse(text: &str) -> Result<Self, String> {
        // The parser's message does not quote the URL, which may contain a password.
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if !web_client::SCHEMES.contains(&url.scheme()) {
            return Err(format!("its scheme is not {}", web_client::SCHEMES.join(" or ")));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it holds a user; use OTEL_EXPORTER_OTLP_HEADERS".to_owned());
        }
        Ok(Self(url))
    }
}

/// The only supported value of `OTEL_EXPORTER_OTLP_PROTOCOL`.
pub(super) struct Protocol;

impl Value for Protocol {
    const EXPECTED: &'static str = "http/protobuf, the only one supported";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "http/protobuf" { Ok(Self) } else { Err("it is not supported".to_owned()) }
    }
}

/// Key-value pairs: `name=value,name=value`, percent-encoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs(pub(super) BTreeMap<String, String>);

impl Value for Pairs {
    const EXPECTED: &'static str = "name=value, or several of them separated by commas; percent-encoded";

    fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("a part of it has no =")?;
            let decode = |text: &str| percent_decode_str(text.trim()).decode_utf8().map(|text| text.into_owned());
            let (Ok(name), Ok(value)) = (decode(name), decode(value)) else {
                return Err("a part of it is no text".to_owned());
            };
            if name.is_empty() {
                return Err("a part of it has no name".to_owned());
            }
            pairs.insert(name, value);
        }
        Ok(Self(pairs))
    }
}

/// HTTP headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers(pub(crate) Vec<(HeaderName, HeaderValue)>);

impl Value for Headers {
    const EXPECTED: &'static str = Pairs::EXPECTED;

    fn parse(text: &str) -> Result<Self, String> {
        let header = |(name, value): (String, String)| {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
            // The types accept any ASCII, including line breaks.
            let name = HeaderName::from_str(&name).ok().filter(|_| name.bytes().all(token));
            let value = HeaderValue::from_str(&value).ok().filter(|_| value.bytes().all(printable));
            name.zip(value).ok_or_else(|| "a part of it cannot be a header".to_owned())
        };
        Pairs::parse(text)?.0.into_iter().map(header).collect::<Result<_, String>>().map(Self)
    }
}
