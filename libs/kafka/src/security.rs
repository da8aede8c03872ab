//! What is between a client and the brokers: TLS, SASL, both or neither. Settings have the names of Kafka's own clients.

use std::{mem, ops::RangeInclusive, path::PathBuf};

use config::{Reader, Secret, Value};

/// Iterations of SCRAM that a broker may demand. Fewer than RFC 5802 recommends would help to guess the password, and many would cost
/// hours: the broker names the number before it has proved that it knows the password. Apache Kafka stores 4,096 to 16,384.
const ITERATIONS: RangeInclusive<u32> = 4096..=100_000;
/// Characters of the number in an error.
const MAX_DIGITS: usize = 20;

/// TLS and SASL of all connections of a client; by default neither.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// TLS.
    pub tls: Option<tls::Connector>,
    /// SASL.
    pub sasl: Option<Sasl>,
}

/// How a client authenticates.
#[derive(Clone, Debug)]
pub struct Sasl {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// User and password.
    pub credentials: Secret<Credentials>,
}

/// A user and the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself is sent, so it is used over TLS alone.
    Plain,
    /// The password is not sent, and the broker proves that it knows it (RFC 5802).
    ScramSha256,
    /// As [`ScramSha256`](Self::ScramSha256), with SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl Value for Mechanism {
    const EXPECTED: &'static str = "SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN";

    fn parse(text: &str) -> Result<Self, String> {
        let all = [Self::Plain, Self::ScramSha256, Self::ScramSha512];
        all.into_iter().find(|mechanism| mechanism.name() == text).ok_or_else(|| "it is another value".to_owned())
    }
}

/// A value of `security.protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    tls: bool,
    sasl: bool,
}

impl Value for Protocol {
    const EXPECTED: &'static str = "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL";

    fn parse(text: &str) -> Result<Self, String> {
        let (tls, sasl) = match text {
            "PLAINTEXT" => (false, false),
            "SSL" => (true, false),
            "SASL_PLAINTEXT" => (false, true),
            "SASL_SSL" => (true, true),
            _ => return Err("it is another value".to_owned()),
        };
        Ok(Self { tls, sasl })
    }
}

/// `sasl.jaas.config`: the name of a login module, `required`, and its options, of which the user and the password count.
impl Value for Credentials {
    const EXPECTED: &'static str = "a login module with username and password, as in sasl.jaas.config";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let (mut username, mut password, mut rest) = (None, None, text);
        while let Some((before, quoted)) = rest.split_once('"') {
            // Before the first option are the name of the module and its flag.
            let name = before.trim_end().trim_end_matches('=').trim_end();
            let name = name.rsplit(char::is_whitespace).next().unwrap_or_default();
            let (value, after) = unquote(quoted).ok_or("a value has no closing quote")?;
            match name {
                "username" => username = Some(value),
                "password" => password = Some(value),
                _ => {}
            }
            rest = after;
        }
        match (username, password) {
            (Some(username), Some(password)) => Ok(Self { username, password }),
            _ => Err("it has no username=\"...\" or no password=\"...\"".to_owned()),
        }
    }
}

