use std::{net::IpAddr, path::PathBuf};

use config::{Reader, Value};
use surf::Url;

/// Whether callers have to say who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `AUTH`.
    pub mode: Mode,
}

/// What identifies a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: whoever reaches the port may do everything.
    Off {
        /// Whether the operator allows that on an address that others can reach.
        on_network: bool,
    },
    /// A token of an OpenID provider.
    Jwt(JwtSettings),
}

/// What a valid token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// `iss` of every token.
    pub issuer: String,
    /// What `aud` has to contain.
    pub audience: String,
    /// Where the keys are.
    pub keys: KeySource,
}

/// Where the issuer's JWK set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// It is fetched; over https from a server of these authorities, without a file from one of the public ones.
    Url(Url, Option<PathBuf>),
    /// It is read from a file.
    File(PathBuf),
    /// It is this one: the issuer is this program.
    Fixed(Vec<u8>),
}

impl Settings {
    /// Reads `AUTH` and the settings of tokens.
    pub fn read(reader: &mut Reader) -> Self {
        let kind: Kind = reader
            .variable(&["AUTH"], "who may call: anybody who reaches the port (off), or callers with a token (jwt)")
            .or("off");
        let is_jwt = kind == Kind::Jwt;
        let issuer: Option<String> =
            reader.variable(&["AUTH_ISSUER"], "iss of valid tokens").used_if(is_jwt).optional();
        let audience: Option<String> =
            reader.variable(&["AUTH_AUDIENCE"], "aud of valid tokens, one for each service").used_if(is_jwt).optional();
        let url: Option<KeyUrl> =
            reader.variable(&["AUTH_JWKS_URL"], "where the issuer's JWK set is fetched").used_if(is_jwt).optional();
        let about = "PEM file with the authorities of the server of AUTH_JWKS_URL, instead of the public ones";
        let ca: Option<String> = reader.variable(&["AUTH_JWKS_TLS_CA"], about).used_if(is_jwt).optional();
        let file: Option<String> =
            reader.variable(&["AUTH_JWKS_FILE"], "file with the issuer's JWK set").used_if(is_jwt).optional();
        let YesOrNo(on_network) = reader
            .variable(&["AUTH_OFF_ON_NETWORK"], "whether AUTH=off may listen on an address that is not loopback")
            .or("no");
        if reader.raw("AUTH").is_none() {
            // Somebody wants tokens, and everything would be open.
            for name in ["AUTH_ISSUER", "AUTH_AUDIENCE", "AUTH_JWKS_URL", "AUTH_JWKS_TLS_CA", "AUTH_JWKS_FILE"] {
                if reader.raw(name).is_some() {
                    reader.reject(name, "AUTH=jwt or AUTH=off with it", "AUTH is not set");
                }
            }
        }
        if !is_jwt {
            return Self { mode: Mode::Off { on_network } };
        }
        let mut required = |name, value: Option<String>| {
            value.unwrap_or_else(|| {
                reader.reject(name, "a value, because AUTH is jwt", "it is not set");
                String::new()
            })
        };
        let (issuer, audience) = (required("AUTH_ISSUER", issuer), required("AUTH_AUDIENCE", audience));
        let keys = match (url, file) {
            (Some(KeyUrl(url)), None) => {
                let ca = ca.map(PathBuf::from);
                check_authorities(reader, &url, ca.clone());
                KeySource::Url(url, ca)
            }
            (None, Some(file)) => KeySource::File(file.into()),
            (url, _) => {
                let why = if url.is_some() { "both are set" } else { "neither is set" };
                reader.reject("AUTH_JWKS_URL", "this or AUTH_JWKS_FILE, because AUTH is jwt", why);
                KeySource::File(PathBuf::new())
            }
        };
        Self { mode: Mode::Jwt(JwtSettings { issuer, audience, keys }) }
    }

    /// Rejects an address, the setting `name`, that others can reach while nobody has to say who they are.
    pub fn check_address(&self, reader: &mut Reader, name: &'static str, address: IpAddr) {
        if matches!(self.mode, Mode::Off { on_network: false }) && !address.to_canonical().is_loopback() {
            let expected = "jwt for an address that is not loopback, or AUTH_OFF_ON_NETWORK=yes";
            reader.reject("AUTH", expected, format!("it is off and {name} is {address}"));
        }
    }
}

/// Rejects a file of authorities that is not valid, or not used.
fn check_authorities(reader: &mut Reader, url: &Url, ca: Option<PathBuf>) {
    const NAME: &str = "AUTH_JWKS_TLS_CA";
    let is_tls = url.scheme() == "https";
    if !is_tls && ca.is_some() {
        reader.reject(NAME, "nothing without TLS", "the scheme of AUTH_JWKS_URL is not https");
    } else if let Err(error) = web_client::connector("keys", tls::ClientSettings { ca, identity: None }) {
        reader.reject(NAME, "a PEM file with certificate authorities", error.to_string());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Off,
    Jwt,
}

impl Value for Kind {
    const EXPECTED: &'static str = "off or jwt";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "jwt" => Ok(Self::Jwt),
            _ => Err("it is another value".to_owned()),
        }
    }
}

