use std::time::Duration;

use config::{Bounded, Reader, Secret, Value as _};
use sqlx::postgres::PgSslMode;

mod database_url;

pub use database_url::{URL_PARAMETERS, Url};

/// How to reach the database, and the limits of its use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where and as whom to connect.
    pub url: Secret<Url>,
    /// Where and as whom to connect to migrate the schema, if not by `url`: as the role that owns the tables.
    pub owner: Option<Secret<Url>>,
    /// Size of the pool for requests.
    pub connections: usize,
    /// Time for one piece of work on a connection, measured by the client. The server's `statement_timeout` is 100 ms
    /// shorter.
    pub deadline: Duration,
    /// Time to wait for a free connection.
    pub acquire: Duration,
}

/// The longest `statement_timeout`: 31 bits of milliseconds.
const MAX_DEADLINE: Duration = Duration::from_millis(i32::MAX as u64);

/// The variable of [`Settings::owner`].
pub(crate) const OWNER_URL: &str = "DATABASE_OWNER_URL";

impl Settings {
    /// Reads `DATABASE_URL`, `DATABASE_OWNER_URL`, `DATABASE_CONNECTIONS` and the deadlines, under these names or those of
    /// Spring.
    ///
    /// The variables of libpq (`PGHOST` and so on) are ignored. Those with which an operator expects something else are
    /// rejected: `PGSSLMODE` if it demands TLS and the URL does not, those of the files for TLS, `PGOPTIONS`, and `PGUSER` if
    /// nothing else names a user.
    pub fn read(reader: &mut Reader, example: &'static str, application: &'static str) -> Self {
        let names: &[&str] = &["DATABASE_URL", "SPRING_DATASOURCE_URL"];
        let url: Secret<Url> = reader.variable(names, "the database").required(example);
        let user: Option<String> =
            reader.variable(&["SPRING_DATASOURCE_USERNAME"], "user, instead of the URL's").optional();
        let password: Option<Secret<String>> =
            reader.variable(&["SPRING_DATASOURCE_PASSWORD"], "password, instead of the URL's").optional();
        let about = "the same database, as the role that owns the tables and migrates them at the start; DATABASE_URL by default";
        let owner: Option<Secret<Url>> = reader.variable(&[OWNER_URL], about).optional();
        let connections: Bounded<1, 1000> = reader
            .variable(
                &["DATABASE_CONNECTIONS"],
                "connections to the database for requests; the service needs a few besides them",
            )
            .or("16");
        let deadline = reader.variable(&["DATABASE_DEADLINE"], "time for one piece of work on the database").or("2s");
        if deadline > MAX_DEADLINE {
            reader.reject("DATABASE_DEADLINE", "at most 596h", "PostgreSQL has no longer statement_timeout");
        }
        let acquire = reader.variable(&["DATABASE_ACQUIRE_DEADLINE"], "time to wait for a connection").or("1s");
        let mut url = url.expose().clone();
        if let Some(user) = user {
            url.user = Some(user);
        }
        if let Some(password) = password {
            url.password = Some(password.expose().clone());
        }
        let url = checked(url, reader, names[0], application);
        let owner = owner.map(|owner| checked(owner.expose().clone(), reader, OWNER_URL, application));
        Self { url, owner, connections: connections.size(), deadline, acquire }
    }

    /// The variable with the URL for a migration.
    pub(crate) fn migration_variable(&self) -> &'static str {
        if self.owner.is_some() { OWNER_URL } else { "DATABASE_URL" }
    }
}

/// The complete URL of this variable, with its files read.
fn checked(mut url: Url, reader: &mut Reader, variable: &'static str, application: &str) -> Secret<Url> {
    reject_libpq_variables(reader, variable, &url);
    if let Err(error) = url.read_files() {
        reader.reject(variable, Url::EXPECTED, error.to_string());
    }
    Secret::new(url.complete(application))
}

/// Rejects variables that libpq or sqlx would apply and this program ignores. `setting`: the variable with the URL.
fn reject_libpq_variables(reader: &mut Reader, setting: &str, url: &Url) {
    let demands_tls = |mode: &&str| !matches!(*mode, "disable" | "allow" | "prefer");
    if reader.raw("PGSSLMODE").filter(demands_tls).is_some() && !url.demands_tls() {
        reader.reject(
            "PGSSLMODE",
            "disable, allow or prefer",
            format!("{setting} demands no TLS: write sslmode=... there"),
        );
    }
    for name in ["PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
        // sqlx would read it, whatever the URL says.
        if !matches!(url.mode(), PgSslMode::Disable) && reader.raw(name).is_some() {
            let why = format!("it would be used besides {setting}: write sslrootcert, sslcert and sslkey there");
            reader.reject(name, "nothing", why);
        }
    }
    if reader.raw("PGOPTIONS").is_some() {
        let why = format!("it would change the sessions: write options=... into {setting}");
        reader.reject("PGOPTIONS", "nothing", why);
    }
    if url.user.is_none() && reader.raw("PGUSER").is_some() {
        reader.reject("PGUSER", "nothing", format!("{setting} names no user: write it there"));
    }
}

#[cfg(test)]
mod tests;
