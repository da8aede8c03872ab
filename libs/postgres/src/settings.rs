use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use config::{Bounded, Reader, Secret, Value};
use percent_encoding::percent_decode_str;
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};

/// How to reach the database, and the limits of its use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where and as whom to connect.
    pub url: Secret<Url>,
    /// Where and as whom to connect to migrate the schema, if not by `url`: as the role that owns the tables.
    pub owner: Option<Secret<Url>>,
    /// Size of the pool for requests.
    pub connections: usize,
    /// Time for one piece of work on a connection, measured by the client. The server's `statement_timeout` is 100 ms
    /// shorter.
    pub deadline: Duration,
    /// Time to wait for a free connection.
    pub acquire: Duration,
}

/// The parameters that a database URL may have, with their meaning: the table of docs/settings.md.
pub const URL_PARAMETERS: [(&str, &str); 14] = [
    ("host, hostaddr", "the host, instead of the URL's; the directory of a socket if it begins with /"),
    ("port", "instead of the URL's"),
    ("dbname", "the database, instead of the URL's"),
    ("user, password", "instead of the URL's"),
    ("application_name, ApplicationName", "the name shown in pg_stat_activity"),
    ("currentSchema, search_path", "the schemas that are searched; tables are made in the first"),
    ("options, options[name]", "settings of the sessions: -c name=value or --name=value"),
    (
        "sslmode",
        "disable, allow, prefer, require, verify-ca or verify-full, as libpq has them, but allow is disable; without it \
         verify-full over TCP to another host, and disable on loopback and over a socket",
    ),
    ("ssl", "true is verify-full, false is disable"),
    ("sslrootcert", "PEM file with authorities of the server, besides the public ones"),
    ("sslcert, sslkey", "PEM files with the client's certificate and its key"),
    ("gssencmode, channel_binding", "disable or prefer; require is refused"),
    ("target_session_attrs", "any; the others are refused, and a server that only reads is left by itself"),
    ("statement-cache-capacity", "prepared statements that are kept for each connection, at least 1 (100)"),
];

/// The variable of [`Settings::owner`].
pub(crate) const OWNER_URL: &str = "DATABASE_OWNER_URL";

/// Session settings that the service derives from its own settings.
const RESERVED_SETTINGS: [&str; 4] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "client_encoding"];

impl Settings {
    /// Reads `DATABASE_URL`, `DATABASE_OWNER_URL`, `DATABASE_CONNECTIONS` and the deadlines, under these names or those of
    /// Spring.
    ///
    /// The variables of libpq (`PGHOST` and so on) are ignored. Those with which an operator expects something else are
    /// rejected: `PGSSLMODE` if it demands TLS and the URL does not, those of the files for TLS, `PGOPTIONS`, and `PGUSER` if
    /// nothing else names a user.
    pub fn read(reader: &mut Reader, example: &'static str, application: &'static str) -> Self {
        let names: &[&str] = &["DATABASE_URL", "SPRING_DATASOURCE_URL"];
        let url: Secret<Url> = reader.variable(names, "the database").required(example);
        let user: Option<String> =
            reader.variable(&["SPRING_DATASOURCE_USERNAME"], "user, instead of the URL's").optional();
        let password: Option<Secret<String>> =
            reader.variable(&["SPRING_DATASOURCE_PASSWORD"], "password, instead of the URL's").optional();
        let about = "the same database, as the role that owns the tables and migrates them at the start; DATABASE_URL by default";
        let owner: Option<Secret<Url>> = reader.variable(&[OWNER_URL], about).optional();
        let connections: Bounded<1, 1000> = reader
            .variable(
                &["DATABASE_CONNECTIONS"],
                "connections to the database for requests; the service needs a few besides them",
            )
            .or("16");
        let deadline = reader.variable(&["DATABASE_DEADLINE"], "time for one piece of work on the database").or("2s");
        let acquire = reader.variable(&["DATABASE_ACQUIRE_DEADLINE"], "time to wait for a connection").or("1s");
        let mut url = url.expose().clone();
        if let Some(user) = user {
            url.user = Some(user);
        }
        if let Some(password) = password {
            url.password = Some(password.expose().clone());
        }
        let url = url.checked(reader, names[0], application);
        let owner = owner.map(|owner| owner.expose().clone().checked(reader, OWNER_URL, application));
        Self { url, owner, connections: connections.size(), deadline, acquire }
    }

