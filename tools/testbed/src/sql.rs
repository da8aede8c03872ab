//! Queries and locks on a service's PostgreSQL database.

use std::time::Duration;

use runtime::timeout;
use sqlx::{Connection as _, PgConnection, postgres::PgRow};

use crate::Error;

/// Timeout of a statement.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A session. It holds its locks and its transaction until it is dropped.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
}

impl Session {
    /// Connects to the database at this URL.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn open(url: &str) -> Result<Self, Error> {
        // Boxed, because with TLS the future is large, and would be part of every caller's.
        let connection = timeout(TIMEOUT, Box::pin(PgConnection::connect(url))).await??;
        Ok(Self { connection })
    }

    /// Runs statements, separated by semicolons.
    ///
    /// # Errors
    /// If one fails.
    pub async fn execute(&mut self, statements: &'static str) -> Result<(), Error> {
        let work = sqlx::raw_sql(statements).execute(&mut self.connection);
        timeout(TIMEOUT, work).await??;
        Ok(())
    }

    /// The rows that a statement returns, each read by `read`.
    ///
    /// # Errors
    /// If the statement or `read` fails.
    pub async fn rows<T>(
        &mut self,
        statement: &'static str,
        read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, Error> {
        let work = sqlx::query(statement).fetch_all(&mut self.connection);
        let rows = timeout(TIMEOUT, work).await??;
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}

/// The rows that a statement returns in a new session, each read by `read`.
///
/// # Errors
/// If the statement or `read` fails.
pub async fn rows<T>(
    url: &str,
    statement: &'static str,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, Error> {
    Session::open(url).await?.rows(statement, read).await
}

/// The number in the first column of the first row that a statement returns.
///
/// # Errors
/// If there is no such row.
pub async fn number(url: &str, statement: &'static str) -> Result<i64, Error> {
    use sqlx::Row as _;
    let rows = rows(url, statement, |row| row.try_get(0)).await?;
    rows.into_iter().next().ok_or_else(|| Error::new("there is no row"))
}

/// Runs statements, separated by semicolons, in a new session.
///
/// # Errors
/// If one fails.
pub async fn execute(url: &str, statements: &'static str) -> Result<(), Error> {
    Session::open(url).await?.execute(statements).await
}
