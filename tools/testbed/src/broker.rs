//! Brokers: Apache Kafka, and Nisshi, a Kafka-compatible broker in Rust.

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{HostPort, HostPorts};

use crate::{Error, Process, cache, ports, user::create_open_directory};

mod apache_kafka;
mod log;
mod nisshi;
mod secure_listener;

pub use apache_kafka::{KAFKA_VERSION, OLDER_KAFKA_VERSION};
pub use nisshi::NISSHI_VERSION;
pub use secure_listener::SecureListener;

/// Time for a download or a build.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time until a broker responds, including recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How many ports are tried.
const PORT_ATTEMPTS: usize = 3;

/// A kind of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Apache Kafka. Needs Java, and Maven to be installed.
    Kafka,
    /// Apache Kafka before version 4. Needs the same.
    OlderKafka,
    /// Nisshi. Installing it is a build of some minutes.
    Nisshi,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kafka => "Apache Kafka",
            Self::OlderKafka => "Apache Kafka 3.9",
            Self::Nisshi => "Nisshi",
        })
    }
}

impl Kind {
    /// Whether it is installed, with what it needs to run.
    pub fn is_installed(self) -> bool {
        match self.kafka_version() {
            Some(version) => apache_kafka::is_installed(version),
            None => nisshi::is_installed(),
        }
    }

    /// The version of Apache Kafka; none if it is another broker.
    fn kafka_version(self) -> Option<&'static str> {
        match self {
            Self::Kafka => Some(KAFKA_VERSION),
            Self::OlderKafka => Some(OLDER_KAFKA_VERSION),
            Self::Nisshi => None,
        }
    }

    /// Downloads or builds it into the cache, unless it is installed.
    ///
    /// # Errors
    /// If the download or the build fails, or Java or Maven is missing.
    pub async fn install(self) -> Result<(), Error> {
        if self.is_installed() {
            return Ok(());
        }
        create_open_directory(&cache::directory())?;
        match self.kafka_version() {
            Some(version) => apache_kafka::install(version).await,
            None => nisshi::install().await,
        }
    }
}

/// Memory and JIT compilation of Kafka's JVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For a test: starts fast.
    Small,
    /// For a system that is used or measured.
    Full,
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    kind: Kind,
    port: u16,
    directory: PathBuf,
    options: LaunchOptions,
    process: Process,
}

/// How a broker is started.
#[derive(Clone, Debug)]
struct LaunchOptions {
    size: Size,
    /// The port of its advertised listener.
    advertised: u16,
    /// Lines for Kafka's `server.properties`.
    extra: String,
    /// The listener for clients, if it is not PLAINTEXT.
    secure: Option<SecureListener>,
}

