//! The URL of a database, with what libpq, JDBC and sqlx let it say.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use config::Value;
use percent_encoding::percent_decode_str;
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};

/// The parameters that a database URL may have, with their meaning: the table of docs/settings.md.
pub const URL_PARAMETERS: [(&str, &str); 14] = [
    ("host, hostaddr", "the host, instead of the URL's; the directory of a socket if it begins with /"),
    ("port", "instead of the URL's"),
    ("dbname", "the database, instead of the URL's"),
    ("user, password", "instead of the URL's"),
    ("application_name, ApplicationName", "the name shown in pg_stat_activity"),
    ("currentSchema, search_path", "the schemas that are searched; tables are created in the first"),
    ("options, options[name]", "settings of the sessions: -c name=value or --name=value"),
    (
        "sslmode",
        "disable, allow, prefer, require, verify-ca or verify-full, as libpq has them, but allow is disable; without it \
         verify-full over TCP to another host, and disable on loopback and over a socket",
    ),
    ("ssl", "true is verify-full, false is disable"),
    ("sslrootcert", "PEM file with authorities of the server, besides the public ones"),
    ("sslcert, sslkey", "PEM files with the client's certificate and its key"),
    ("gssencmode, channel_binding", "disable or prefer; require is rejected"),
    ("target_session_attrs", "any; the others are rejected. A connection to a read-only server is replaced without it"),
    ("statement-cache-capacity", "prepared statements that are kept for each connection, at least 1 (100)"),
];

/// Session settings that the service derives from its own settings.
const RESERVED_SETTINGS: [&str; 4] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "client_encoding"];

/// The URL of a PostgreSQL database. The `jdbc:` that Spring puts before it is accepted.
#[derive(Clone)]
pub struct Url {
    pub(crate) options: PgConnectOptions,
    /// Settings of each session: name and value.
    pub(crate) session: Vec<(String, String)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    database: Option<String>,
    application: Option<String>,
    /// What the URL says about TLS.
    mode: Option<PgSslMode>,
    tls: tls::ClientSettings,
    certificate: (Option<PathBuf>, Option<PathBuf>),
    /// The files of `tls`, if there are any.
    files: Option<tls::ClientFiles>,
}

impl Value for Url {
    const EXPECTED: &'static str = "postgres://user:password@host:port/database";
    const SECRET: bool = true;

    // No message quotes the URL, except for names of parameters that look like names: a part of it may be a password.
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("jdbc:").unwrap_or(text);
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("it does not begin with postgres:// or jdbc:postgresql://".to_owned());
        }
        let url = url::Url::parse(text).map_err(|_| "it is no URL of one database".to_owned())?;
        if url.fragment().is_some() {
            return Err("it has a #, which is written %23 in a URL".to_owned());
        }
        // sqlx reads options from the environment; each of them is overwritten here or in `complete`.
        let options = PgConnectOptions::new_without_pgpass()
            .host("localhost")
            .port(url.port().unwrap_or(5432))
            .ssl_mode(PgSslMode::Disable)
            // A startup parameter that poolers reject; in the binary format floating-point numbers are exact anyway.
            .extra_float_digits(None)
            // sqlx logs every statement at debug and slow ones at warn; the server's log does that better.
            .log_statements(log::LevelFilter::Off)
            .log_slow_statements(log::LevelFilter::Off, Duration::ZERO);
        let given = |text: &str| (!text.is_empty()).then(|| decoded(text)).transpose();
        let mut parsed = Self {
            options,
            session: Vec::new(),
            user: given(url.username())?,
            password: url.password().map(decoded).transpose()?,
            database: given(url.path().trim_start_matches('/'))?,
            application: None,
            mode: None,
            tls: tls::ClientSettings::default(),
            certificate: (None, None),
            files: None,
        };
        if let Some(host) = url.host_str() {
            parsed.host(&decoded(host)?)?;
        }
        for (name, value) in url.query_pairs() {
            parsed.parameter(&name, &value)?;
        }
        parsed.tls.identity = match parsed.certificate.clone() {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("it has one of sslcert and sslkey without the other".to_owned()),
        };
        let has_files = parsed.tls.ca.is_some() || parsed.tls.identity.is_some();
        if parsed.options.get_socket().is_some() && (parsed.demands_tls() || has_files) {
            return Err("its host is a socket, where PostgreSQL has no TLS".to_owned());
        }
        if has_files && matches!(parsed.mode(), PgSslMode::Disable) {
            return Err("it has files for TLS and no sslmode that uses them".to_owned());
        }
        Ok(parsed)
    }
}

