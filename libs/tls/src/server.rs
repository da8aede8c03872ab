use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::Reader;
use futures_rustls::TlsAcceptor;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use smol::io::{AsyncRead, AsyncWrite};

use crate::{
    Error, Stream,
    expiry::expires,
    files::{self, Contents},
    handshakes::{Handshakes, alpn},
    reload::{Reloaded, Source},
};

/// Time from the accepted connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The names of the variables of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerVariables {
    /// The certificate.
    pub certificate: &'static [&'static str],
    /// Its key.
    pub key: &'static [&'static str],
    /// The authorities of clients, if clients have to show a certificate.
    pub client_ca: Option<&'static [&'static str]>,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a certificate is accepted, one with a wrong certificate is not.
    Optional,
    /// Only clients with a certificate are accepted.
    Required,
}

/// The files of a server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The chain: its own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The certificate authorities of clients, and whether a client needs a certificate.
    pub clients: Option<(PathBuf, ClientAuth)>,
}

impl ServerSettings {
    /// Reads the variables; none if neither certificate nor key is set. One without the other is an error, and so are
    /// authorities of clients without TLS.
    pub fn read(reader: &mut Reader, variables: ServerVariables) -> Option<Self> {
        let ServerVariables { certificate: certificate_names, key: key_names, client_ca: client_ca_names } = variables;
        let certificate: Option<String> =
            reader.variable(certificate_names, "PEM file with the server's certificate chain; with it, TLS").optional();
        let key: Option<String> = reader.variable(key_names, "PEM file with the key of that certificate").optional();
        let client_ca: Option<String> = client_ca_names.and_then(|names| {
            reader
                .variable(names, "PEM file with the authorities of clients; with it, every client needs a certificate")
                .optional()
        });
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let clients = client_ca.map(|file| (file.into(), ClientAuth::Required));
                return Some(Self { certificate: certificate.into(), key: key.into(), clients });
            }
            (Some(_), None) => reader.reject(key_names[0], "the key of the certificate", "it is not set"),
            (None, Some(_)) => reader.reject(certificate_names[0], "the certificate of the key", "it is not set"),
            (None, None) => {
                if let (Some(names), Some(_)) = (client_ca_names, client_ca) {
                    reader.reject(names[0], "nothing without TLS", format!("{} is not set", certificate_names[0]));
                }
            }
        }
        None
    }
}

/// [`ServerSettings`] with the protocols that the server speaks.
pub(crate) struct ServerSource {
    settings: ServerSettings,
    protocols: Vec<Vec<u8>>,
}

impl Source for ServerSource {
    type Config = ServerConfig;

    fn files(&self) -> Vec<&Path> {
        let ServerSettings { certificate, key, clients } = &self.settings;
        let clients = clients.iter().map(|(file, _)| file.as_path());
        [certificate.as_path(), key].into_iter().chain(clients).collect()
    }

    fn build(&self, contents: &Contents) -> Result<ServerConfig, Error> {
        let ServerSettings { certificate, key, clients } = &self.settings;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of every version");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some((file, auth)) => {
                let roots = Arc::new(files::authorities(file, &contents[2])?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match auth {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    ClientAuth::Required => verifier,
                };
                let verifier = verifier.build();
                let no_authority = |why: String| Error::NoAuthority { file: file.clone(), why };
                builder.with_client_cert_verifier(verifier.map_err(|error| no_authority(error.to_string()))?)
            }
        };
        let (chain, private) = (files::certificates(certificate, &contents[0])?, files::key(key, &contents[1])?);
        let config = builder.with_single_cert(chain, private);
        let mut config = config.map_err(|error| files::mismatch(certificate, key, &error))?;
        config.alpn_protocols.clone_from(&self.protocols);
        if clients.is_some() {
            // A resumed session would not look at the client's certificate again, which may have expired.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // Sessions are kept by the clients and cost the server no memory.
            if let Ok(ticketer) = ring::Ticketer::new() {
                config.ticketer = ticketer;
                config.send_tls13_tickets = 1;
            }
        }
        Ok(config)
    }

    fn expires(&self, contents: &Contents) -> Option<SystemTime> {
        expires(&contents[0])
    }
}

/// Makes the server's side of handshakes, by the files as they are now.
#[derive(Clone)]
pub struct Acceptor {
    handshakes: Handshakes,
    config: Arc<Reloaded<ServerSource>>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acceptor({})", self.handshakes.endpoint)
    }
}

impl Acceptor {
    /// Reads the files. `endpoint` is the server in logs and metrics; `protocols` are its names in ALPN: a client that
    /// offers others alone is refused, one that offers none is accepted.
    ///
    /// # Errors
    /// If the files are not valid.
    pub fn new(endpoint: &'static str, settings: ServerSettings, protocols: &[&str]) -> Result<Self, Error> {
        let source = ServerSource { settings, protocols: alpn(protocols) };
        let config = Reloaded::new(endpoint, source)?;
        Ok(Self { handshakes: Handshakes::new(endpoint, HANDSHAKE_TIMEOUT), config })
    }

    /// Makes a handshake within five seconds.
    ///
    /// # Errors
    /// If the client does not speak TLS 1.2 or later, shows no certificate that is valid, or is too slow.
    pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(&self, stream: T) -> io::Result<Stream<T>> {
        let handshake = TlsAcceptor::from(self.config.current()).accept(stream);
        self.handshakes.run(handshake).await
    }
}
