//! PgBouncer, a connection pooler for PostgreSQL.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use smol::net::unix::UnixStream;

use crate::{
    Error, Process,
    postgres::Cluster,
    user::{User, create_private_directory},
};

/// Where distributions install it.
const PLACES: [&str; 3] = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
/// The port in the name of its socket.
const PORT: u16 = 6432;
/// Time until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// When a client's connection to the server goes back to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// At the end of each transaction.
    Transaction,
    /// After each statement.
    Statement,
}

/// A running PgBouncer, reached through a socket.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    directory: PathBuf,
}

/// The program, if it is installed.
pub fn installed() -> Option<&'static Path> {
    PLACES.iter().map(Path::new).find(|path| path.is_file())
}

impl PgBouncer {
    /// Starts it in front of a cluster, with its files in `directory`, which is created. `more` are further lines of its
    /// configuration.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub async fn start(directory: &Path, cluster: &Cluster, mode: PoolMode, more: &str) -> Result<Self, Error> {
        let program = installed().ok_or_else(|| Error::new("PgBouncer is not installed"))?;
        // Like PostgreSQL, it does not run as root.
        let user = User::unprivileged();
        create_private_directory(directory, user)?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let (server, socket) = (cluster.socket_directory().display(), directory.display());
        let configuration = directory.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={server} port=5432 user=postgres\n[pgbouncer]\nunix_socket_dir = {socket}\n\
             listen_port = {PORT}\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = 50\n{more}\n"
        );
        fs::write(&configuration, text)?;
        if let Some(user) = user {
            chown(&configuration, Some(user.uid), Some(user.gid))?;
        }
        let mut process = Process::builder("PgBouncer", program, directory.join("pgbouncer.log"))
            .args([&configuration])
            .directory(directory)
            .user(user)
            .start()?;
        let path = directory.join(format!(".s.PGSQL.{PORT}"));
        process.until(START_TIMEOUT, || async { UnixStream::connect(&path).await.is_ok() }).await?;
        Ok(Self { process, directory: directory.to_owned() })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The URL of a database of the cluster behind it.
    pub fn url(&self, database: &str) -> String {
        let host = utf8_percent_encode(self.directory.to_str().unwrap_or_default(), NON_ALPHANUMERIC);
        format!("postgres://postgres@localhost/{database}?host={host}&port={PORT}")
    }
}
