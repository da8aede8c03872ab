//! Looking behind a service, into its PostgreSQL, and getting in its way there.

use std::{fmt, time::Duration};

use runtime::timeout;
use sqlx::{Connection as _, PgConnection, postgres::PgRow};

use crate::StartError;

/// Time for one statement.
const LIMIT: Duration = Duration::from_secs(60);

/// A session of a test's own. What it holds (locks, a transaction) is held until it is dropped.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
}

impl Session {
    /// Connects to the database at this URL.
    ///
    /// # Errors
    /// If it cannot.
    pub async fn open(url: &str) -> Result<Self, StartError> {
        let connection = timeout(LIMIT, PgConnection::connect(url)).await.map_err(failed)?.map_err(failed)?;
        Ok(Self { connection })
    }

    /// Runs statements, separated by semicolons.
    ///
    /// # Errors
    /// If one fails.
    pub async fn execute(&mut self, statements: &'static str) -> Result<(), StartError> {
        let work = sqlx::raw_sql(statements).execute(&mut self.connection);
        timeout(LIMIT, work).await.map_err(failed)?.map_err(failed)?;
        Ok(())
    }

    /// The rows that a statement gives.
    ///
    /// # Errors
    /// If it fails, or a row cannot be read so.
    pub async fn rows<T>(
        &mut self,
        statement: &'static str,
        read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, StartError> {
        let work = sqlx::query(statement).fetch_all(&mut self.connection);
        let rows = timeout(LIMIT, work).await.map_err(failed)?.map_err(failed)?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }
}

/// The rows that a statement gives on a session of its own.
///
/// # Errors
/// If it fails, or a row cannot be read so.
pub async fn rows<T>(
    url: &str,
    statement: &'static str,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, StartError> {
    Session::open(url).await?.rows(statement, read).await
}

/// The number that a statement gives.
///
/// # Errors
/// If it gives none.
pub async fn number(url: &str, statement: &'static str) -> Result<i64, StartError> {
    use sqlx::Row as _;
    let rows = rows(url, statement, |row| row.try_get(0)).await?;
    rows.into_iter().next().ok_or_else(|| StartError::new("there is no row"))
}

/// Runs statements, separated by semicolons, on a session of its own.
///
/// # Errors
/// If one fails.
pub async fn execute(url: &str, statements: &'static str) -> Result<(), StartError> {
    Session::open(url).await?.execute(statements).await
}

fn failed(error: impl fmt::Display) -> StartError {
    StartError::new(error.to_string())
}