impl Broker {
    /// Starts a broker on a free port, for a test. `extra` are lines for Kafka's `server.properties`.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub async fn start_on_free_port(kind: Kind, directory: &Path, extra: &str) -> Result<Self, Error> {
        let mut failures = Vec::new();
        for _ in 0..PORT_ATTEMPTS {
            match Self::start(kind, directory, ports::free(), Size::Small, extra).await {
                Ok(broker) => return Ok(broker),
                Err(error) => failures.push(error),
            }
        }
        Err(failures.swap_remove(0))
    }

    /// Starts a broker on this port, with its data in `directory`.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub async fn start(kind: Kind, directory: &Path, port: u16, size: Size, extra: &str) -> Result<Self, Error> {
        Self::start_with_options(
            kind,
            directory,
            port,
            LaunchOptions { size, advertised: port, extra: extra.to_owned(), secure: None },
        )
        .await
    }

    /// Starts Apache Kafka with this listener for clients, with its data in `directory`.
    ///
    /// # Errors
    /// If it is not installed, or does not start; Nisshi has no such listener.
    pub async fn start_secure(
        kind: Kind,
        directory: &Path,
        port: u16,
        size: Size,
        secure: SecureListener,
    ) -> Result<Self, Error> {
        if kind == Kind::Nisshi {
            return Err(Error::new("Nisshi has neither TLS nor SASL"));
        }
        let options = LaunchOptions { size, advertised: port, extra: String::new(), secure: Some(secure) };
        Self::start_with_options(kind, directory, port, options).await
    }

    /// Starts a broker on a free port, for a test, whose advertised listener is the port `advertised` of a proxy.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub async fn start_behind_proxy(kind: Kind, directory: &Path, advertised: u16) -> Result<Self, Error> {
        let options = LaunchOptions { size: Size::Small, advertised, extra: String::new(), secure: None };
        Self::start_with_options(kind, directory, ports::free(), options).await
    }

    async fn start_with_options(
        kind: Kind,
        directory: &Path,
        port: u16,
        options: LaunchOptions,
    ) -> Result<Self, Error> {
        fs::create_dir_all(directory)?;
        // Boxed: the future is large, and would otherwise be part of the future of every test.
        let process = Box::pin(launch(kind, directory, port, &options)).await?;
        Ok(Self { kind, port, directory: directory.to_owned(), options, process })
    }

    /// The broker that an earlier run started in `directory` on this port, if it still runs.
    pub fn running(kind: Kind, directory: &Path, port: u16, size: Size) -> Option<Self> {
        let process = Process::from_pid_file(kind.to_string(), &pid_file(directory), log_file(directory))?;
        let options = LaunchOptions { size, advertised: port, extra: String::new(), secure: None };
        Some(Self { kind, port, directory: directory.to_owned(), options, process })
    }

    /// The same broker, which was started with this listener.
    #[must_use]
    pub fn with_listener(mut self, secure: SecureListener) -> Self {
        self.options.secure = Some(secure);
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, for `KAFKA_BOOTSTRAP_SERVERS`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Settings of a client; of a broker with a secure listener, only as far as the address goes.
    pub fn settings(&self, client_id: &'static str) -> kafka::Settings {
        client_settings(self.port, client_id)
    }

    /// Grants users of a secure listener their permissions.
    ///
    /// # Errors
    /// If it does not take them.
    pub async fn grant(&self, permissions: &[kafka::Permission]) -> Result<(), Error> {
        let settings = own_settings(self.port, &self.options)?;
        kafka::grant(&settings, permissions).await.map_err(|error| Error::new(error.to_string()))
    }

    /// Waits until a broker that an earlier run started responds: it may be recovering. Sends SIGCONT first, because it may
    /// be stopped.
    ///
    /// # Errors
    /// If it ends, or does not respond in time.
    pub async fn resume(&mut self) -> Result<(), Error> {
        self.process.signal_all(crate::Signal::CONT);
        let settings = own_settings(self.port, &self.options)?;
        until_ready(&mut self.process, &settings).await
    }

    /// Starts it again on the same port after it was killed or stopped.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.process = launch(self.kind, &self.directory, self.port, &self.options).await?;
        Ok(())
    }

    /// Stops it by SIGTERM.
    pub async fn stop(&mut self) {
        self.process.stop(Duration::from_secs(30)).await;
    }
}

async fn launch(kind: Kind, directory: &Path, port: u16, options: &LaunchOptions) -> Result<Process, Error> {
    if !ports::is_free(port) {
        return Err(Error::new(format!("the broker's port {port} is taken")));
    }
    let mut process = match kind.kafka_version() {
        Some(version) => apache_kafka::launch(version, directory, port, options).await?,
        None => nisshi::launch(directory, port, options.advertised)?,
    };
    process.write_pid_file(&pid_file(directory))?;
    let settings = own_settings(port, options)?;
    until_ready(&mut process, &settings).await?;
    Ok(process)
}

/// Writes a file that its owner alone can read.
fn write_private(file: &Path, text: &str) -> Result<(), Error> {
    // One that an earlier start has left may have another mode.
    let _ = fs::remove_file(file);
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    Ok(new.write_all(text.as_bytes())?)
}

async fn until_ready(process: &mut Process, settings: &kafka::Settings) -> Result<(), Error> {
    // A broker that responds to a metadata request works, whether or not the topic exists.
    let ready =
        || async { matches!(kafka::partitions(settings, "none").await, Ok(_) | Err(kafka::Error::UnknownTopic)) };
    process.until(START_TIMEOUT, ready).await
}

fn pid_file(directory: &Path) -> PathBuf {
    directory.join("broker.pid")
}

fn log_file(directory: &Path) -> PathBuf {
    directory.join("broker.log")
}

fn client_settings(port: u16, client_id: &'static str) -> kafka::Settings {
    let bootstrap = HostPorts(vec![HostPort { host: "127.0.0.1".to_owned(), port }]);
    kafka::Settings { bootstrap, deadline: Duration::from_secs(5), client_id, security: kafka::Security::default() }
}

/// Of the client that waits until the broker is ready.
fn own_settings(port: u16, options: &LaunchOptions) -> Result<kafka::Settings, Error> {
    match &options.secure {
        None => Ok(client_settings(port, "testbed")),
        Some(secure) => Ok(secure_settings(port, "testbed", secure.security()?)),
    }
}

fn secure_settings(port: u16, client_id: &'static str, security: kafka::Security) -> kafka::Settings {
    let bootstrap = HostPorts(vec![HostPort { host: "localhost".to_owned(), port }]);
    kafka::Settings { bootstrap, security, ..client_settings(port, client_id) }
}
