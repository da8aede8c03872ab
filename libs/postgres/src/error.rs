use std::{borrow::Cow, io};

use sqlx::{
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

/// Why work on the database failed, by what it means to the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, does not answer in time, has no free connection or is restarting. Whether the
    /// statement was executed is unknown. A retry later may succeed.
    #[error("the database cannot serve now: {0}")]
    Unavailable(Cow<'static, str>),
    /// The server is read-only, such as a standby or an old primary after a failover; nothing was written. The
    /// connections to it are closed.
    #[error("the server takes no writes")]
    ReadOnly,
    /// A lock timeout, a deadlock or a serialization failure; the statement was rolled back. A retry later may succeed.
    /// The server is healthy.
    #[error("other transactions hold what the statement needs")]
    Locked,
    /// The server cancelled the statement because of `statement_timeout` or on somebody's request; it was rolled back.
    /// The server is healthy.
    #[error("the server cancelled the statement, which took too long")]
    Timeout,
    /// The role lacks a privilege; nothing was done. The same statement succeeds once it is granted, without a restart.
    #[error("the role of the service lacks a privilege: {0}")]
    Denied(String),
    /// The server answers and lacks what the statement needs: disk space, memory, a file that it can read, or more of what a limit of
    /// its configuration allows, such as `temp_file_limit`. The statement was rolled back; others may succeed.
    #[error("the server lacks resources for the statement: {0}")]
    Resources(String),
    /// The queue of a [`Batcher`](crate::Batcher) is full; the request was not executed.
    #[error("too many requests wait for the same statement")]
    QueueFull,
    /// The constraint of this name was violated.
    #[error("the constraint {0} forbids it")]
    Constraint(String),
    /// The statement is wrong, or the data do not have the expected types: a bug in the program.
    #[error("the statement failed: {}", without_data(.0))]
    Query(sqlx::Error),
}

impl Error {
    /// The same error for another request of the same statement. sqlx's error is not `Clone`; its text is kept.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self {
            Self::Unavailable(why) => Self::Unavailable(why.clone()),
            Self::ReadOnly => Self::ReadOnly,
            Self::Locked => Self::Locked,
            Self::Timeout => Self::Timeout,
            Self::Denied(why) => Self::Denied(why.clone()),
            Self::Resources(why) => Self::Resources(why.clone()),
            Self::QueueFull => Self::QueueFull,
            Self::Constraint(name) => Self::Constraint(name.clone()),
            Self::Query(_) => Self::Query(sqlx::Error::Protocol(self.to_string())),
        }
    }

    /// Whether the failure is due to the statement's own effect, so that other statements can succeed.
    pub(crate) fn is_statement_error(&self) -> bool {
        matches!(self, Self::Locked | Self::Constraint(_) | Self::Query(sqlx::Error::Database(_)))
    }

    /// Whether a table, a schema or a column does not exist, although the statement was prepared anew: as after the restore of a
    /// dump that is older than the last migration.
    pub(crate) fn is_of_schema(&self) -> bool {
        let Self::Query(sqlx::Error::Database(error)) = self else { return false };
        matches!(&*error.code().unwrap_or_default(), "42P01" | "3F000" | "42703")
    }

    /// Label for traces, such as `unavailable`; the name of the constraint for a violated one.
    pub fn outcome(&self) -> Cow<'static, str> {
        match self {
            Self::Unavailable(_) => "unavailable".into(),
            Self::ReadOnly => "read_only".into(),
            Self::Locked => "locked".into(),
            Self::Timeout => "timeout".into(),
            Self::Denied(_) => "denied".into(),
            Self::Resources(_) => "resources".into(),
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
                    return Self::Constraint(of_reindex(constraint).unwrap_or(constraint).to_owned());
                }
                match &*database.code().unwrap_or_default() {
                    "25006" => Self::ReadOnly,
                    "42501" => Self::Denied(describe(&**database)),
                    // The session has ended, so the other codes say nothing about the statement.
                    _ if is_fatal(&**database) => Self::Unavailable(describe(&**database).into()),
                    "40001" | "40P01" | "55P03" => Self::Locked,
                    "57014" => Self::Timeout,
                    code if code.starts_with("53") || code.starts_with("58") => Self::Resources(describe(&**database)),
                    code if is_transient(code) => Self::Unavailable(describe(&**database).into()),
                    _ => Self::Query(error),
                }
            }
            sqlx::Error::Tls(_) => {
                let hint = "sslmode in DATABASE_URL says which TLS is demanded, and to another host it is verify-full by default";
                Self::Unavailable(format!("{error}; {hint}").into())
            }
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                Self::Unavailable(error.to_string().into())
            }
            _ => Self::Query(error),
        }
    }
}