impl Url {
    /// The mode of TLS: that of the URL; else none on loopback and over a socket, and to another host the strictest.
    pub(super) fn mode(&self) -> PgSslMode {
        let host = self.options.get_host();
        let is_here = self.options.get_socket().is_some()
            || host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        self.mode.unwrap_or(if is_here { PgSslMode::Disable } else { PgSslMode::VerifyFull })
    }

    pub(super) fn demands_tls(&self) -> bool {
        matches!(self.mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull)
    }

    /// Reads the files for TLS, if there are any.
    pub(super) fn read_files(&mut self) -> Result<(), tls::Error> {
        if self.tls.ca.is_some() || self.tls.identity.is_some() {
            self.files = Some(tls::ClientFiles::new("postgres", self.tls.clone())?);
        }
        Ok(())
    }

    /// The options of a new connection, with the files for TLS as they are now.
    pub fn options(&self) -> PgConnectOptions {
        let mut options = self.options.clone();
        if let Some(files) = &self.files {
            let pem = files.current();
            if let Some(ca) = &pem.ca {
                options = options.ssl_root_cert_from_pem(ca.clone());
            }
            if let (Some(certificate), Some(key)) = (&pem.certificate, &pem.key) {
                options = options.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
            }
        }
        options
    }

    fn host(&mut self, host: &str) -> Result<(), String> {
        // A directory may have a comma in its name; libpq would take such a value for two.
        if host.contains(',') && (!host.starts_with('/') || host.contains(",/")) {
            return Err("it names several hosts; one is supported".to_owned());
        }
        let options = self.options.clone();
        self.options = if host.starts_with('/') {
            options.socket(host)
        } else {
            // sqlx resolves it, and an address is written there without brackets.
            options.host(host.trim_start_matches('[').trim_end_matches(']'))
        };
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        let rejected = |why: &str| Err(format!("its parameter {name}: {why}"));
        match name {
            "host" => self.host(value)?,
            "hostaddr" => match value.parse::<IpAddr>() {
                Ok(_) => self.options = self.options.clone().host(value),
                Err(_) => return rejected("it is no IP address"),
            },
            "port" => match value.parse() {
                Ok(port) => self.options = self.options.clone().port(port),
                Err(_) => return rejected("it is no port"),
            },
            "dbname" => self.database = Some(value.to_owned()),
            "user" => self.user = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "application_name" | "ApplicationName" => self.application = Some(value.to_owned()),
            "currentSchema" | "search_path" => self.session.push(("search_path".to_owned(), value.to_owned())),
            "options" => {
                for (name, value) in session_options(value)? {
                    self.session_setting(name, value)?;
                }
            }
            "sslmode" | "ssl-mode" => {
                self.mode = Some(match value {
                    // sqlx has no allow, which tries plaintext first.
                    "disable" | "allow" => PgSslMode::Disable,
                    "prefer" => PgSslMode::Prefer,
                    "require" => PgSslMode::Require,
                    "verify-ca" => PgSslMode::VerifyCa,
                    "verify-full" => PgSslMode::VerifyFull,
                    _ => return rejected("it is none of disable, allow, prefer, require, verify-ca and verify-full"),
                });
            }
            "ssl" => match value {
                "true" => self.mode = self.mode.or(Some(PgSslMode::VerifyFull)),
                "false" => self.mode = self.mode.or(Some(PgSslMode::Disable)),
                _ => return rejected("it is neither true nor false"),
            },
            "sslrootcert" => self.tls.ca = Some(value.into()),
            "sslcert" => self.certificate.0 = Some(value.into()),
            "sslkey" => self.certificate.1 = Some(value.into()),
            "sslpassword" => return rejected("keys that are encrypted are not supported"),
            "sslfactory" | "sslnegotiation" => return rejected("it is not supported"),
            "gssencmode" | "channel_binding" => match value {
                "disable" | "prefer" => {}
                _ => return rejected("it is not built into this program: use disable or prefer"),
            },
            "target_session_attrs" => match value {
                "any" => {}
                _ => {
                    return rejected(
                        "only any is supported; a connection to a read-only server is replaced without it",
                    );
                }
            },
            "statement-cache-capacity" => match value.parse() {
                Ok(capacity) if capacity > 0 => {
                    self.options = self.options.clone().statement_cache_capacity(capacity);
                }
                _ => return rejected("it is no number from 1"),
            },
            "connect_timeout" | "connectTimeout" | "loginTimeout" => {
                return rejected("it is not supported: DATABASE_ACQUIRE_DEADLINE is the time for it");
            }
            "socketTimeout" | "tcp_user_timeout" => {
                return rejected("it is not supported: DATABASE_DEADLINE is the time for it");
            }
            _ => match name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
                Some(setting) => self.session_setting(setting.to_owned(), value.to_owned())?,
                None => return Err(unknown(name)),
            },
        }
        Ok(())
    }

    fn session_setting(&mut self, name: String, value: String) -> Result<(), String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')) {
            return Err("its parameter options: a name in it is no name of a setting".to_owned());
        }
        let name = name.to_ascii_lowercase();
        if let Some(ours) = RESERVED_SETTINGS.iter().find(|ours| **ours == name) {
            return Err(format!(
                "its parameter options sets {ours}, which the service sets itself: DATABASE_DEADLINE is the time for \
                 statements"
            ));
        }
        self.session.push((name, value));
        Ok(())
    }

    /// Sets every option that sqlx would take from the environment otherwise.
    pub(super) fn complete(mut self, application: &str) -> Self {
        let mode = self.mode();
        let mut options = self.options.application_name(self.application.as_deref().unwrap_or(application));
        if let Some(user) = &self.user {
            options = options.username(user);
        }
        // Without a password sqlx would use PGPASSWORD; an empty one prevents that.
        options = options.password(self.password.as_deref().unwrap_or_default());
        let database = self.database.clone().unwrap_or_else(|| options.get_username().to_owned());
        self.options = options.database(&database).ssl_mode(mode);
        self
    }
}

/// The error for an unknown parameter. It quotes only what looks like a name: a password with `&` in it is split into
/// parameters.
fn unknown(name: &str) -> String {
    let known: Vec<&str> = URL_PARAMETERS.iter().map(|(names, _)| *names).collect();
    let is_name =
        !name.is_empty() && name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphabetic() || "_-.".contains(c));
    let shown = if is_name { format!("its parameter {name}") } else { "one of its parameters".to_owned() };
    format!("{shown} is not supported; these are: {}", known.join(", "))
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| "it is not UTF-8 once it is decoded".to_owned())
}

/// The settings in a value of `options` in libpq's form: `-c name=value` or `--name=value`; a backslash escapes a
/// space.
fn session_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => words.last_mut().into_iter().for_each(|word| word.extend(characters.next())),
            ' ' => words.push(String::new()),
            _ => words.last_mut().into_iter().for_each(|word| word.push(character)),
        }
    }
    let wrong = || "its parameter options is not made of -c name=value and --name=value".to_owned();
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().ok_or_else(wrong)?,
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => return Err(wrong()),
        };
        let (name, value) = setting.split_once('=').ok_or_else(wrong)?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Url(***)")
    }
}
