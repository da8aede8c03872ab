//! Migrating the schema at the start of a service.

use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use runtime::{Backoff, Shutdown, timeout};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Row as _,
    migrate::{Migrate as _, MigrateError, Migrator},
    query, raw_sql,
};

use super::Database;
use crate::{
    Error, Requirement,
    error::MigrationFailure,
    pool::{Purpose, unavailable},
    requirements, runtime_role,
    settings::OWNER_URL,
};

/// Time for all migrations together: indexing a large table takes long.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Pause after the schema was migrated again, before it may be again: if tables are missing that the migration history says
/// are there, it changes nothing.
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Time of one try to take the lock with which one replica at a time migrates.
const LOCK_TRY: Duration = Duration::from_secs(3);

/// With these the server ends a session whose host is gone: it holds the lock until then. With the last one, which PostgreSQL has
/// since 14, it looks for its client while a statement runs, too. Not every system has them.
const KEEPALIVES: [&str; 4] = [
    "SET tcp_keepalives_idle = '10s'",
    "SET tcp_keepalives_interval = '5s'",
    "SET tcp_keepalives_count = 3",
    "SET client_connection_check_interval = '2s'",
];

/// Why the service cannot use this database until somebody changes it or the settings.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

impl Database {
    /// Migrates the schema, and retries until the database is available. Several replicas may do so at once. Until it
    /// is done, [`run`](Self::run) returns [`Error::Unavailable`]. With an owner's URL, that role migrates, and it is done once
    /// the other role has the privileges on every table.
    ///
    /// # Errors
    /// If the schema cannot be migrated, or its migration history belongs to another program; not if the shutdown comes
    /// first.
    pub async fn migrate(&self, migrator: &Migrator, shutdown: &Shutdown) -> Result<(), MigrationError> {
        self.migrate_until_done(migrator, &[], shutdown, true).await
    }

    /// As [`migrate`](Self::migrate) for a service with requirements of its own, and again until the shutdown when a statement
    /// finds no table or column of a name in it: the database was made anew, or restored from a dump that is older than the last
    /// migration. If that is not possible, work returns [`Error::Unavailable`] until it is: whoever restores the database may not be
    /// done yet.
    ///
    /// Migrations of a newer version are an error at the start alone. While this version runs, they are those of a rolling update,
    /// whose new replica may be the first to migrate the schema again; they only add to it.
    ///
    /// # Errors
    /// As those of [`migrate`](Self::migrate), or if an empty database does not meet a requirement; for the first time alone.
    pub async fn keep_migrated(
        &self,
        migrator: &Migrator,
        requirements: &[Requirement],
        shutdown: &Shutdown,
    ) -> Result<(), MigrationError> {
        self.migrate_until_done(migrator, requirements, shutdown, true).await?;
        let again = Migrator { ignore_missing: true, ..copy(migrator) };
        while shutdown.run_until_stopped(self.inner.schema_lost.wait()).await.is_some() {
            tracing::warn!("the schema is not complete; it is migrated again");
            self.migrate_until_done(&again, requirements, shutdown, false).await?;
            shutdown.run_until_stopped(smol::Timer::after(REPEAT_INTERVAL)).await;
        }
        Ok(())
    }

