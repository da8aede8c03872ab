use std::{borrow::Cow, io};

use sqlx::{
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

/// Why work on the database failed, by what it means to the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot do it now: it is away, late, full or in the middle of a restart. Whether a statement took
    /// effect is not known. Trying again later may help.
    #[error("the database cannot serve now: {0}")]
    Unavailable(Cow<'static, str>),
    /// The server takes no writes, as a standby or an old primary after a failover; nothing was done. The connections
    /// that led there are closed.
    #[error("the server takes no writes")]
    ReadOnly,
    /// Other transactions hold what it needs, or wait for it in turn; it was undone. Trying again later helps. The
    /// server is well.
    #[error("other transactions hold what the statement needs")]
    Locked,
    /// The server is well and cancelled the statement, which took too long (`statement_timeout`) or was cancelled by
    /// somebody; it was undone.
    #[error("the server cancelled the statement, which took too long")]
    Timeout,
    /// So many wait for the same statement that no more may; it was not begun.
    #[error("too many requests wait for the same statement")]
    QueueFull,
    /// The constraint of this name forbids it.
    #[error("the constraint {0} forbids it")]
    Constraint(String),
    /// The statement is wrong, or the data are not what it expects: a mistake in the program.
    #[error("the statement failed: {}", without_data(.0))]
    Query(sqlx::Error),
}

impl Error {
    /// The same error for another who waited for the same work.
    #[must_use]
    pub fn for_another(&self) -> Self {
        match self {
            Self::Unavailable(why) => Self::Unavailable(why.clone()),
            Self::ReadOnly => Self::ReadOnly,
            Self::Locked => Self::Locked,
            Self::Timeout => Self::Timeout,
            Self::QueueFull => Self::QueueFull,
            Self::Constraint(name) => Self::Constraint(name.clone()),
            Self::Query(_) => Self::Query(sqlx::Error::Protocol(self.to_string())),
        }
    }

    /// Whether the server has undone the statement because of what it was to do, and could do another.
    pub(crate) fn is_of_the_statement(&self) -> bool {
        matches!(self, Self::Locked | Self::Constraint(_) | Self::Query(sqlx::Error::Database(_)))
    }

    /// A short name for traces.
    pub fn outcome(&self) -> Cow<'static, str> {
        match self {
            Self::Unavailable(_) => "unavailable".into(),
            Self::ReadOnly => "read_only".into(),
            Self::Locked => "locked".into(),
            Self::Timeout => "timeout".into(),
            Self::QueueFull => "queue_full".into(),
            Self::Constraint(name) => name.clone().into(),
            Self::Query(_) => "query".into(),
        }
    }
}

/// The error's message, without what it may quote of the data.
fn without_data(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => describe(&**error),
        error => error.to_string(),
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                if let Some(constraint) = database.constraint() {
                    return Self::Constraint(constraint.to_owned());
                }
                match &*database.code().unwrap_or_default() {
                    "40001" | "40P01" | "55P03" => Self::Locked,
                    "57014" => Self::Timeout,
                    "25006" => Self::ReadOnly,
                    code if is_passing(code) => Self::Unavailable(describe(&**database).into()),
                    _ => Self::Query(error),
                }
            }
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                Self::Unavailable(error.to_string().into())
            }
            _ => Self::Query(error),
        }
    }
}

/// Whether an SQLSTATE tells of the server's state rather than of the statement.
fn is_passing(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    // Connection, authorisation, rollback, resources, operator intervention, system error; the end of an idle transaction;
    // no such database (yet).
    matches!(class, "08" | "28" | "40" | "53" | "57" | "58") || matches!(code, "25P03" | "25P04" | "3D000")
}

/// PostgreSQL's own words and its SQLSTATE, with what an administrator can do about it. Messages that can quote data are
/// left out: those of classes 22 (data exception) and 23 (integrity constraint violation), what triggers raise, and
/// internal errors.
pub(crate) fn describe(error: &dyn DatabaseError) -> String {
    let code = error.code().unwrap_or_default();
    let class = code.get(..2).unwrap_or_default();
    let holds_no_data =
        ["08", "0A", "25", "26", "28", "2F", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"].contains(&class);
    let mut text = if holds_no_data {
        // One line, whatever a proxy makes of it.
        format!("{} (SQLSTATE {code})", error.message().replace(['\n', '\r'], " "))
    } else {
        format!("SQLSTATE {code}")
    };
    if let Some(advice) = advice(&code) {
        text = format!("{text}; {advice}");
    }
    text
}

/// What an administrator can do about an error that has nothing to do with the statement.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "check the user and the password in DATABASE_URL (or SPRING_DATASOURCE_USERNAME and _PASSWORD), and pg_hba.conf"
        }
        "3D000" => "create it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, or correct DATABASE_URL",
        "53300" => "raise max_connections, or lower DATABASE_CONNECTIONS",
        _ => return None,
    })
}