struct YesOrNo(bool);

impl Value for YesOrNo {
    const EXPECTED: &'static str = "yes or no";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "yes" => Ok(Self(true)),
            "no" => Ok(Self(false)),
            _ => Err("it is another value".to_owned()),
        }
    }
}

struct KeyUrl(Url);

impl Value for KeyUrl {
    const EXPECTED: &'static str = "a URL such as https://auth-service:4005/.well-known/jwks.json";

    fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if !web_client::SCHEMES.contains(&url.scheme()) {
            return Err(format!("its scheme is not {}", web_client::SCHEMES.join(" or ")));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it has no host".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has a user, and the keys are public".to_owned());
        }
        Ok(Self(url))
    }
}

#[cfg(test)]
mod tests {
    use config::Environment;

    use super::*;

    fn read(variables: &[(&str, &str)], address: &str) -> Result<Settings, String> {
        let environment = variables.iter().fold(Environment::empty(), |all, (name, value)| all.with(*name, *value));
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        settings.check_address(&mut reader, "SERVER_ADDRESS", address.parse().unwrap());
        reader.finish(settings).map(|(settings, _)| settings).map_err(|errors| errors.to_string())
    }

    const ISSUER: (&str, &str) = ("AUTH_ISSUER", "https://issuer");
    const AUDIENCE: (&str, &str) = ("AUTH_AUDIENCE", "patient-service");
    const FILE: (&str, &str) = ("AUTH_JWKS_FILE", "/keys");
    const URL: (&str, &str) = ("AUTH_JWKS_URL", "http://issuer/keys");

    #[test]
    fn it_is_off_on_loopback_alone_unless_somebody_has_said_so() {
        let off = |on_network| Ok(Settings { mode: Mode::Off { on_network } });
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(read(&[], loopback), off(false), "{loopback}");
        }
        for network in ["0.0.0.0", "::", "192.0.2.1"] {
            let error = read(&[], network).unwrap_err();
            assert!(error.contains("AUTH_OFF_ON_NETWORK=yes") && error.contains(network), "{error}");
            assert_eq!(read(&[("AUTH_OFF_ON_NETWORK", "yes")], network), off(true));
            assert!(read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, FILE], network).is_ok());
        }
        assert!(read(&[("AUTH", "on")], "127.0.0.1").unwrap_err().contains("off or jwt"));
        assert!(read(&[("AUTH_OFF_ON_NETWORK", "true")], "127.0.0.1").unwrap_err().contains("yes or no"));
    }

    #[test]
    fn settings_of_tokens_say_that_auth_was_forgotten() {
        for setting in [ISSUER, AUDIENCE, FILE, URL, ("AUTH_JWKS_TLS_CA", "/ca.pem")] {
            for forgotten in [&[setting][..], &[("AUTH", ""), setting]] {
                let error = read(forgotten, "127.0.0.1").unwrap_err();
                assert!(error.contains(setting.0) && error.contains("AUTH is not set"), "{error}");
            }
            assert!(read(&[("AUTH", "off"), setting], "127.0.0.1").is_ok(), "somebody has said so");
        }
        assert!(read(&[("AUTH", ""), ("AUTH_ISSUER", "")], "127.0.0.1").is_ok());
    }

    #[test]
    fn jwt_needs_an_issuer_an_audience_and_one_source_of_keys() {
        let settings = read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, FILE], "127.0.0.1").unwrap();
        let Mode::Jwt(jwt) = settings.mode else { panic!("{settings:?}") };
        assert_eq!((jwt.issuer, jwt.audience), ("https://issuer".to_owned(), "patient-service".to_owned()));
        let error = read(&[("AUTH", "jwt")], "127.0.0.1").unwrap_err();
        for name in ["AUTH_ISSUER", "AUTH_AUDIENCE", "AUTH_JWKS_URL", "AUTH_JWKS_FILE"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, FILE, URL], "::1").unwrap_err().contains("both are set"));
        let https = ("AUTH_JWKS_URL", "https://issuer/keys");
        let missing = ("AUTH_JWKS_TLS_CA", "/nowhere/ca.pem");
        assert!(read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, https], "::1").is_ok(), "by the public authorities");
        for (url, why) in [(https, "/nowhere/ca.pem cannot be read"), (URL, "not https")] {
            let error = read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, url, missing], "::1").unwrap_err();
            assert!(error.contains("AUTH_JWKS_TLS_CA") && error.contains(why), "{error}");
        }
        for url in ["ftp://issuer/keys", "issuer", "http://user:password@issuer/keys"] {
            let error = read(&[("AUTH", "jwt"), ISSUER, AUDIENCE, ("AUTH_JWKS_URL", url)], "::1").unwrap_err();
            assert!(error.contains("AUTH_JWKS_URL") && !error.contains("password@"), "{error}");
        }
    }
}