    async fn migrate_until_done(
        &self,
        migrator: &Migrator,
        requirements: &[Requirement],
        shutdown: &Shutdown,
        is_first: bool,
    ) -> Result<(), MigrationError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            // Stopped, it is given up: it may take as long as the whole limit. Its connection is closed, and the
            // migration under way is rolled back.
            let migrating = timeout(MIGRATION_TIMEOUT, Box::pin(self.try_migrate(migrator, requirements)));
            let Some(migrated) = shutdown.run_until_stopped(migrating).await else { return Ok(()) };
            let error = match migrated
                .unwrap_or_else(|late| Err(MigrationFailure::Transient(unavailable(format!("migrating: {late}")))))
            {
                Ok(()) => {
                    self.inner.report(Instant::now(), None);
                    self.inner.migrated.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(MigrationFailure::Permanent(error)) if is_first => {
                    let error = MigrationError(error);
                    let _ = self.inner.permanent_error.set(error.clone());
                    return Err(error);
                }
                Err(MigrationFailure::Permanent(error)) => error,
                Err(MigrationFailure::Transient(error)) => error.to_string(),
            };
            // The server comes up, and then the password is wrong: each reason is logged once.
            if self.inner.outage.failed(&error) {
                tracing::warn!(error, "the database is unavailable");
            }
            *self.inner.migration_error() = Some(error);
            self.inner.migrated.store(false, Ordering::Release);
            if shutdown.run_until_stopped(backoff.pause()).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn try_migrate(&self, migrator: &Migrator, requirements: &[Requirement]) -> Result<(), MigrationFailure> {
        let pools = &self.inner.pools;
        let settings = pools.settings();
        let until = Instant::now() + settings.acquire;
        let failed = |error: Error| match error {
            error @ Error::Query(_) => MigrationFailure::Permanent(error.to_string()),
            error if settings.owner.is_none() => MigrationFailure::Transient(error),
            error => MigrationFailure::Transient(unavailable(format!("as the role of {OWNER_URL}: {error}"))),
        };
        // A connection of its own without timeouts: a statement of a migration may take longer than any other.
        let mut connection = pools.connect(until, Purpose::Migration).await.map_err(failed)?;
        requirements::check(&mut connection, pools, Purpose::Migration, until).await?;
        if requirements::is_empty(&mut connection).await {
            for requirement in requirements {
                requirement.check(&mut connection).await?;
            }
        }
        for setting in KEEPALIVES {
            let _ = raw_sql(setting).execute(&mut connection).await;
        }
        let migrated = match self.lock(&mut connection).await {
            Ok(()) => Migrator { locking: false, ..copy(migrator) }.run_direct(None, &mut connection, false).await,
            Err(error) => Err(error),
        };
        match migrated {
            Ok(()) => {
                // The end of the session releases it too.
                let _ = connection.unlock().await;
                if settings.owner.is_some() {
                    runtime_role::check(&mut connection, pools).await?;
                } else {
                    requirements::warn_unless_durable(&mut connection).await;
                }
                for requirement in requirements {
                    requirement.warn(&mut connection).await;
                }
                let _ = connection.close().await;
                Ok(())
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                Err(requirements::classify(&mut connection, error, settings.migration_variable()).await)
            }
            Err(error) => Err(MigrationFailure::Permanent(requirements::history_error(&error))),
        }
    }

    /// Takes sqlx's lock, with which one replica at a time migrates, and says who holds it meanwhile. Each try has an end on the
    /// server and here, so that a connection that is lost does not wait for ever.
    async fn lock(&self, connection: &mut PgConnection) -> Result<(), MigrateError> {
        let limit = LOCK_TRY + self.inner.pools.settings().acquire;
        let mut is_reported = false;
        let set = AssertSqlSafe(format!("SET lock_timeout = {}", LOCK_TRY.as_millis()));
        raw_sql(set).execute(&mut *connection).await?;
        loop {
            let locked = timeout(limit, connection.lock()).await;
            match locked.map_err(|late| sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, late)))? {
                Ok(()) => break,
                Err(MigrateError::Execute(error)) if is_lock_timeout(&error) => {}
                Err(error) => return Err(error),
            }
            let Some(holder) = lock_holder(connection).await? else { continue };
            if !is_reported {
                tracing::warn!(holder, "the migration waits for a lock that another session holds");
            }
            is_reported = true;
            *self.inner.migration_error() = Some(format!("the migration waits for a lock that process {holder} holds"));
        }
        if is_reported {
            *self.inner.migration_error() = None;
        }
        raw_sql("SET lock_timeout = 0").execute(&mut *connection).await?;
        Ok(())
    }

    /// Why the schema can never be migrated as the database and the settings are, if that is so.
    pub fn permanent_error(&self) -> Option<&MigrationError> {
        self.inner.permanent_error.get()
    }
}

/// As `Migrator::clone`, which sqlx does not have.
fn copy(migrator: &Migrator) -> Migrator {
    let (migrations, table_name) = (migrator.migrations.clone(), migrator.table_name.clone());
    let create_schemas = migrator.create_schemas.clone();
    Migrator { migrations, table_name, create_schemas, ..*migrator }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("55P03")
}

/// The process of the server whose session holds the lock of migrations, if one still does.
async fn lock_holder(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    // sqlx's key is a product of two numbers of 32 bits, and the other keys are oids: the upper half of theirs is 0.
    let holder = query(
        "-- holder of the migration lock
        SELECT string_agg(pid::text, ', ') FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND classid <> 0 AND objsubid = 1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
    holder.persistent(false).fetch_one(connection).await?.try_get(0)
}