/// The text up to the closing quote, and what follows. A backslash quotes the next character.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let (mut text, mut characters) = (String::new(), quoted.chars());
    loop {
        match characters.next()? {
            '"' => return Some((text, characters.as_str())),
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
}

impl Security {
    /// Reads `KAFKA_SECURITY_PROTOCOL` and what belongs to it. Files are read too, so that one that is not valid is reported
    /// with all other wrong settings.
    pub(crate) fn read(reader: &mut Reader) -> Self {
        const MECHANISM: &str = "KAFKA_SASL_MECHANISM";
        let names: &[&str] = &["KAFKA_SECURITY_PROTOCOL", "SPRING_KAFKA_SECURITY_PROTOCOL"];
        let Protocol { tls, sasl } = reader.variable(names, "protocol of the brokers' listener").or("PLAINTEXT");
        let about = "PEM file with the authorities of the brokers, instead of the public ones";
        let truststore: Option<String> = reader.variable(&["KAFKA_SSL_TRUSTSTORE_LOCATION"], about).optional();
        let about = "PEM file with the client's key and certificate chain";
        let keystore: Option<String> = reader.variable(&["KAFKA_SSL_KEYSTORE_LOCATION"], about).optional();
        for (name, value) in
            [("KAFKA_SSL_TRUSTSTORE_LOCATION", &truststore), ("KAFKA_SSL_KEYSTORE_LOCATION", &keystore)]
        {
            if value.is_some() && !tls {
                reader.reject(name, "nothing without TLS", "KAFKA_SECURITY_PROTOCOL is neither SSL nor SASL_SSL");
            }
        }
        let mechanism: Option<Mechanism> = reader.variable(&[MECHANISM], "how the client authenticates").optional();
        let username: Option<String> = reader.variable(&["KAFKA_SASL_USERNAME"], "user").optional();
        let password: Option<Secret<String>> = reader.variable(&["KAFKA_SASL_PASSWORD"], "its password").optional();
        let about = "user and password in the form of Kafka's Java client, instead of these two settings";
        let jaas: Option<Secret<Credentials>> = reader.variable(&["KAFKA_SASL_JAAS_CONFIG"], about).optional();
        let given = mechanism.is_some() || username.is_some() || password.is_some() || jaas.is_some();
        let mut security = Self::default();
        if sasl {
            let of_variables = username
                .zip(password)
                .map(|(username, password)| Secret::new(Credentials { username, password: password.expose().clone() }));
            match (mechanism, of_variables.or(jaas)) {
                (Some(Mechanism::Plain), _) if !tls => {
                    let why = "PLAIN sends the password, and SASL_PLAINTEXT has no TLS";
                    reader.reject(MECHANISM, "SCRAM-SHA-256 or SCRAM-SHA-512 without TLS", why);
                }
                (Some(mechanism), Some(credentials)) => security.sasl = Some(Sasl { mechanism, credentials }),
                (None, _) => reader.reject(MECHANISM, Mechanism::EXPECTED, "it is not set, and the protocol has SASL"),
                (_, None) => {
                    let expected =
                        "a user, with its password in KAFKA_SASL_PASSWORD, or both in KAFKA_SASL_JAAS_CONFIG";
                    reader.reject("KAFKA_SASL_USERNAME", expected, "one of them is not set, and the protocol has SASL");
                }
            }
        } else if given {
            reader.reject(
                MECHANISM,
                "nothing without SASL",
                "KAFKA_SECURITY_PROTOCOL is neither SASL_PLAINTEXT nor SASL_SSL",
            );
        }
        if tls {
            let keystore = keystore.map(PathBuf::from);
            let files = tls::ClientSettings {
                ca: truststore.map(PathBuf::from),
                identity: keystore.map(|file| (file.clone(), file)),
            };
            match tls::Connector::new("kafka", files, &[]) {
                Ok(connector) => security.tls = Some(connector),
                Err(error) => {
                    let expected = "files for TLS (with KAFKA_SSL_KEYSTORE_LOCATION)";
                    reader.reject("KAFKA_SSL_TRUSTSTORE_LOCATION", expected, error.to_string());
                }
            }
        }
        security
    }
}

/// The client's side of one authentication.
pub(crate) struct Authentication {
    session: rsasl::prelude::Session,
    mechanism: Mechanism,
    /// Whether the broker has sent its first message.
    has_server_first: bool,
}

impl Authentication {
    /// Begins.
    pub(crate) fn new(sasl: &Sasl) -> Result<Self, String> {
        let Credentials { username, password } = sasl.credentials.expose().clone();
        let config = rsasl::prelude::SASLConfig::with_credentials(None, username, password);
        let config = config.map_err(|error| error.to_string())?;
        let name =
            rsasl::prelude::Mechname::parse(sasl.mechanism.name().as_bytes()).map_err(|error| error.to_string())?;
        let session = rsasl::prelude::SASLClient::new(config).start_suggested(&[name]);
        let session = session.map_err(|error| error.to_string())?;
        Ok(Self { session, mechanism: sasl.mechanism, has_server_first: false })
    }

    /// Takes what the broker has sent, none at first. Returns what is to be sent, if anything is, and whether that is all. With SCRAM
    /// it computes for milliseconds, and with the most [`ITERATIONS`] for a part of a second.
    ///
    /// # Errors
    /// If what the broker has sent is malformed, demands another number of iterations or does not prove that it knows the password.
    pub(crate) fn step(&mut self, received: Option<&[u8]>) -> Result<(Option<Vec<u8>>, bool), String> {
        if let Some(received) = received
            && self.mechanism != Mechanism::Plain
        {
            // rsasl takes any number of iterations, and panics at an attribute that is shorter than its name.
            match mem::replace(&mut self.has_server_first, true) {
                false => check_server_first(received)?,
                true => check_server_final(received)?,
            }
        }
        let mut message = Vec::new();
        let state = self.session.step(received, &mut message).map_err(|error| error.to_string())?;
        Ok((state.has_sent_message().then_some(message), state.is_finished()))
    }
}

/// Checks a server-first-message of SCRAM: `r=...,s=...,i=...`, and extensions.
fn check_server_first(message: &[u8]) -> Result<(), String> {
    let mut attributes = message.split(|byte| *byte == b',').map(|attribute| attribute.split_at_checked(2));
    let mut value =
        |name: &[u8]| attributes.next().flatten().filter(|(found, _)| *found == name).map(|(_, value)| value);
    let (nonce, salt, iterations) = (value(b"r="), value(b"s="), value(b"i="));
    let iterations = iterations.and_then(|digits| std::str::from_utf8(digits).ok());
    match (nonce, salt, iterations) {
        (Some(_), Some(_), Some(digits)) => match digits.parse::<u32>() {
            Ok(iterations) if ITERATIONS.contains(&iterations) => Ok(()),
            _ => {
                let digits: String = digits.chars().take(MAX_DIGITS).collect();
                let (min, max) = ITERATIONS.into_inner();
                Err(format!("it demands {digits} iterations of SCRAM, and {min} to {max} are accepted"))
            }
        },
        _ => Err("its first message is not one of SCRAM".to_owned()),
    }
}

/// Checks a server-final-message of SCRAM: `v=...` or `e=...`, and extensions.
fn check_server_final(message: &[u8]) -> Result<(), String> {
    if message.starts_with(b"v=") || message.starts_with(b"e=") {
        Ok(())
    } else {
        Err("its last message is not one of SCRAM".to_owned())
    }
}

impl From<&Sasl> for rskafka::client::SaslConfig {
    fn from(sasl: &Sasl) -> Self {
        let Credentials { username, password } = sasl.credentials.expose().clone();
        let credentials = rskafka::client::Credentials::new(username, password);
        match sasl.mechanism {
            Mechanism::Plain => Self::Plain(credentials),
            Mechanism::ScramSha256 => Self::ScramSha256(credentials),
            Mechanism::ScramSha512 => Self::ScramSha512(credentials),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(***)")
    }
}

#[cfg(test)]
mod tests {
    use config::Environment;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Security, String> {
        let environment = variables.iter().fold(Environment::empty(), |all, (name, value)| all.with(*name, *value));
        let mut reader = Reader::new(environment);
        let security = Security::read(&mut reader);
        reader.finish(security).map(|(security, _)| security).map_err(|errors| errors.to_string())
    }

    const SASL_SSL: (&str, &str) = ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL");
    const USER: (&str, &str) = ("KAFKA_SASL_USERNAME", "jane");
    const PASSWORD: (&str, &str) = ("KAFKA_SASL_PASSWORD", "hunter2");

    #[test]
    fn settings_of_kafkas_own_clients_are_read() {
        let none = read(&[]).unwrap();
        assert!(none.tls.is_none() && none.sasl.is_none());
        assert!(read(&[("KAFKA_SECURITY_PROTOCOL", "SSL")]).unwrap().tls.is_some());
        let jaas =
            "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"jane\" password=\"hunter2\";";
        for credentials in [&[USER, PASSWORD][..], &[("KAFKA_SASL_JAAS_CONFIG", jaas)]] {
            for name in ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"] {
                let variables = [&[SASL_SSL, ("KAFKA_SASL_MECHANISM", name)], credentials].concat();
                let security = read(&variables).unwrap();
                let sasl = security.sasl.clone().unwrap();
                assert_eq!((sasl.mechanism.name(), security.tls.is_some()), (name, true));
                let expected = Credentials { username: "jane".to_owned(), password: "hunter2".to_owned() };
                assert!(*sasl.credentials.expose() == expected);
                assert!(!format!("{security:?}{:?}", sasl.credentials.expose()).contains("hunter2"));
            }
        }
    }

    #[test]
    fn options_of_a_login_module_may_be_on_lines_of_their_own_and_have_quotes() {
        let module = "org.apache.kafka.common.security.scram.ScramLoginModule required";
        for (options, username, password) in [
            ("\n\tusername=\"jane\"\r\n\tpassword=\"hunter2\";\n", "jane", "hunter2"),
            ("  password=\"hun\\\"ter\\\\2\"  username = \"jane doe\" ;", "jane doe", "hun\"ter\\2"),
            (" tokenauth=\"true\" username=\"a=b\" password=\" username=\";", "a=b", " username="),
            (" username=\"\" my-password=\"none\" password=\"p\";", "", "p"),
        ] {
            let expected = Credentials { username: username.to_owned(), password: password.to_owned() };
            assert!(Credentials::parse(&format!("{module}{options}")) == Ok(expected), "{options:?}");
        }
        for options in
            [" username=\"jane\"", " username=\"jane\" password=\"hunter2", " username=\"jane\" password=\"hunter2\\\""]
        {
            let error = Credentials::parse(&format!("{module}{options}")).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn settings_that_would_not_protect_are_refused() {
        let scram = ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-256");
        let plaintext = ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT");
        assert!(read(&[plaintext, scram, USER, PASSWORD]).unwrap().tls.is_none());
        for (variables, named) in [
            (&[plaintext, ("KAFKA_SASL_MECHANISM", "PLAIN"), USER, PASSWORD][..], "KAFKA_SASL_MECHANISM"),
            (&[SASL_SSL, ("KAFKA_SASL_MECHANISM", "GSSAPI"), USER, PASSWORD], "KAFKA_SASL_MECHANISM"),
            (&[SASL_SSL, USER, PASSWORD], "KAFKA_SASL_MECHANISM"),
            (&[SASL_SSL, scram, USER], "KAFKA_SASL_USERNAME"),
            (&[SASL_SSL, scram, ("KAFKA_SASL_JAAS_CONFIG", "hunter2")], "KAFKA_SASL_JAAS_CONFIG"),
            (&[("KAFKA_SECURITY_PROTOCOL", "TLS")], "KAFKA_SECURITY_PROTOCOL"),
            (&[PASSWORD], "KAFKA_SECURITY_PROTOCOL"),
            (&[("KAFKA_SSL_TRUSTSTORE_LOCATION", "ca.pem")], "KAFKA_SSL_TRUSTSTORE_LOCATION"),
            (&[SASL_SSL, scram, USER, PASSWORD, ("KAFKA_SSL_TRUSTSTORE_LOCATION", "/nothing.pem")], "/nothing.pem"),
        ] {
            let error = read(variables).unwrap_err();
            assert!(error.contains(named) && !error.contains("hunter2"), "{variables:?}: {error}");
        }
    }

    /// An authentication that awaits the broker's first message, and its nonce.
    fn begin(mechanism: Mechanism) -> (Authentication, String) {
        let credentials = Credentials { username: "jane".to_owned(), password: "hunter2".to_owned() };
        let mut client = Authentication::new(&Sasl { mechanism, credentials: Secret::new(credentials) }).unwrap();
        let (first, finished) = client.step(None).unwrap();
        assert!(!finished);
        let first = String::from_utf8(first.unwrap()).unwrap();
        let nonce = first.split_once("r=").unwrap().1.to_owned();
        (client, nonce)
    }

    /// The exchange of RFC 7677 begins with a nonce that cannot be set, so the broker's side is computed.
    #[test]
    fn a_broker_that_does_not_know_the_password_is_refused() {
        for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
            for last in [&b"v=Zm9yZ2VkIHNpZ25hdHVyZSBvZiBhIGJyb2tlcg=="[..], b"e=invalid-proof", b"v", b""] {
                let (mut client, nonce) = begin(mechanism);
                let first = format!("r={nonce}brokers,s=c2FsdA==,i=4096");
                let (message, is_last) = client.step(Some(first.as_bytes())).unwrap();
                assert!(message.is_some() && !is_last, "the broker's signature is awaited");
                assert!(client.step(Some(last)).is_err(), "{mechanism:?}: {last:?}");
            }
        }
    }

    #[test]
    fn a_broker_costs_no_more_iterations_than_a_client_accepts() {
        for digits in ["0", "1", "4095", "100001", "4294967295", "99999999999", "-1", "many"] {
            let (mut client, nonce) = begin(Mechanism::ScramSha256);
            let first = format!("r={nonce}brokers,s=c2FsdA==,i={digits}");
            let error = client.step(Some(first.as_bytes())).unwrap_err();
            assert!(error.contains(&format!("demands {digits} iterations")), "{error}");
        }
        for rest in ["", ",", ",,i=4096", ",s=c2FsdA==", ",s=c2FsdA==,", ",i=4096,s=c2FsdA=="] {
            let (mut client, nonce) = begin(Mechanism::ScramSha256);
            let error = client.step(Some(format!("r={nonce}brokers{rest}").as_bytes())).unwrap_err();
            assert!(error.contains("not one of SCRAM"), "{rest:?}: {error}");
        }
        assert!(begin(Mechanism::ScramSha256).0.step(Some(b"")).is_err());
    }
}