    /// The variable with the URL for a migration.
    pub(crate) fn migration_variable(&self) -> &'static str {
        if self.owner.is_some() { OWNER_URL } else { "DATABASE_URL" }
    }
}

/// Rejects variables that libpq or sqlx would apply and this program ignores. `setting`: the variable with the URL.
fn reject_libpq_variables(reader: &mut Reader, setting: &str, url: &Url) {
    let demands_tls = |mode: &&str| !matches!(*mode, "disable" | "allow" | "prefer");
    if reader.raw("PGSSLMODE").filter(demands_tls).is_some() && !url.demands_tls() {
        reader.reject(
            "PGSSLMODE",
            "disable, allow or prefer",
            format!("{setting} demands no TLS: write sslmode=... there"),
        );
    }
    for name in ["PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
        // sqlx would read it, whatever the URL says.
        if !matches!(url.mode(), PgSslMode::Disable) && reader.raw(name).is_some() {
            let why = format!("it would be used besides {setting}: write sslrootcert, sslcert and sslkey there");
            reader.reject(name, "nothing", why);
        }
    }
    if reader.raw("PGOPTIONS").is_some() {
        let why = format!("it would change the sessions: write options=... into {setting}");
        reader.reject("PGOPTIONS", "nothing", why);
    }
    if url.user.is_none() && reader.raw("PGUSER").is_some() {
        reader.reject("PGUSER", "nothing", format!("{setting} names no user: write it there"));
    }
}

/// The URL of a PostgreSQL database. The `jdbc:` that Spring puts before it is accepted.
#[derive(Clone)]
pub struct Url {
    pub(crate) options: PgConnectOptions,
    /// Settings of each session: name and value.
    pub(crate) session: Vec<(String, String)>,
    user: Option<String>,
    password: Option<String>,
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
    fn mode(&self) -> PgSslMode {
        let host = self.options.get_host();
        let is_here = self.options.get_socket().is_some()
            || host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        self.mode.unwrap_or(if is_here { PgSslMode::Disable } else { PgSslMode::VerifyFull })
    }

    fn demands_tls(&self) -> bool {
        matches!(self.mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull)
    }

    fn read_files(&self) -> Result<Option<tls::ClientFiles>, tls::Error> {
        let has_files = self.tls.ca.is_some() || self.tls.identity.is_some();
        has_files.then(|| tls::ClientFiles::new("postgres", self.tls.clone())).transpose()
    }

    /// The complete URL of this variable, with its files read.
    fn checked(mut self, reader: &mut Reader, variable: &'static str, application: &str) -> Secret<Self> {
        reject_libpq_variables(reader, variable, &self);
        match self.read_files() {
            Ok(files) => self.files = files,
            Err(error) => reader.reject(variable, Self::EXPECTED, error.to_string()),
        }
        Secret::new(self.complete(application))
    }

