//! A PostgreSQL primary with a synchronous standby, behind one address, with failover.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Error, Scratch, Signal,
    clock::SteppedClock,
    identities::Identities,
    postgres::{self, Cluster, Durability},
    proxy::{Mode, Proxy, Target},
    user::create_open_directory,
};

/// The `application_name` of the standby.
const STANDBY: &str = "standby";
/// Time until a standby streams.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A primary, its standby, and the proxy through which clients reach the current primary.
///
/// Without `pg_basebackup`, which some packages of PostgreSQL lack, there is no standby and no failover.
#[derive(Debug)]
pub struct ReplicatedPostgres {
    primary: Cluster,
    standby: Option<Cluster>,
    proxy: Proxy,
    directory: PathBuf,
    /// Without them, clients are trusted.
    identities: Option<Identities>,
    /// How many servers were started so far; each has its own directory.
    servers: usize,
}

impl ReplicatedPostgres {
    /// Starts both below `directory`, guarded by `scratch`. With identities, clients are accepted over TLS alone, by certificate.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn start(
        directory: &Path,
        clock: &SteppedClock,
        scratch: &Scratch,
        identities: Option<&Identities>,
    ) -> Result<Self, Error> {
        create_open_directory(directory)?;
        let listener = identities.map(Identities::postgres_listener);
        let mut primary =
            Box::pin(Cluster::start_with_clock(&directory.join("0"), Durability::Process, clock, listener)).await?;
        scratch.guard(primary.process())?;
        let settings = [
            // The standby reconnects to a restarted primary at once, not after 5 s.
            "wal_retrieve_retry_interval = '200ms'",
            // The replication timeouts use the wall clock, which tests set.
            "wal_sender_timeout = 0",
            "wal_receiver_timeout = 0",
        ];
        for setting in settings {
            primary.run("postgres", &format!("alter system set {setting}")).await?;
        }
        primary.run("postgres", "select pg_reload_conf()").await?;
        let proxy = Proxy::start().await?;
        let (directory, identities) = (directory.to_owned(), identities.cloned());
        let mut replicated = Self { primary, standby: None, proxy, directory, identities, servers: 1 };
        replicated.point_proxy_to_primary();
        replicated.add_standby(scratch).await?;
        Ok(replicated)
    }

    /// The current primary.
    pub fn primary(&mut self) -> &mut Cluster {
        &mut self.primary
    }

    /// Whether there is a standby.
    pub fn has_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// The port of loopback at which clients reach the current primary.
    pub fn port(&self) -> u16 {
        self.proxy.port()
    }

    /// The URL of a database on the current primary, without identities.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.proxy.port())
    }

    /// Kills the primary, promotes the standby, redirects every client to it, and adds a new standby. No commit is lost,
    /// because commits wait for the standby.
    ///
    /// # Errors
    /// If there is no standby, it does not catch up in time, or one of the steps fails.
    pub async fn fail_over(&mut self, scratch: &Scratch) -> Result<(), Error> {
        self.until_standby_streams().await?;
        // This commit waits for the standby: after it, no commit is on the primary alone.
        self.primary.run("postgres", "select txid_current()").await?;
        let mut standby = self.standby.take().ok_or_else(|| Error::new("there is no standby"))?;
        self.primary.process().signal_all(Signal::KILL);
        self.primary.process().kill().await;
        standby.run("postgres", "select pg_promote()").await?;
        std::mem::swap(&mut self.primary, &mut standby);
        self.point_proxy_to_primary();
        // The open connections lead to the old primary.
        self.proxy.set(Mode::Reset);
        smol::Timer::after(POLL_INTERVAL).await;
        self.proxy.set(Mode::Pass);
        self.add_standby(scratch).await
    }

    fn point_proxy_to_primary(&self) {
        let socket = || Target::Socket(self.primary.socket_directory().join(".s.PGSQL.5432"));
        self.proxy.set_target(self.primary.tls_address().map_or_else(socket, Target::Address));
    }

    async fn add_standby(&mut self, scratch: &Scratch) -> Result<(), Error> {
        if !postgres::has_base_backup() {
            return Ok(());
        }
        let directory = self.directory.join(self.servers.to_string());
        self.servers += 1;
        let listener = self.identities.as_ref().map(Identities::postgres_listener);
        let mut standby = Box::pin(self.primary.start_standby(&directory, STANDBY, listener)).await?;
        scratch.guard(standby.process())?;
        self.standby = Some(standby);
        // Only now, so that no commit waits for a standby whose base backup is still running.
        self.primary.run("postgres", "alter system set synchronous_standby_names = 'standby'").await?;
        self.primary.run("postgres", "select pg_reload_conf()").await?;
        self.until_standby_streams().await
    }

    async fn until_standby_streams(&self) -> Result<(), Error> {
        let streams = "select 1 / count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'sync'";
        let end = Instant::now() + STREAM_TIMEOUT;
        while let Err(error) = self.primary.run("postgres", streams).await {
            if Instant::now() > end {
                return Err(Error::new(format!("the standby does not stream: {error}")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::sql;

    #[test]
    fn no_commit_is_lost_by_a_failover() {
        if !postgres::has_base_backup() {
            // To stderr itself, which the test harness does not capture: a skipped test must not look like a success.
            let _ = writeln!(std::io::stderr(), "SKIPPED: failover: there is no pg_basebackup");
            return;
        }
        runtime::block_on(1, async {
            let scratch = Scratch::new().unwrap();
            let clock = SteppedClock::new(scratch.path()).unwrap();
            let mut postgres =
                ReplicatedPostgres::start(&scratch.path().join("postgres"), &clock, &scratch, None).await.unwrap();
            postgres.primary().create_database("numbers").await.unwrap();
            let url = postgres.url("numbers");
            sql::execute(&url, "CREATE TABLE numbers (number int)").await.unwrap();
            for failovers in 1..=2 {
                sql::execute(&url, "INSERT INTO numbers VALUES (1)").await.unwrap();
                postgres.fail_over(&scratch).await.unwrap();
                assert_eq!(sql::number(&url, "SELECT count(*) FROM numbers").await.unwrap(), failovers);
            }
        });
    }
}
