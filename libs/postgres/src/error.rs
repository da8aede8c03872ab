use std::{borrow::Cow, fmt};

/// Why work on the database failed, by what it means to the caller.
#[derive(Debug)]
pub enum Error {
    /// The database cannot do it now: it is away, late, full or in the middle of a restart. Whether a statement took
    /// effect is not known. Trying again later may help.
    Unavailable(Cow<'static, str>),
    /// Other transactions hold what it needs, or wait for it in turn; it was undone. Trying again later helps.
    Locked,
    /// The constraint of this name forbids it.
    Constraint(String),
    /// The statement is wrong, or the data are not what it expects: a mistake in the program.
    Query(sqlx::Error),
}

impl Error {
    /// The same error for another who waited for the same work.
    #[must_use]
    pub fn for_another(&self) -> Self {
        match self {
            Self::Unavailable(why) => Self::Unavailable(why.clone()),
            Self::Locked => Self::Locked,
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
            Self::Locked => "locked".into(),
            Self::Constraint(name) => name.clone().into(),
            Self::Query(_) => "query".into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the database cannot serve now: {why}"),
            Self::Locked => f.write_str("other transactions hold what the statement needs"),
            Self::Constraint(name) => write!(f, "the constraint {name} forbids it"),
            // The server's message can quote values; its code and position cannot.
            Self::Query(sqlx::Error::Database(error)) => {
                write!(f, "the statement failed with SQLSTATE {}", error.code().unwrap_or_default())
            }
            Self::Query(error) => write!(f, "the statement failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                if let Some(constraint) = database.constraint() {
                    return Self::Constraint(constraint.to_owned());
                }
                if is_conflict(&code) {
                    return Self::Locked;
                }
                if is_passing(&code) {
                    return Self::Unavailable(format!("SQLSTATE {code}").into());
                }
                Self::Query(error)
            }
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                Self::Unavailable(error.to_string().into())
            }
            _ => Self::Query(error),
        }
    }
}

/// Whether an SQLSTATE tells of other transactions: serialization failure, deadlock, lock time-out.
fn is_conflict(code: &str) -> bool {
    matches!(code, "40001" | "40P01" | "55P03")
}

/// Whether an SQLSTATE tells of the server's state rather than of the statement.
fn is_passing(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    // Connection, authorisation, rollback, resources, operator intervention (with it: statement_timeout), system error.
    matches!(class, "08" | "28" | "40" | "53" | "57" | "58")
        // No such database (yet); a server that only reads, as after a failover.
        || matches!(code, "3D000" | "25006")
}
