//! Brokers: Apache Kafka, and Nisshi, a Kafka-compatible broker in Rust.

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use config::{HostPort, HostPorts};

use crate::{Error, Process, cache, certificates::Identity, ports};

/// The version of Apache Kafka, the same as in docker-compose.yaml.
pub const KAFKA_VERSION: &str = "4.1.1";
/// A version of Apache Kafka before 4, which many clusters still run.
pub const OLDER_KAFKA_VERSION: &str = "3.9.1";
/// The newest version of Nisshi that builds with our version of Rust.
pub const NISSHI_VERSION: &str = "0.7.0-pre.2";
/// The oldest Java on which Kafka 4's broker runs.
const JAVA_VERSION: u32 = 17;
/// Time for a download or a build.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time for `kafka-storage format`.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time until a broker responds, including recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How many ports are tried.
const PORT_ATTEMPTS: usize = 3;
/// In the directory of a Kafka broker: its settings and its data.
const PROPERTIES: &str = "server.properties";
const DATA: &str = "data";
/// The certificate with its key, and the authority of clients, for a secure listener.
const KEYSTORE: &str = "broker.pem";
const TRUSTSTORE: &str = "clients.pem";
/// A cluster of one node can have any cluster id.
const CLUSTER_ID: &str = "5L6g3nShT-eMCtK--X86sw";

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
            Some(version) => jars(version).join("complete").is_file() && java().is_ok(),
            None => nisshi().is_file(),
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
        fs::create_dir_all(cache::directory())?;
        match self.kafka_version() {
            Some(version) => install_kafka(version).await,
            None => install_nisshi().await,
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

/// A listener of Apache Kafka with the protocol SASL_SSL, instead of PLAINTEXT: certificates both ways, and SCRAM or PLAIN.
#[derive(Clone, Debug)]
pub struct SecureListener {
    /// The broker's certificate and key, for the name `localhost`.
    pub identity: Identity,
    /// A file with the authority of clients and of the broker itself.
    pub authority: PathBuf,
    /// What the broker's own client, which waits until it is ready, shows.
    pub client: Identity,
    /// Users and passwords, without quotes. The first is the broker's own, and may do everything.
    pub users: Vec<(String, String)>,
    /// Whether the others may do only what access control lists say.
    pub authorize: bool,
    /// After which time clients have to authenticate again, or are disconnected; none is never.
    pub session: Option<Duration>,
}

impl SecureListener {
    /// What a client needs to connect as the first user, by SCRAM-SHA-256.
    ///
    /// # Errors
    /// If a file is not valid.
    pub fn security(&self) -> Result<kafka::Security, Error> {
        let Identity { certificate, key } = self.client.clone();
        let files = tls::ClientSettings { ca: Some(self.authority.clone()), identity: Some((certificate, key)) };
        let connector = tls::Connector::new("kafka", files, &[]).map_err(|error| Error::new(error.to_string()))?;
        let (username, password) = self.users.first().cloned().unwrap_or_default();
        let credentials = config::Secret::new(kafka::Credentials { username, password });
        let sasl = kafka::Sasl { mechanism: kafka::Mechanism::ScramSha256, credentials };
        Ok(kafka::Security { tls: Some(connector), sasl: Some(sasl) })
    }

    /// The files that the broker reads, in its directory.
    fn write(&self, directory: &Path) -> Result<(), Error> {
        write_private(&directory.join(KEYSTORE), &self.identity.keystore()?)?;
        // A copy of one that others may not read could not be written over.
        let _ = fs::remove_file(directory.join(TRUSTSTORE));
        Ok(fs::copy(&self.authority, directory.join(TRUSTSTORE)).map(drop)?)
    }

    /// Lines for `server.properties`, after which the lines before do not count.
    fn properties(&self, port: u16, controller: u16) -> String {
        let users: String = self.users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
        let listener = "listener.name.sasl_ssl";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        // The controller's listener, on loopback, has no users.
        let authorizer = match self.users.first() {
            Some((user, _)) if self.authorize => format!(
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:{user};User:ANONYMOUS\n"
            ),
            _ => String::new(),
        };
        let session = self.session.map(|session| format!("connections.max.reauth.ms={}\n", session.as_millis()));
        let session = session.unwrap_or_default();
        format!(
            "listeners=SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=SASL_SSL://localhost:{port}\n\
             listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=SASL_SSL\n\
             sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN\n\
             {listener}.scram-sha-256.sasl.jaas.config={scram}\n\
             {listener}.scram-sha-512.sasl.jaas.config={scram}\n\
             {listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n\
             # Relative to the working directory.\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={KEYSTORE}\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={TRUSTSTORE}\n\
             ssl.client.auth=required\n\
             {authorizer}{session}"
        )
    }

    /// Arguments of `kafka-storage format`, which stores what SCRAM needs of the passwords.
    fn format_arguments(&self) -> Vec<String> {
        let users = self.users.iter().flat_map(|(user, password)| {
            ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(|mechanism| format!("{mechanism}=[name={user},password={password}]"))
        });
        users.flat_map(|user| ["--add-scram".to_owned(), user]).collect()
    }
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
        let process = Process::from_pid_file(kind.to_string(), &pid_file(directory), directory.join("broker.log"))?;
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
        Some(version) => launch_kafka(version, directory, port, options).await?,
        None => launch_nisshi(directory, port, options.advertised)?,
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

async fn launch_kafka(version: &str, directory: &Path, port: u16, options: &LaunchOptions) -> Result<Process, Error> {
    let java = java()?;
    let jars = jars(version);
    if jars.as_os_str().as_encoded_bytes().contains(&b':') {
        return Err(Error::new(format!(
            "the path {} contains a colon, which separates the entries of Java's class path: choose another \
             PATIENT_MANAGEMENT_CACHE",
            jars.display()
        )));
    }
    // The controller, on the next free port. Only this node connects to it.
    let controller = (port + 1..).find(|&port| ports::is_free(port)).unwrap_or_else(ports::free);
    // With a secure listener, it has passwords.
    write_private(&directory.join(PROPERTIES), &server_properties(port, controller, options))?;
    if let Some(secure) = &options.secure {
        secure.write(directory)?;
    }
    let memory: &[&str] = match options.size {
        Size::Small => &["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
        Size::Full => &["-Xms128m", "-Xmx512m"],
    };
    let prepare = |class: &str, memory: &[&str]| {
        Process::builder("Apache Kafka", &java, directory.join("broker.log"))
            .args(memory)
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .args([jars.join("*")])
            .args([class])
            // Java decodes paths by the locale.
            .envs([("LC_ALL", "C.UTF-8")])
            .directory(directory)
    };
    if !directory.join(DATA).join("meta.properties").is_file() {
        prepare("kafka.tools.StorageTool", &["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["format", "--ignore-formatted", "--cluster-id", CLUSTER_ID, "--config", PROPERTIES])
            .args(options.secure.iter().flat_map(SecureListener::format_arguments))
            .run(FORMAT_TIMEOUT)
            .await?;
    }
    prepare("kafka.Kafka", memory).args([PROPERTIES]).start()
}

fn server_properties(port: u16, controller: u16, options: &LaunchOptions) -> String {
    let LaunchOptions { advertised, extra, secure, .. } = options;
    let secure = secure.as_ref().map(|secure| secure.properties(port, controller)).unwrap_or_default();
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}\n\
         controller.listener.names=CONTROLLER\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         # Relative to the working directory: in an absolute path, commas and backslashes would have to be escaped.\n\
         log.dirs={DATA}\n\
         # The services create the topics, with the number of partitions from their settings.\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         # A single node with few clients needs few threads and a small buffer for compaction.\n\
         num.network.threads=2\n\
         num.io.threads=2\n\
         log.cleaner.dedupe.buffer.size=4194304\n\
         {secure}{extra}\n"
    )
}

fn launch_nisshi(directory: &Path, port: u16, advertised: u16) -> Result<Process, Error> {
    let [url, advertised] = [port, advertised].map(|port| format!("tcp://127.0.0.1:{port}"));
    Process::builder("Nisshi", nisshi(), directory.join("broker.log"))
        .args(["broker", "--listener-url", &url, "--advertised-listener-url", &advertised])
        // The path is relative to the working directory. Only this storage engine is durable.
        .args(["--storage-engine", "sqlite://broker.db"])
        .directory(directory)
        .start()
}

/// The Java that runs Kafka: from `JAVA_HOME`, else from the PATH.
fn java() -> Result<PathBuf, Error> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let java = home.filter(|java| java.is_file()).unwrap_or_else(|| "java".into());
    let output = Command::new(&java).arg("-version").output();
    let output = output.map_err(|error| {
        Error::new(format!("Java {JAVA_VERSION} or later is not installed ({}: {error})", java.display()))
    })?;
    match java_version(&output) {
        Some(version) if version >= JAVA_VERSION => Ok(java),
        Some(version) => {
            Err(Error::new(format!("Apache Kafka needs Java {JAVA_VERSION} or later; this is Java {version}")))
        }
        None => Err(Error::of_output(
            format!(
                "Apache Kafka needs Java {JAVA_VERSION} or later; {} -version prints no version ({})",
                java.display(),
                output.status
            ),
            &output,
        )),
    }
}

/// The major version in the output of `java -version`: in a line such as `openjdk version "17.0.15" 2025-04-15`. Other
/// lines, such as one about `JAVA_TOOL_OPTIONS`, may precede it.
fn java_version(output: &Output) -> Option<u32> {
    [&output.stderr, &output.stdout].iter().find_map(|stream| {
        String::from_utf8_lossy(stream).lines().find_map(|line| {
            let (name, version) = line.split_once(" version \"")?;
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            version.split(|c: char| !c.is_ascii_digit()).next().filter(|_| is_name)?.parse().ok()
        })
    })
}

fn jars(version: &str) -> PathBuf {
    cache::directory().join(format!("kafka-{version}"))
}

fn nisshi() -> PathBuf {
    cache::directory().join(format!("nisshi-{NISSHI_VERSION}/bin/nisshi"))
}

async fn install_kafka(version: &str) -> Result<(), Error> {
    java()?;
    let (jars, pom) = (jars(version), cache::directory().join(format!("kafka-{version}-pom.xml")));
    fs::write(
        &pom,
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n\
             <modelVersion>4.0.0</modelVersion><groupId>stack</groupId><artifactId>kafka</artifactId><version>1</version>\n\
             <dependencies>\n\
             <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>\n\
             <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>\n\
             </dependencies></project>\n"
        ),
    )?;
    Process::builder("Maven", "mvn", cache::directory().join("kafka-install.log"))
        .args(["-q", "-B", "-f"])
        .args([&pom])
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .args([format!("-DoutputDirectory={}", jars.display())])
        // Java decodes paths by the locale.
        .envs([("LC_ALL", "C.UTF-8")])
        .run(INSTALL_TIMEOUT)
        .await?;
    Ok(fs::write(jars.join("complete"), "")?)
}

async fn install_nisshi() -> Result<(), Error> {
    let root = cache::directory().join(format!("nisshi-{NISSHI_VERSION}"));
    Process::builder("the build of Nisshi", "cargo", cache::directory().join("nisshi-install.log"))
        .args(["install", "nisshi", "--version", NISSHI_VERSION, "--locked", "--quiet"])
        // The build takes two thirds of the time, and the broker is still fast enough for one machine.
        .envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"), ("CARGO_PROFILE_RELEASE_LTO", "off")])
        .envs([("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")])
        .args(["--no-default-features", "--features", "libsql", "--root"])
        .args([&root])
        .run(INSTALL_TIMEOUT)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_java_is_parsed() {
        let printed = |text: &str| Output { status: Default::default(), stdout: Vec::new(), stderr: text.into() };
        assert_eq!(java_version(&printed("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK")), Some(17));
        assert_eq!(java_version(&printed("openjdk version \"25\" 2025-09-16")), Some(25));
        assert_eq!(java_version(&printed("openjdk version \"25-ea\" 2025-09-16")), Some(25));
        assert_eq!(java_version(&printed("java version \"1.8.0_402\"")), Some(1));
        assert_eq!(java_version(&printed("command not found")), None);
        let options = "Picked up JAVA_TOOL_OPTIONS: -XX:OnOutOfMemoryError=\"kill -9 %p\" -Da=\"b version \"9\"\"\n";
        assert_eq!(java_version(&printed(options)), None);
        assert_eq!(java_version(&printed(&format!("{options}openjdk version \"21.0.1\" 2023-10-17\n"))), Some(21));
    }
}
