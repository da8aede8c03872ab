//! Certificates, services and clients of several tests.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use testbed::{
    Scratch,
    certificates::{Authority, Identity, Validity},
    output, ports,
    service::{Launch, Service, binaries},
    tokens::{self, SigningKey},
};

use crate::support::ISSUER;

/// An address at which no process listens.
pub(super) const UNREACHABLE: &str = "127.0.0.1:9";
/// Timeout of a condition.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// An authority and a directory for certificates and for what a test starts.
pub(super) struct Pki {
    pub(super) scratch: Scratch,
    pub(super) authority: Authority,
}

impl Pki {
    pub(super) fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let authority = Authority::new("tests").unwrap();
        authority.write(&scratch.path().join("ca.pem")).unwrap();
        Self { scratch, authority }
    }

    pub(super) fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The file of the authority.
    pub(super) fn ca(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    pub(super) fn issue(&self, name: &str, names: &[&str]) -> Identity {
        self.authority.issue(self.path(), name, names, Validity::Now).unwrap()
    }

    /// The settings of a service that takes tokens for `audience` with this key.
    pub(super) fn jwt(&self, key: &SigningKey, audience: &str) -> [(&'static str, String); 4] {
        let keys = self.path().join("keys.json");
        std::fs::write(&keys, tokens::jwk_set([key]).to_string()).unwrap();
        [
            ("AUTH", "jwt".to_owned()),
            ("AUTH_ISSUER", ISSUER.to_owned()),
            ("AUTH_AUDIENCE", audience.to_owned()),
            ("AUTH_JWKS_FILE", keys.display().to_string()),
        ]
    }

    /// Starts a service; it may not be ready yet.
    pub(super) fn start(&self, name: &'static str, environment: &[(&str, String)]) -> Service {
        self.start_on(name, ports::free(), environment)
    }

    /// The same on this port.
    pub(super) fn start_on(&self, name: &'static str, port: u16, environment: &[(&str, String)]) -> Service {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let log = ("LOG_FORMAT".to_owned(), "json".to_owned());
        let label = format!("{name}-{:08x}", fastrand::u32(..));
        let launch = Launch { port, label, ..Launch::new(name, self.path(), environment.chain([log])) };
        launch.start_guarded(&self.scratch).unwrap()
    }
}

/// Settings for a service that has none of what it needs; it serves HTTP all the same.
pub(super) fn alone() -> Vec<(&'static str, String)> {
    let database = "postgres://nobody@127.0.0.1:9/nothing".to_owned();
    vec![("DATABASE_URL", database), ("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE.to_owned())]
}

/// Settings for HTTP over TLS.
pub(super) fn http_tls(identity: &Identity) -> [(&'static str, String); 2] {
    [
        ("SERVER_TLS_CERTIFICATE", identity.certificate.display().to_string()),
        ("SERVER_TLS_KEY", identity.key.display().to_string()),
    ]
}

/// Runs `curl` with these arguments on a thread of its own.
pub(super) async fn curl(arguments: &[&str]) -> Output {
    run("curl", &[&["--silent", "--show-error", "--max-time", "20"], arguments].concat()).await
}

/// Runs a program without input on a thread of its own.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments);
    smol::unblock(move || output(&mut command)).await.unwrap()
}

/// Both streams of a program's output.
pub(super) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// The exit code and the output of a service's own health check, with the environment of the service.
pub(super) async fn health_check(service: &Service) -> (Option<i32>, String) {
    let launch = service.launch();
    let mut command = Command::new(binaries().unwrap().join(launch.name));
    command.arg("healthcheck").env_clear().env("SERVER_PORT", launch.port.to_string());
    command.envs(launch.environment.iter().cloned());
    let output = smol::unblock(move || output(&mut command)).await.unwrap();
    (output.status.code(), text(&output))
}

/// Waits until a service's health check says that it is ready.
pub(super) async fn until_ready(service: &Service) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let (code, text) = health_check(service).await;
        if code == Some(0) {
            return;
        }
        assert!(Instant::now() < end, "{} is not ready: {text}\n{}", service.launch().label, service.log());
        smol::Timer::after(Duration::from_millis(100)).await;
    }
}

/// One request over a new TLS connection: the status line and what follows.
pub(super) async fn get(connector: &tls::Connector, name: &str, port: u16, path: &str) -> io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut stream = connector.connect(name, stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A client that trusts this authority alone.
pub(super) fn connector(ca: &Path) -> tls::Connector {
    let files = tls::ClientSettings { ca: Some(ca.to_owned()), identity: None };
    tls::Connector::new("tests", files, &["http/1.1"]).unwrap()
}