/// The name of the index that `REINDEX CONCURRENTLY` replaces, if this is the name of the one that it builds or has replaced. Both
/// are unique until it ends, and the old one stays if it is cancelled.
fn of_reindex(index: &str) -> Option<&str> {
    let index = index.trim_end_matches(|c: char| c.is_ascii_digit());
    index.strip_suffix("_ccnew").or_else(|| index.strip_suffix("_ccold"))
}

/// Whether an SQLSTATE is about the state of the server rather than about the statement.
fn is_transient(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    // Connection, authorisation, rollback, operator intervention; the end of an idle transaction; no such database (yet).
    matches!(class, "08" | "28" | "40" | "57") || matches!(code, "25P03" | "25P04" | "3D000")
}

/// PostgreSQL's message and SQLSTATE, with a hint for the administrator. Messages that can quote data are left out:
/// those of classes 22 (data exception) and 23 (integrity constraint violation), what triggers raise, and internal
/// errors.
pub(crate) fn describe(error: &dyn DatabaseError) -> String {
    let code = error.code().unwrap_or_default();
    let class = code.get(..2).unwrap_or_default();
    let holds_no_data =
        ["08", "0A", "25", "26", "28", "2F", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"].contains(&class);
    if holds_no_data { describe_with_message(error) } else { with_hint(format!("SQLSTATE {code}"), &code) }
}

/// PostgreSQL's message and SQLSTATE, with a hint for the administrator.
fn describe_with_message(error: &dyn DatabaseError) -> String {
    let code = error.code().unwrap_or_default();
    // One line, whatever a proxy makes of it.
    with_hint(format!("{} (SQLSTATE {code})", error.message().replace(['\n', '\r'], " ")), &code)
}

fn with_hint(text: String, code: &str) -> String {
    match hint(code) {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

/// Why no session was opened. No statement has been executed, so the reason is the state of the server or of a proxy, whatever
/// the code is, and the message quotes no data.
pub(crate) fn of_connecting(error: sqlx::Error) -> Error {
    let sqlx::Error::Database(database) = &error else { return error.into() };
    match &*database.code().unwrap_or_default() {
        "25006" | "42501" => error.into(),
        _ => Error::Unavailable(describe_with_message(&**database).into()),
    }
}

/// Whether the server, or a pooler before it, has no connection left for this role or database. PgBouncer says so with the code of a
/// protocol violation.
pub(crate) fn is_connection_limit(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(database) = error else { return false };
    match &*database.code().unwrap_or_default() {
        "53300" => true,
        "08P01" => database.message().contains("no more connections allowed"),
        _ => false,
    }
}

/// Why the session settings of the URL in `variable` were not made. The timeouts that are set with them are always accepted, and the
/// message quotes nothing but the settings.
pub(crate) fn of_session_settings(error: sqlx::Error, variable: &str) -> Error {
    match Error::from(error) {
        Error::Query(sqlx::Error::Database(error)) => {
            let why = format!("PostgreSQL rejects the options in {variable}: {}", describe_with_message(&*error));
            Error::Query(sqlx::Error::Configuration(why.into()))
        }
        error => error,
    }
}

/// What an administrator can do about an error that does not depend on the statement.
fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "check the user and the password in DATABASE_URL (or SPRING_DATASOURCE_USERNAME and _PASSWORD), and pg_hba.conf"
        }
        "3D000" => {
            "create it with CREATE DATABASE ... ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0, or correct DATABASE_URL"
        }
        "53300" => "raise max_connections, or lower DATABASE_CONNECTIONS",
        _ => return None,
    })
}

/// What a failed statement means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A prepared statement of the connection does not fit the schema any more, or is gone.
    StaleStatement,
    /// A serialization failure or a deadlock. The same work may succeed at once.
    Conflict,
    /// A unique index that `REINDEX CONCURRENTLY` builds or has replaced. `ON CONFLICT` does not know it, and the row is there when
    /// the same work is executed again.
    Reindex,
    /// The connection leads to a read-only server.
    ReadOnly,
    /// The server shuts down or has crashed, and ends all sessions.
    Shutdown,
    /// The connection is broken.
    Disconnected,
    /// The statement itself.
    Statement,
}

