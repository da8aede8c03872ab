use std::{path::PathBuf, time::Duration};

use config::{Reader, Value};

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP server. All of its routes are open: who has no token yet must be able to get one.
    pub http: web::Settings,
    /// `iss` of the tokens, without a slash at its end.
    pub issuer: String,
    /// `aud` of the tokens.
    pub audiences: Audiences,
    /// How long a token is valid.
    pub lifetime: Duration,
    /// The users.
    pub users: PathBuf,
    /// The private key. It is made if it is missing.
    pub key: PathBuf,
    /// OpenTelemetry.
    pub otlp: otlp::Settings,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let http = web::Settings::read_open(reader, "4005");
        let Issuer(issuer) = reader
            .variable(&["TOKEN_ISSUER"], "iss of the tokens, the URL of this service")
            .or("http://localhost:4005");
        let audiences = reader
            .variable(&["TOKEN_AUDIENCES"], "aud of the tokens, separated by commas")
            .or("patient-service,billing-service,analytics-service");
        let lifetime = reader.variable(&["TOKEN_LIFETIME"], "time for which a token is valid").or("15m");
        let users: String = reader.variable(&["USERS_FILE"], "JSON file of the users").or("users.json");
        let about = "file of the private key, which is made at the first start";
        let key: String = reader.variable(&["SIGNING_KEY_FILE"], about).or("signing-key.pk8");
        let otlp = otlp::Settings::read(reader, "auth-service");
        Self { http, issuer, audiences, lifetime, users: users.into(), key: key.into(), otlp }
    }
}

/// The services that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audiences(pub Vec<String>);

impl Value for Audiences {
    const EXPECTED: &'static str = "names, separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) { Err("one of them is empty".to_owned()) } else { Ok(Self(names)) }
    }
}

struct Issuer(String);

impl Value for Issuer {
    const EXPECTED: &'static str = "a URL without a slash at its end";

    fn parse(text: &str) -> Result<Self, String> {
        let url = tide::http::Url::parse(text).map_err(|error| error.to_string())?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err("it is not an http or https URL without a query".to_owned());
        }
        if text.ends_with('/') { Err("it ends with a slash".to_owned()) } else { Ok(Self(text.to_owned())) }
    }
}
