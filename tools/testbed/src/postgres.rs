//! PostgreSQL: finds its binaries, and runs a cluster.

use std::{
    fs,
    net::SocketAddr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use runtime::timeout;
use smol::Timer;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{
    Error, Process,
    clock::SteppedClock,
    process::Signal,
    user::{User, create_private_directory},
};

mod binaries;
mod package;
mod socket;
mod tls_listener;

use binaries::{base_backup, binaries_for};
pub use binaries::{binaries, has_base_backup, install, is_downloaded};
pub use package::POSTGRES_VERSION;
use socket::{external_socket_directory, quote_list_element, socket_directory};
pub use tls_listener::TlsListener;
pub(crate) use tls_listener::tls_url;
use tls_listener::{tls_settings, write_tls_files};

/// Time for `initdb`, and for `pg_basebackup`.
const INIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Time until the server accepts connections, including recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a fast shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between attempts to start a server whose predecessor has not ended.
const RESTART_INTERVAL: Duration = Duration::from_millis(100);
/// Timeouts of a statement and of a connection.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The port in the name of the socket.
const PORT: u16 = 5432;

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
                "PostgreSQL does not run as root, and user {} cannot enter {closed}: chmod o+x {closed}, or choose another directory \
                 than {}",
                user.uid,
                directory.display(),
                closed = closed.display()
            )));
        }
        let data = directory.join("data");
        let binaries = binaries_for(&data)?;
        if !data.join("PG_VERSION").is_file() {
            create_data(&binaries, directory, &data, durability, user).await?;
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
        let end = Instant::now() + START_TIMEOUT;
        self.process = loop {
            let started = Self::start_server(&binaries, directory, sockets, *durability, clock.as_ref(), tls.as_ref());
            match started.await {
                // Of a server that was killed: on a busy machine its sessions need a while to notice.
                Err(error) if error.shows("pre-existing shared memory block") && Instant::now() < end => {
                    Timer::after(RESTART_INTERVAL).await;
                }
                started => break started?,
            }
        };
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

/// Makes the data by `initdb`, beside their place: it writes `PG_VERSION` first, so what it leaves when it is interrupted looks
/// complete. They have their name once they are.
async fn create_data(
    binaries: &Path,
    directory: &Path,
    data: &Path,
    durability: Durability,
    user: Option<User>,
) -> Result<(), Error> {
    let new = data.with_extension("new");
    // What an interrupted `initdb` left.
    let _ = fs::remove_dir_all(&new);
    Process::builder("initdb", binaries.join("initdb"), directory.join("initdb.log"))
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
        .args((durability == Durability::Process).then_some("--no-sync"))
        .args(["-D".as_ref(), new.as_os_str()])
        .directory(directory)
        .user(user)
        .run(INIT_TIMEOUT)
        .await?;
    // Replaces an empty directory and no other.
    fs::rename(&new, data).map_err(|error| {
        Error::new(format!(
            "{} is there and is no complete cluster ({error}); delete it if it has no data",
            data.display()
        ))
    })?;
    if durability == Durability::Disk {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
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