/// What a failure says of the connection on which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// What the connection has prepared is of another schema than the one that there is now, or is gone.
    StaleStatement,
    /// Other transactions: a serialization failure or a deadlock. The same work may succeed at once.
    Conflict,
    /// The connection leads to a server that takes no writes.
    ReadOnly,
    /// The server ends its sessions: it is going down, or has gone.
    Shutdown,
    /// The connection is of no more use.
    Disconnected,
    /// The statement itself.
    Statement,
}

impl Cause {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = error else {
            // What the client does not understand of a row is no trouble of the connection.
            let of_connection = matches!(
                error,
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
            );
            return if of_connection { Self::Disconnected } else { Self::Statement };
        };
        let postgres = database.try_downcast_ref::<PgDatabaseError>();
        match &*database.code().unwrap_or_default() {
            // "cached plan must not change result type": in the server's language, so that only the routine tells it from
            // other features that are not supported.
            "0A000" if postgres.and_then(PgDatabaseError::routine) == Some("RevalidateCachedQuery") => {
                Self::StaleStatement
            }
            // No such prepared statement; there is one of the name.
            "26000" | "42P05" => Self::StaleStatement,
            // Parameters and operators were resolved when it was prepared; for types that have since been changed, dropped
            // or made anew, anew is otherwise.
            "42804" | "42883" | "42704" | "42703" | "42P18" => Self::StaleStatement,
            // "cache lookup failed for type 16423", "could not open relation with OID": what it refers to was dropped.
            "XX000" => Self::StaleStatement,
            "40001" | "40P01" => Self::Conflict,
            "25006" => Self::ReadOnly,
            "57P01" | "57P02" | "57P03" => Self::Shutdown,
            code if code.starts_with("57P") || code.starts_with("08") || matches!(code, "25P03" | "25P04") => {
                Self::Disconnected
            }
            _ if postgres.is_some_and(is_fatal) => Self::Disconnected,
            _ => Self::Statement,
        }
    }

    /// Whether it is the answer of a server that has undone the statement and goes on.
    pub(crate) fn is_of_server(self) -> bool {
        matches!(self, Self::StaleStatement | Self::Conflict | Self::ReadOnly)
    }

    /// Its label in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StaleStatement => "stale_statement",
            Self::Conflict => "conflict",
            Self::ReadOnly => "read_only",
            Self::Shutdown => "shutdown",
            Self::Disconnected => "disconnected",
            Self::Statement => "statement",
        }
    }
}

fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

/// Whether the failure itself shows that nothing was done: the server has undone the statement or never begun it.
/// `committing` is whether the failure may have come after the commit of a transaction.
pub(crate) fn is_certainly_undone(error: &sqlx::Error, committing: bool) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            let is_fatal = database.try_downcast_ref::<PgDatabaseError>().is_none_or(is_fatal);
            match &*database.code().unwrap_or_default() {
                // These come while the server waits for a statement, which therefore was not begun.
                "57P05" | "25P03" => true,
                // A statement that is its own transaction is committed with the message that ends the exchange, after which
                // the server says nothing else. A COMMIT is an exchange of its own, after which it may.
                "57P01" | "57P02" | "57P03" | "57P04" | "25P04" => !committing,
                // Other ends of a session may be a proxy's word, which does not know what the server has done.
                _ => !is_fatal,
            }
        }
        // What was sent has not been read to its end, and it is the end that commits.
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
        _ => false,
    }
}

/// Why the schema was not migrated.
pub(crate) enum MigrationFailure {
    /// It may succeed later.
    Passing(Error),
    /// It does not, unless somebody changes the database or the settings.
    Final(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_does_not_show_what_was_done_and_a_broken_pipe_does() {
        let io = |kind: io::ErrorKind| sqlx::Error::Io(kind.into());
        assert!(is_certainly_undone(&io(io::ErrorKind::BrokenPipe), true));
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::TimedOut] {
            assert!(!is_certainly_undone(&io(kind), false), "{kind}");
            assert_eq!(Cause::of(&io(kind)), Cause::Disconnected);
        }
        assert!(!is_certainly_undone(&sqlx::Error::Protocol(String::new()), false));
        assert_eq!(Cause::of(&sqlx::Error::RowNotFound), Cause::Statement);
    }
}