impl Cause {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = error else {
            // A row that the client cannot decode says nothing about the connection.
            let of_connection = matches!(
                error,
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
            );
            return if of_connection { Self::Disconnected } else { Self::Statement };
        };
        let postgres = database.try_downcast_ref::<PgDatabaseError>();
        match &*database.code().unwrap_or_default() {
            "25006" => Self::ReadOnly,
            "57P01" | "57P02" | "57P03" => Self::Shutdown,
            code if code.starts_with("57P") || code.starts_with("08") || matches!(code, "25P03" | "25P04") => {
                Self::Disconnected
            }
            // A proxy reports a lost server with one of the codes below, or with any other.
            _ if is_fatal(&**database) => Self::Disconnected,
            // "cached plan must not change result type": the message is localized, so only the routine distinguishes it
            // from other unsupported features.
            "0A000" if postgres.and_then(PgDatabaseError::routine) == Some("RevalidateCachedQuery") => {
                Self::StaleStatement
            }
            // No such prepared statement; a prepared statement of this name exists already.
            "26000" | "42P05" => Self::StaleStatement,
            // Parameter types and operators were resolved when the statement was prepared; types that were changed,
            // dropped or created again since resolve differently.
            "42804" | "42883" | "42704" | "42703" | "42P18" => Self::StaleStatement,
            // "cache lookup failed for type 16423", "could not open relation with OID": an object that it uses was
            // dropped.
            "XX000" => Self::StaleStatement,
            "40001" | "40P01" => Self::Conflict,
            "23505" if database.constraint().and_then(of_reindex).is_some() => Self::Reindex,
            _ => Self::Statement,
        }
    }

    /// Its label in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StaleStatement => "stale_statement",
            Self::Conflict => "conflict",
            Self::Reindex => "reindex",
            Self::ReadOnly => "read_only",
            Self::Shutdown => "shutdown",
            Self::Disconnected => "disconnected",
            Self::Statement => "statement",
        }
    }
}

/// Whether the error has ended the session.
fn is_fatal(error: &dyn DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    severity.is_none_or(|severity| matches!(severity, PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the failure proves that the statement had no effect: the server rolled it back or never started it.
/// `committing` says whether COMMIT of a transaction may have been sent before.
pub(crate) fn certainly_had_no_effect(error: &sqlx::Error, committing: bool) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            match &*database.code().unwrap_or_default() {
                // Idle timeouts: they fire while the server waits for a statement, so the statement was not started.
                "57P05" | "25P03" => true,
                // A statement outside a transaction is committed with the message that ends the exchange, and no error
                // follows that. After a COMMIT, which is an exchange of its own, an error may follow.
                "57P01" | "57P02" | "57P03" | "57P04" | "25P04" => !committing,
                // A proxy that has lost the server does not know what that did. It says so with a fatal error of any code, or with
                // one of class 08.
                code => !is_fatal(&**database) && !code.starts_with("08"),
            }
        }
        // EPIPE: the server had closed the socket, so it cannot have read the end of the request, which commits.
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
        _ => false,
    }
}

/// Why the schema was not migrated.
pub(crate) enum MigrationFailure {
    /// A retry may succeed.
    Transient(Error),
    /// A retry fails until somebody changes the database or the settings.
    Permanent(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_of_a_reindex_is_known_by_the_one_that_it_replaces() {
        for index in ["patients_email_key_ccnew", "patients_email_key_ccold", "patients_email_key_ccold12"] {
            assert_eq!(of_reindex(index), Some("patients_email_key"), "{index}");
        }
        assert_eq!((of_reindex("patients_email_key"), of_reindex("key_ccnew_2")), (None, None));
    }

    #[test]
    fn only_a_broken_pipe_shows_that_nothing_was_committed() {
        let io = |kind: io::ErrorKind| sqlx::Error::Io(kind.into());
        assert!(certainly_had_no_effect(&io(io::ErrorKind::BrokenPipe), true));
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::TimedOut] {
            assert!(!certainly_had_no_effect(&io(kind), false), "{kind}");
            assert_eq!(Cause::of(&io(kind)), Cause::Disconnected);
        }
        assert!(!certainly_had_no_effect(&sqlx::Error::Protocol(String::new()), false));
        assert_eq!(Cause::of(&sqlx::Error::RowNotFound), Cause::Statement);
    }
}
