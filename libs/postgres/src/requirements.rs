//! Requirements on the database, checked before migrations, with hints for the administrator.

use std::time::Instant;

use sqlx::{Connection as _, PgConnection, Row as _, error::DatabaseError, migrate::MigrateError, query};

use crate::{
    Error,
    error::{MigrationFailure, describe},
    pool::{Pools, Purpose},
};

/// How often it is checked whether two concurrent connections share a server session.
const SESSION_CHECKS: usize = 3;

/// What a service requires of its database besides sessions of its own and the encoding UTF8.
///
/// Without it, the service refuses an empty database, before it migrates it. On one that it has served before, by an earlier version
/// for instance, it logs a warning at each start and works as well as it can: an upgrade is no outage.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// A statement that returns whether an empty database meets it.
    pub before: &'static str,
    /// A statement that returns whether a database does that is migrated. If it cannot be executed, nothing is known.
    pub after: &'static str,
    /// What the database lacks otherwise, and what an administrator has to do.
    pub remedy: &'static str,
}

impl Requirement {
    /// Checks a database that is not migrated yet.
    pub(crate) async fn check(&self, connection: &mut PgConnection) -> Result<(), MigrationFailure> {
        let failed = |error: sqlx::Error| match Error::from(error) {
            error @ Error::Query(_) => MigrationFailure::Permanent(error.to_string()),
            error => MigrationFailure::Transient(error),
        };
        let is_met = is_true(connection, self.before).await.map_err(failed)?;
        if is_met { Ok(()) } else { Err(MigrationFailure::Permanent(self.remedy.to_owned())) }
    }

    /// Warns if a database that is migrated does not meet it.
    pub(crate) async fn warn(&self, connection: &mut PgConnection) {
        if matches!(is_true(connection, self.after).await, Ok(false)) {
            tracing::warn!("the database does not meet a requirement: {}", self.remedy);
        }
    }
}

/// Warns if commits of the session are not on disk when they are acknowledged. It is the session of the role that works, whose
/// settings may differ from those of the owner.
pub(crate) async fn warn_unless_durable(connection: &mut PgConnection) {
    let durable = "-- check the durability\nSELECT current_setting('synchronous_commit') <> 'off'";
    if matches!(is_true(connection, durable).await, Ok(false)) {
        tracing::warn!(
            "synchronous_commit is off, by the role, the database, the server or the options of DATABASE_URL: what was answered as \
             done may be lost when PostgreSQL crashes"
        );
    }
}

async fn is_true(connection: &mut PgConnection, statement: &'static str) -> Result<bool, sqlx::Error> {
    query(statement).persistent(false).fetch_one(connection).await?.try_get(0)
}

/// Whether no migration was ever executed.
pub(crate) async fn is_empty(connection: &mut PgConnection) -> bool {
    let absent = "-- migration history exists\nSELECT to_regclass('_sqlx_migrations') IS NULL";
    let empty = "-- migration history is empty\nSELECT NOT EXISTS (SELECT FROM _sqlx_migrations)";
    // What is wrong with the connection or the history, the migrations find out.
    matches!(is_true(connection, absent).await, Ok(true)) || matches!(is_true(connection, empty).await, Ok(true))
}

/// Checks the requirements of every service: sessions of our own, and the encoding UTF8.
pub(crate) async fn check(
    connection: &mut PgConnection,
    pools: &Pools,
    purpose: Purpose,
    until: Instant,
) -> Result<(), MigrationFailure> {
    let transient = |error: sqlx::Error| MigrationFailure::Transient(error.into());
    if shares_sessions(connection, pools, purpose, until).await.map_err(MigrationFailure::Transient)? {
        let variable = match purpose {
            Purpose::Work => "DATABASE_URL",
            Purpose::Migration => pools.settings().migration_variable(),
        };
        return Err(MigrationFailure::Permanent(format!(
            "{variable} leads to a connection pooler (such as PgBouncer) in transaction or statement \
             mode: prepared statements and session settings do not survive there. Set \
             pool_mode = session for this database, or let {variable} lead to PostgreSQL itself"
        )));
    }
    let row = query("SELECT current_setting('server_encoding'), current_database()");
    let row = row.persistent(false).fetch_one(connection).await.map_err(transient)?;
    let (encoding, database): (String, String) =
        (row.try_get(0).map_err(transient)?, row.try_get(1).map_err(transient)?);
    if encoding != "UTF8" {
        return Err(MigrationFailure::Permanent(format!(
            "the database {database:?} has the encoding {encoding}, which cannot hold every name: make one with CREATE \
             DATABASE ... ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0, and move the data with pg_dump and pg_restore"
        )));
    }
    Ok(())
}

