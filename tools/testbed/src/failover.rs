//! PostgreSQL as a primary with a synchronous standby behind one address, which fails over.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Scratch, Signal, StartError,
    clock::SteppedClock,
    postgres::{self, Cluster, Durability},
    proxy::{Mode, Proxy, Target},
};

/// The name by which the primary knows its standby.
const STANDBY: &str = "standby";
/// Time for a standby to stream.
const STREAM_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A primary, its standby, and the proxy through which clients reach whichever is the primary.
///
/// Without `pg_basebackup`, which some packages of PostgreSQL leave out, there is no standby and no failover.
#[derive(Debug)]
pub struct Replicated {
    primary: Cluster,
    standby: Option<Cluster>,
    proxy: Proxy,
    directory: PathBuf,
    /// How many servers there have been: each has a directory of its own.
    servers: usize,
}

impl Replicated {
    /// Starts both in directories of their own in `directory`, guarded by `scratch`.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub async fn start(directory: &Path, clock: &SteppedClock, scratch: &Scratch) -> Result<Self, StartError> {
        std::fs::create_dir(directory)?;
        let mut primary = Cluster::start_with_clock(&directory.join("0"), Durability::Process, clock).await?;
        scratch.guard(primary.process())?;
        let settings = [
            // The standby finds a primary that was restarted at once, not after 5 s.
            "wal_retrieve_retry_interval = '200ms'",
            // Replication's time-outs go by the clock that is stepped.
            "wal_sender_timeout = 0",
            "wal_receiver_timeout = 0",
        ];
        for setting in settings {
            primary.run("postgres", &format!("alter system set {setting}")).await?;
        }
        primary.run("postgres", "select pg_reload_conf()").await?;
        let proxy = Proxy::start().await?;
        let mut replicated = Self { primary, standby: None, proxy, directory: directory.to_owned(), servers: 1 };
        replicated.lead_to_primary();
        replicated.add_standby(scratch).await?;
        Ok(replicated)
    }

    /// The primary, to be struck.
    pub fn primary(&mut self) -> &mut Cluster {
        &mut self.primary
    }

    /// Whether there is a standby to fail over to.
    pub fn has_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// The URL of a database, on whichever is the primary.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.proxy.port())
    }

    /// Kills the primary, promotes the standby, leads every client there, and gives it a standby of its own. What was
    /// committed is there, because commits have waited for the standby.
    ///
    /// # Errors
    /// If there is no standby, it has not caught up in time, or one of the steps fails.
    pub async fn fail_over(&mut self, scratch: &Scratch) -> Result<(), StartError> {
        self.until_standby_streams().await?;
        // A commit of its own waits for the standby: after it, nothing is committed on the primary alone.
        self.primary.run("postgres", "select txid_current()").await?;
        let mut standby = self.standby.take().ok_or_else(|| StartError::new("there is no standby"))?;
        self.primary.process().signal_all(Signal::KILL);
        self.primary.process().kill().await;
        standby.run("postgres", "select pg_promote()").await?;
        std::mem::swap(&mut self.primary, &mut standby);
        self.lead_to_primary();
        // What is connected is connected to the dead one.
        self.proxy.set(Mode::Reset);
        smol::Timer::after(POLL_INTERVAL).await;
        self.proxy.set(Mode::Pass);
        self.add_standby(scratch).await
    }

    fn lead_to_primary(&self) {
        self.proxy.lead_to(Target::Socket(self.primary.socket_directory().join(".s.PGSQL.5432")));
    }

    async fn add_standby(&mut self, scratch: &Scratch) -> Result<(), StartError> {
        if !postgres::has_base_backup() {
            return Ok(());
        }
        let directory = self.directory.join(self.servers.to_string());
        self.servers += 1;
        let mut standby = self.primary.start_standby(&directory, STANDBY).await?;
        scratch.guard(standby.process())?;
        self.standby = Some(standby);
        // Only now, so that no commit waits for a standby that is still being copied.
        self.primary.run("postgres", "alter system set synchronous_standby_names = 'standby'").await?;
        self.primary.run("postgres", "select pg_reload_conf()").await?;
        self.until_standby_streams().await
    }

    async fn until_standby_streams(&self) -> Result<(), StartError> {
        let streams = "select 1 / count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'sync'";
        let end = Instant::now() + STREAM_LIMIT;
        while let Err(error) = self.primary.run("postgres", streams).await {
            if Instant::now() > end {
                return Err(StartError::new(format!("the standby does not stream: {error}")));
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
    fn what_was_committed_is_there_after_each_failover() {
        if !postgres::has_base_backup() {
            // Past the capture of the test's output, so that nobody takes this for a success.
            let _ = writeln!(std::io::stderr(), "SKIPPED: failover: there is no pg_basebackup");
            return;
        }
        runtime::block_on(1, async {
            let scratch = Scratch::new().unwrap();
            let clock = SteppedClock::new(scratch.path()).unwrap();
            let mut postgres = Replicated::start(&scratch.path().join("postgres"), &clock, &scratch).await.unwrap();
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
