//! PostgreSQL: its binaries, and a cluster of our own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Process, StartError,
    clock::SteppedClock,
    process::Signal,
    user::{User, private_directory},
};

/// Where packages put the binaries that they keep off the PATH: one folder a version.
const VERSIONED: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];
/// Time for `initdb`.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// Time for the server to accept connections, recovery after a crash included.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time for the server to end its sessions.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// The only port's name on a socket that is alone in its directory.
const PORT: &str = "5432";

/// The directory that holds `initdb` and `postgres`: on the PATH, else the newest of the versioned ones.
pub fn binaries() -> Option<PathBuf> {
    let has_all =
        |directory: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| directory.join(name).is_file());
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    on_path.filter(has_all).chain(versioned().into_iter().filter(has_all)).next()
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
    binaries: PathBuf,
    directory: PathBuf,
    process: Process,
    durability: Durability,
    /// Whether its clock is another than this machine's.
    clock: Option<SteppedClock>,
}

impl Cluster {
    /// Starts the cluster in `directory`, which is made, together with the cluster, if it is not there. Everything in
    /// its path must be open to the unprivileged user.
    ///
    /// # Errors
    /// If there is no PostgreSQL, or it does not come up.
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
        let binaries = binaries().ok_or_else(|| {
            StartError::new("no PostgreSQL found: neither on the PATH nor in /usr/lib/postgresql/*/bin")
        })?;
        let user = User::unprivileged();
        private_directory(directory, user)?;
        let data = directory.join("data");
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
        let process = Self::start_server(&binaries, directory, durability, clock.as_ref()).await?;
        Ok(Self { binaries, directory: directory.to_owned(), process, durability, clock })
    }

    async fn start_server(
        binaries: &Path,
        directory: &Path,
        durability: Durability,
        clock: Option<&SteppedClock>,
    ) -> Result<Process, StartError> {
        let settings: &[&str] = match durability {
            Durability::Disk => &[],
            Durability::Process => &["fsync=off", "full_page_writes=off"],
        };
        let mut process = Process::prepare("PostgreSQL", binaries.join("postgres"), directory.join("postgres.log"))
            .args(["-D".as_ref(), directory.join("data").as_os_str(), "-k".as_ref(), directory.as_os_str()])
            .args(["-h", "", "-p", PORT, "-c", "max_connections=300"])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .envs(clock.map(SteppedClock::environment).into_iter().flatten())
            .directory(directory)
            .user(User::unprivileged())
            .start()?;
        process.write_pid_file(&pid_file(directory))?;
        let ready = || {
            let psql = psql(binaries, directory, "postgres", "select 1").run(Duration::from_secs(5));
            async { psql.await.is_ok() }
        };
        process.until(START_LIMIT, ready).await?;
        Ok(process)
    }

    /// The cluster that an earlier run started in `directory`, if its server is still alive.
    pub fn running(directory: &Path, durability: Durability) -> Option<Self> {
        let log = directory.join("postgres.log");
        let process = Process::from_pid_file("PostgreSQL", &pid_file(directory), log)?;
        Some(Self { binaries: binaries()?, directory: directory.to_owned(), process, durability, clock: None })
    }

    /// The server's process, to be guarded, frozen, thawed or killed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The URL of a database of this cluster.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.directory.display())
    }

    /// The directory of the socket, which `psql -h` takes.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// If it fails; the error shows what `psql` said.
    pub async fn run(&self, database: &str, statement: &str) -> Result<(), StartError> {
        psql(&self.binaries, &self.directory, database, statement).run(Duration::from_secs(60)).await
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
        self.process =
            Self::start_server(&self.binaries, &self.directory, self.durability, self.clock.as_ref()).await?;
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

fn psql(binaries: &Path, directory: &Path, database: &str, statement: &str) -> crate::process::Starting {
    Process::prepare("psql", binaries.join("psql"), directory.join("psql.log"))
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-p",
            PORT,
            "-d",
            database,
            "-c",
            statement,
            "-h",
        ])
        .args([directory])
        .directory(directory)
        .user(User::unprivileged())
}
