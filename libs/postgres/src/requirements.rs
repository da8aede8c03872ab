//! What a database must have for a service to work on it, and what an administrator has to do if it has not.

use std::time::Instant;

use sqlx::{Connection as _, PgConnection, Row as _, error::DatabaseError, migrate::MigrateError, query};

use crate::{
    Error,
    error::{MigrationFailure, describe},
    pool::{Limits, Pools},
};

/// Looks whether two connections at once share a server's session, so often.
const SESSION_LOOKS: usize = 3;

/// Checks what must hold before the schema is migrated.
pub(crate) async fn check(
    connection: &mut PgConnection,
    pools: &Pools,
    until: Instant,
) -> Result<(), MigrationFailure> {
    let passing = |error: sqlx::Error| MigrationFailure::Passing(error.into());
    if shares_sessions(connection, pools, until).await.map_err(MigrationFailure::Passing)? {
        return Err(MigrationFailure::Final(
            "DATABASE_URL leads to a connection pooler (such as PgBouncer) that lends its server connections for a \
             transaction or a statement: prepared statements and session settings do not survive there. Set \
             pool_mode = session for this database, or let DATABASE_URL lead to PostgreSQL itself"
                .to_owned(),
        ));
    }
    let row = query("SELECT current_setting('server_encoding'), current_database()");
    let row = row.persistent(false).fetch_one(connection).await.map_err(passing)?;
    let (encoding, database): (String, String) = (row.try_get(0).map_err(passing)?, row.try_get(1).map_err(passing)?);
    if encoding != "UTF8" {
        return Err(MigrationFailure::Final(format!(
            "the database {database:?} has the encoding {encoding}, which cannot hold every name: make one with CREATE \
             DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and move the data with pg_dump and pg_restore"
        )));
    }
    Ok(())
}

/// Whether another connection at the same time has the same session at the server: a pooler between lends it by the
/// transaction.
async fn shares_sessions(connection: &mut PgConnection, pools: &Pools, until: Instant) -> Result<bool, Error> {
    let first = session(connection).await?;
    let mut other = pools.connect(until, Limits::Migration).await?;
    // Before any transaction, which not every pooler allows.
    if session(&mut other).await? == first {
        return Ok(true);
    }
    for _ in 0..SESSION_LOOKS {
        // Simple statements: prepared ones are what does not work there.
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

/// What became of a migration whose statement has failed: it is tried again if the server's state is the reason.
pub(crate) async fn explain(connection: &mut PgConnection, error: sqlx::Error) -> MigrationFailure {
    let sqlx::Error::Database(database) = &error else {
        return match Error::from(error) {
            error @ Error::Unavailable(_) => MigrationFailure::Passing(error),
            error => MigrationFailure::Final(format!("the schema cannot be migrated: {error}")),
        };
    };
    if let Some(advice) = advice(connection, &**database).await {
        return MigrationFailure::Final(format!("the schema cannot be migrated: {}; {advice}", describe(&**database)));
    }
    match Error::from(error) {
        error @ (Error::Unavailable(_) | Error::Locked | Error::Timeout | Error::ReadOnly) => {
            MigrationFailure::Passing(error)
        }
        error => MigrationFailure::Final(format!("the schema cannot be migrated: {error}")),
    }
}

/// What an administrator has to do.
async fn advice(connection: &mut PgConnection, error: &dyn DatabaseError) -> Option<String> {
    let message = error.message();
    let role = || "the role of DATABASE_URL";
    Some(match &*error.code()? {
        // Objects of these names are there, and the history of migrations does not know them.
        "42P07" | "42710" | "42723" => {
            "it belongs to somebody else: give the service a database of its own, or a schema of its own \
             (CREATE SCHEMA app; DATABASE_URL=...?currentSchema=app)"
                .to_owned()
        }
        "42501" if message.contains("extension") => {
            format!("let a superuser run CREATE EXTENSION in this database, or GRANT CREATE ON DATABASE to {}", role())
        }
        "42501" => format!("GRANT CREATE ON SCHEMA to {}, or make it the owner of the database", role()),
        "3F000" => "create the schema that currentSchema in DATABASE_URL, or the role's search_path, names".to_owned(),
        "0A000" | "58P01" if message.contains("extension") => {
            "install PostgreSQL's contrib modules on the server (postgresql-contrib)".to_owned()
        }
        // An operator class or function of an extension that is there, in a schema that is not searched.
        "42704" | "42883" => match unsearched_extension(connection).await {
            Some((extension, schema)) => format!(
                "the extension {extension} is in the schema {schema}, which is not searched: ALTER EXTENSION {extension} \
                 SET SCHEMA public, or ALTER ROLE ... SET search_path = public, {schema} (or name it in currentSchema \
                 of DATABASE_URL)"
            ),
            None => return None,
        },
        _ => return None,
    })
}

/// An extension in a schema that is not in the search path.
async fn unsearched_extension(connection: &mut PgConnection) -> Option<(String, String)> {
    // The failed transaction is rolled back with it.
    let row = query(
        "SELECT e.extname::text, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE n.nspname <> ALL(current_schemas(true)) AND e.extname = 'pg_trgm'",
    );
    let row = row.persistent(false).fetch_optional(connection).await.ok()??;
    Some((row.try_get(0).ok()?, row.try_get(1).ok()?))
}

/// A history of migrations that is not ours.
pub(crate) fn of_history(error: &MigrateError) -> String {
    let advice = match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
            "; the table _sqlx_migrations is of another program or of a newer version of this one: give the service a \
             database of its own, or run the version that migrated it"
        }
        _ => "",
    };
    format!("the schema cannot be migrated: {error}{advice}")
}