/// Whether a second connection is given the same server session: then a pooler in transaction or statement mode is
/// between.
async fn shares_sessions(
    connection: &mut PgConnection,
    pools: &Pools,
    purpose: Purpose,
    until: Instant,
) -> Result<bool, Error> {
    let first = session(connection).await?;
    let mut other = pools.connect(until, purpose).await?;
    // Outside a transaction first, because poolers in statement mode reject transactions.
    if session(&mut other).await? == first {
        return Ok(true);
    }
    for _ in 0..SESSION_CHECKS {
        // The simple query protocol: prepared statements do not work behind such poolers.
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        let others = session(&mut other).await?;
        if others == first {
            return Ok(true);
        }
        let again = session(connection).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        if again != first {
            return Ok(true);
        }
    }
    let _ = other.close().await;
    Ok(false)
}

async fn session(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::raw_sql("SELECT pg_backend_pid()::text").fetch_one(connection).await?.try_get(0)
}

/// Whether a migration whose statement failed is worth a retry: if the state of the server is the reason. `variable`: the one with
/// the URL of the connection.
pub(crate) async fn classify(
    connection: &mut PgConnection,
    error: sqlx::Error,
    variable: &'static str,
) -> MigrationFailure {
    let sqlx::Error::Database(database) = &error else {
        return match Error::from(error) {
            error @ Error::Unavailable(_) => MigrationFailure::Transient(error),
            error => MigrationFailure::Permanent(format!("the schema cannot be migrated: {error}")),
        };
    };
    if let Some(hint) = hint(connection, &**database, variable).await {
        return MigrationFailure::Permanent(format!(
            "the schema cannot be migrated: {}; {hint}",
            describe(&**database)
        ));
    }
    match Error::from(error) {
        error @ (Error::Unavailable(_) | Error::Locked | Error::Timeout | Error::ReadOnly | Error::Resources(_)) => {
            MigrationFailure::Transient(error)
        }
        error => MigrationFailure::Permanent(format!("the schema cannot be migrated: {error}")),
    }
}

/// What an administrator has to do about the error.
async fn hint(connection: &mut PgConnection, error: &dyn DatabaseError, variable: &'static str) -> Option<String> {
    let message = error.message();
    Some(match &*error.code()? {
        // Objects of these names exist, and the migration history does not know them.
        "42P07" | "42710" | "42723" => {
            format!(
                "it belongs to somebody else, and is not recorded in _sqlx_migrations: give the service a database of its own, or a \
                 schema of its own (CREATE SCHEMA app; {variable}=...?currentSchema=app)"
            )
        }
        "42501" if message.contains("extension") => {
            format!(
                "let a superuser run CREATE EXTENSION in this database, or GRANT CREATE ON DATABASE to the role of {variable}"
            )
        }
        "42501" => format!("GRANT CREATE ON SCHEMA to the role of {variable}, or make it the owner of the database"),
        "3F000" => format!("create the schema that currentSchema in {variable}, or the role's search_path, names"),
        "0A000" | "58P01" if message.contains("extension") => {
            "install PostgreSQL's contrib modules on the server (postgresql-contrib)".to_owned()
        }
        // An operator class or function of an extension that is installed in a schema outside the search_path.
        "42704" | "42883" => match unsearched_extension(connection).await {
            Some((extension, schema)) => format!(
                "the extension {extension} is in the schema {schema}, which is not searched: ALTER EXTENSION {extension} \
                 SET SCHEMA public, or ALTER ROLE ... SET search_path = public, {schema} (or name it in currentSchema \
                 of {variable})"
            ),
            None => return None,
        },
        _ => return None,
    })
}

/// pg_trgm and its schema, if that is not in the search_path.
async fn unsearched_extension(connection: &mut PgConnection) -> Option<(String, String)> {
    // The failed transaction has been rolled back by now.
    let row = query(
        "SELECT e.extname::text, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE n.nspname <> ALL(current_schemas(true)) AND e.extname = 'pg_trgm'",
    );
    let row = row.persistent(false).fetch_optional(connection).await.ok()??;
    Some((row.try_get(0).ok()?, row.try_get(1).ok()?))
}

/// The message for a migration history that does not fit this program.
pub(crate) fn history_error(error: &MigrateError) -> String {
    let hint = match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
            "; the table _sqlx_migrations is of another program or of a newer version of this one: give the service a \
             database of its own, or run the version that migrated it"
        }
        _ => "",
    };
    format!("the schema cannot be migrated: {error}{hint}")
}
