use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::Reader;
use futures_rustls::TlsConnector;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use smol::io::{AsyncRead, AsyncWrite};

use crate::{
    Error, Stream,
    expiry::expires,
    files::{self, Contents},
    handshakes::{Handshakes, alpn},
    reload::{Reloaded, Source},
};

/// The longest handshake; callers have deadlines of their own.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of the variables of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientVariables {
    /// The authorities of the server.
    pub ca: &'static [&'static str],
    /// The client's own certificate.
    pub certificate: &'static [&'static str],
    /// Its key.
    pub key: &'static [&'static str],
}

/// The files of a client.
#[derive(Clone, Debug, Default)]
pub struct ClientSettings {
    /// The certificate authorities of the server; without it the public ones.
    pub ca: Option<PathBuf>,
    /// The client's own certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientSettings {
    /// Reads the variables. If TLS is not `used`, a variable that is set is an error: whoever sets it expects TLS.
    pub fn read(reader: &mut Reader, variables: ClientVariables, used: Result<(), &str>) -> Self {
        let ClientVariables { ca: ca_names, certificate: certificate_names, key: key_names } = variables;
        let about = "PEM file with the authorities of the server, instead of the public ones";
        let ca: Option<String> = reader.variable(ca_names, about).optional();
        let certificate: Option<String> =
            reader.variable(certificate_names, "PEM file with the client's certificate chain").optional();
        let key: Option<String> = reader.variable(key_names, "PEM file with the key of that certificate").optional();
        if let Err(why) = used {
            for (names, value) in [(ca_names, &ca), (certificate_names, &certificate), (key_names, &key)] {
                if value.is_some() {
                    reader.reject(names[0], "nothing without TLS", why);
                }
            }
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (Some(_), None) => {
                reader.reject(key_names[0], "the key of the certificate", "it is not set");
                None
            }
            (None, Some(_)) => {
                reader.reject(certificate_names[0], "the certificate of the key", "it is not set");
                None
            }
            (None, None) => None,
        };
        Self { ca: ca.map(PathBuf::from), identity }
    }
}

/// [`ClientSettings`] with the protocols that the client speaks.
pub(crate) struct ClientSource {
    settings: ClientSettings,
    protocols: Vec<Vec<u8>>,
}

impl Source for ClientSource {
    type Config = ClientConfig;

    fn files(&self) -> Vec<&Path> {
        files_of(&self.settings)
    }

    fn build(&self, contents: &Contents) -> Result<ClientConfig, Error> {
        let mut contents = contents.iter();
        let mut next = || contents.next().map(Vec::as_slice).unwrap_or_default();
        let roots = match &self.settings.ca {
            Some(file) => files::authorities(file, next())?,
            None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of every version")
            .with_root_certificates(roots);
        let mut config = match &self.settings.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, private) = (files::certificates(certificate, next())?, files::key(key, next())?);
                let config = builder.with_client_auth_cert(chain, private);
                config.map_err(|error| files::mismatch(certificate, key, &error))?
            }
        };
        config.alpn_protocols.clone_from(&self.protocols);
        Ok(config)
    }

    fn expires(&self, contents: &Contents) -> Option<SystemTime> {
        let certificate = usize::from(self.settings.ca.is_some());
        self.settings.identity.as_ref().and_then(|_| expires(contents.get(certificate)?))
    }
}

/// Makes the client's side of handshakes, by the files as they are now.
#[derive(Clone)]
pub struct Connector {
    handshakes: Handshakes,
    config: Arc<Reloaded<ClientSource>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connector({})", self.handshakes.endpoint)
    }
}

impl Connector {
    /// Reads the files. `endpoint` is the server in logs and metrics; `protocols` are offered in ALPN.
    ///
    /// # Errors
    /// If the files are not valid.
    pub fn new(endpoint: &'static str, settings: ClientSettings, protocols: &[&str]) -> Result<Self, Error> {
        let source = ClientSource { settings, protocols: alpn(protocols) };
        let config = Reloaded::new(endpoint, source)?;
        Ok(Self { handshakes: Handshakes::new(endpoint, HANDSHAKE_TIMEOUT), config })
    }

    /// The configuration for a new connection, for a library that makes the handshake itself.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.current()
    }

    /// Makes a handshake with a server of this name, or this IP address, which its certificate must have.
    ///
    /// # Errors
    /// If the server does not speak TLS 1.2 or later, shows no certificate that is valid for the name, or refuses ours. The
    /// error says which; a server may refuse a client's certificate only after the handshake, by an alert at the first read.
    pub async fn connect<T: AsyncRead + AsyncWrite + Unpin>(&self, host: &str, stream: T) -> io::Result<Stream<T>> {
        let name = ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let handshake = TlsConnector::from(self.config.current()).connect(name, stream);
        self.handshakes.run(handshake).await
    }
}

/// [`ClientSettings`] whose contents are handed on.
struct PemSource(ClientSettings);

/// The contents of the files of a client, for a library that makes its own configuration: the last valid ones.
#[derive(Clone)]
pub struct ClientFiles(Arc<Reloaded<PemSource>>);

/// The contents of the files of a client, in PEM.
pub struct ClientPem {
    /// The certificate authorities of the server.
    pub ca: Option<Vec<u8>>,
    /// The client's own certificate chain.
    pub certificate: Option<Vec<u8>>,
    /// Its key.
    pub key: Option<Vec<u8>>,
}

impl Source for PemSource {
    type Config = ClientPem;

    fn files(&self) -> Vec<&Path> {
        files_of(&self.0)
    }

    fn build(&self, contents: &Contents) -> Result<ClientPem, Error> {
        ClientSource { settings: self.0.clone(), protocols: Vec::new() }.build(contents)?;
        let mut contents = contents.iter().cloned();
        let ca = self.0.ca.as_ref().and_then(|_| contents.next());
        Ok(ClientPem { ca, certificate: contents.next(), key: contents.next() })
    }
}

impl ClientFiles {
    /// Reads the files. `endpoint` is the server in logs and metrics.
    ///
    /// # Errors
    /// If the files are not valid.
    pub fn new(endpoint: &'static str, settings: ClientSettings) -> Result<Self, Error> {
        Reloaded::new(endpoint, PemSource(settings)).map(Self)
    }

    /// The contents for a new connection.
    pub fn current(&self) -> Arc<ClientPem> {
        self.0.current()
    }
}

impl std::fmt::Debug for ClientFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientFiles")
    }
}

fn files_of(settings: &ClientSettings) -> Vec<&Path> {
    let identity = settings.identity.iter().flat_map(|(certificate, key)| [certificate.as_path(), key]);
    settings.ca.iter().map(PathBuf::as_path).chain(identity).collect()
}