    /// The options of a new connection, with the files for TLS as they are now.
    pub(crate) fn options(&self) -> PgConnectOptions {
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
                _ => return rejected("only any is supported; a server that only reads is left by itself"),
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
    fn complete(mut self, application: &str) -> Self {
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

#[cfg(test)]
mod tests {
    use config::Environment;

    use super::*;

    fn read(environment: Environment) -> Result<Settings, String> {
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader, "postgres://localhost/patients", "test");
        reader.finish(settings).map(|(settings, _)| settings).map_err(|errors| errors.to_string())
    }

    fn read_url(url: &str) -> Result<Url, String> {
        let settings = read(Environment::empty().with("DATABASE_URL", url))?;
        Ok(settings.url.expose().clone())
    }

    #[test]
    fn variables_of_spring_are_accepted() {
        let environment = Environment::empty()
            .with("SPRING_DATASOURCE_URL", "jdbc:postgresql://db.example:5433/patients")
            .with("SPRING_DATASOURCE_USERNAME", "admin")
            .with("SPRING_DATASOURCE_PASSWORD", "hunter2");
        let settings = read(environment).unwrap();
        let options = &settings.url.expose().options;
        assert_eq!((options.get_host(), options.get_port()), ("db.example", 5433));
        assert_eq!((options.get_username(), options.get_database()), ("admin", Some("patients")));
        assert!(!format!("{settings:?} {:?}", settings.url.expose()).contains("hunter2"));
    }

    #[test]
    fn a_wrong_url_is_rejected_without_being_shown() {
        for wrong in [
            "mysql://root:hunter2@localhost/db",
            "jdbc:hunter2",
            "postgres://u:hunter2@host:port/db",
            "postgres://u:hunter2#@host/db",
            "postgres://u@host/db?password=a&hunter2",
            "postgres://u@host,hunter2/db",
        ] {
            let error = read(Environment::empty().with("DATABASE_URL", wrong)).unwrap_err();
            assert!(error.contains("DATABASE_URL") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_url_parameter_is_applied_or_rejected_by_name() {
        let url = "postgres://jane:p%40ss@[::1]:5433/patients?application_name=mine&sslmode=prefer&ssl=false\
                   &currentSchema=app&options=-c%20geqo%3Doff%20--synchronous-commit%3Dlocal&options[work_mem]=8MB";
        let url = read_url(url).unwrap();
        let options = &url.options;
        assert_eq!((options.get_host(), options.get_port()), ("::1", 5433));
        assert_eq!((options.get_username(), options.get_database()), ("jane", Some("patients")));
        assert_eq!(options.get_application_name(), Some("mine"));
        assert_eq!(url.password.as_deref(), Some("p@ss"));
        let session = [("search_path", "app"), ("geqo", "off"), ("synchronous_commit", "local"), ("work_mem", "8MB")];
        assert_eq!(url.session, session.map(|(name, value)| (name.to_owned(), value.to_owned())));

        let url = read_url("postgres:///x?host=%2Frun%2Fpostgresql&port=1&user=jane&dbname=y&password=z").unwrap();
        assert_eq!(url.options.get_socket().unwrap().to_str(), Some("/run/postgresql"));
        assert_eq!((url.options.get_username(), url.options.get_database()), ("jane", Some("y")));
        let url = read_url("postgres://jane@localhost/x?host=%2Frun%2Fst%C3%A4ck%2C%20%22%2B%22").unwrap();
        assert_eq!(url.options.get_socket().unwrap().to_str(), Some("/run/stäck, \"+\""));
        assert!(read_url("postgres://jane@localhost/x?host=%2Frun%2Fone%2C%2Frun%2Ftwo").is_err());

        for (parameter, named) in [
            ("ssl=yes", "ssl:"),
            ("sslmode=of+course", "sslmode:"),
            ("sslrootcert=ca.pem", "files for TLS"),
            ("sslmode=require&sslrootcert=/no/ca.pem", "/no/ca.pem"),
            ("sslmode=require&sslcert=client.crt", "sslkey"),
            ("sslmode=require&sslpassword=hunter2", "sslpassword:"),
            ("host=%2Frun&sslmode=require", "socket"),
            ("currentschema=app", "currentschema"),
            ("prepareThreshold=0", "prepareThreshold"),
            ("connect_timeout=3", "DATABASE_ACQUIRE_DEADLINE"),
            ("options=-c%20statement_timeout%3D0", "DATABASE_DEADLINE"),
            ("options=fast", "options"),
            ("options[a%27b]=1", "options"),
            ("target_session_attrs=read-write", "target_session_attrs"),
            ("statement-cache-capacity=0", "statement-cache-capacity"),
            ("gssencmode=require", "gssencmode"),
            ("port=x", "port"),
        ] {
            let error = read_url(&format!("postgres://jane@localhost/x?{parameter}")).unwrap_err();
            assert!(error.contains("DATABASE_URL") && error.contains(named), "{parameter}: {error}");
        }
    }

    #[test]
    fn a_database_on_another_host_is_verified_unless_the_url_says_otherwise() {
        use PgSslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
        for (url, expected) in [
            ("localhost/x", Disable),
            ("127.0.0.2/x", Disable),
            ("[::1]/x", Disable),
            ("localhost/x?host=%2Frun%2Fpostgresql", Disable),
            ("db/x", VerifyFull),
            ("10.0.0.7/x", VerifyFull),
            ("localhost/x?host=db", VerifyFull),
            ("db/x?sslmode=disable", Disable),
            ("db/x?sslmode=allow", Disable),
            ("db/x?sslmode=prefer", Prefer),
            ("db/x?sslmode=require", Require),
            ("db/x?sslmode=verify-ca", VerifyCa),
            ("localhost/x?sslmode=verify-full", VerifyFull),
            ("localhost/x?ssl=true", VerifyFull),
            ("db/x?ssl=false", Disable),
            ("db/x?ssl=true&sslmode=require", Require),
            ("db/x?sslmode=require&ssl=true", Require),
        ] {
            let mode = read_url(&format!("postgres://jane@{url}")).unwrap().options().get_ssl_mode();
            assert_eq!(format!("{mode:?}"), format!("{expected:?}"), "{url}");
        }
    }

    #[test]
    fn the_settings_page_lists_every_url_parameter() {
        let page = include_str!("../../../docs/settings.md");
        for (names, what) in URL_PARAMETERS {
            let names: Vec<_> = names.split(", ").map(|name| format!("`{name}`")).collect();
            let row = format!("| {} | {what} |\n", names.join(", "));
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn the_owner_has_a_url_of_its_own_with_the_same_checks() {
        let base = || Environment::empty().with("DATABASE_URL", "postgres://jane@localhost/x");
        assert!(read(base()).unwrap().owner.is_none());
        let settings = read(base().with(OWNER_URL, "postgres://owner:hunter2@localhost/x?currentSchema=app")).unwrap();
        let owner = settings.owner.as_ref().unwrap().expose();
        assert_eq!((owner.options.get_username(), owner.session.len()), ("owner", 1));
        assert_eq!(settings.url.expose().options.get_username(), "jane");
        assert!(!format!("{settings:?}").contains("hunter2"));
        for (url, named) in
            [("mysql://root:hunter2@localhost/x", ""), ("postgres://o@h/x?sslrootcert=/no/ca.pem", "/no/ca.pem")]
        {
            let error = read(base().with(OWNER_URL, url)).unwrap_err();
            assert!(error.contains(OWNER_URL) && error.contains(named) && !error.contains("hunter2"), "{error}");
        }
        let error = read(base().with(OWNER_URL, "postgres://localhost/x").with("PGUSER", "john")).unwrap_err();
        assert!(error.contains("DATABASE_OWNER_URL names no user"), "{error}");
    }

    #[test]
    fn libpq_variables_are_ignored_or_rejected_where_they_would_matter() {
        let base = || Environment::empty().with("DATABASE_URL", "postgres://jane@localhost/x");
        for (name, value) in [("PGSSLMODE", "require"), ("PGSSLMODE", "verify-full"), ("PGOPTIONS", "-c geqo=off")] {
            let error = read(base().with(name, value)).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        let away = || Environment::empty().with("DATABASE_URL", "postgres://jane@db/x");
        read(away().with("PGSSLMODE", "require")).unwrap();
        read(base().with("PGSSLROOTCERT", "ca.pem")).unwrap();
        let error = read(away().with("PGSSLROOTCERT", "ca.pem")).unwrap_err();
        assert!(error.contains("PGSSLROOTCERT"), "{error}");
        read(base().with("PGSSLMODE", "prefer").with("PGUSER", "john").with("PGPORT", "1")).unwrap();
        let error = read(Environment::empty().with("DATABASE_URL", "postgres://localhost/x").with("PGUSER", "john"))
            .unwrap_err();
        assert!(error.contains("PGUSER"), "{error}");
    }
}
