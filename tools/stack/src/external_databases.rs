//! The databases on an existing PostgreSQL server, which the user sets with `DATABASE_URL`.
//!
//! The services create tables in them, and migrate those with each version. So a database that `up` did not create is used
//! only after the user has confirmed it: it may be in production.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stderr, stdin},
    path::Path,
    str::FromStr as _,
    time::Duration,
};

use anyhow::{Result, anyhow};
use runtime::timeout;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{private_file, terminal::step};

/// Timeout of a statement and of a connection.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The names of our databases.
const NAMES: [&str; 2] = ["patients", "billing"];
/// The comment on a database that `up` has created.
const CREATED_BY_UP: &str = "made by patient-management: just up";
/// In the data directory: the foreign databases that the user has confirmed, one in a line.
const CONFIRMED_FILE: &str = "agreed-databases";

/// The URL of a server with the name of one of our databases.
pub(crate) fn url_of(url: &str, name: &str) -> String {
    let (before, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let scheme_end = before.find("://").map_or(0, |at| at + 3);
    let authority_end = before[scheme_end..].find('/').map_or(before.len(), |at| scheme_end + at);
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{}/{name}{query}", &before[..authority_end])
}

/// The URLs of both databases.
pub(crate) struct Databases {
    pub(crate) patients: String,
    pub(crate) billing: String,
}

/// Creates the databases that do not exist. `assume_yes`: uses foreign databases without asking.
pub(crate) async fn find_or_create(url: &str, home: &Path, assume_yes: bool) -> Result<Databases> {
    let wrong = |_| anyhow!("DATABASE_URL is not a PostgreSQL URL (its value is not shown).");
    let options = PgConnectOptions::from_str(url).map_err(wrong)?;
    let place = options.get_socket().map_or_else(
        || format!("{}:{}", options.get_host(), options.get_port()),
        |socket| format!("{}:{}", socket.display(), options.get_port()),
    );
    let connect = async {
        let connection = timeout(TIMEOUT, Box::pin(options.connect())).await;
        let connection = connection.map_err(|_| anyhow!("PostgreSQL at {place} does not respond."))?;
        connection.map_err(|error| anyhow!("PostgreSQL at {place}: {error}"))
    };
    let mut connection = step("Connecting to PostgreSQL", "", connect).await?;
    let file = home.join(CONFIRMED_FILE);
    let before = fs::read_to_string(&file).unwrap_or_default();
    let mut foreign = Vec::new();
    let mut missing = Vec::new();
    for name in NAMES {
        match find(&mut connection, name).await? {
            None => missing.push(name),
            Some(found) if found.comment.as_deref() == Some(CREATED_BY_UP) => {}
            Some(found) => foreign.push((name, format!("{place} {name} {}", found.oid))),
        }
    }
    foreign.retain(|(_, line)| !before.lines().any(|known| known == line));
    if !foreign.is_empty() {
        let names: Vec<_> = foreign.iter().map(|(name, _)| *name).collect();
        if !assume_yes {
            confirm(&place, &names)?;
        }
        let lines: String = foreign.iter().map(|(_, line)| format!("{line}\n")).collect();
        private_file::write(&file, &(before + &lines))?;
    }
    for name in missing {
        create(&mut connection, name).await?;
    }
    let _ = timeout(TIMEOUT, connection.close()).await;
    Ok(Databases { patients: url_of(url, NAMES[0]), billing: url_of(url, NAMES[1]) })
}

struct Found {
    oid: i64,
    comment: Option<String>,
}

async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<Found>> {
    let query = "SELECT oid::bigint, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
    let query = sqlx::query_as::<_, (i64, Option<String>)>(query).bind(name);
    let row = timeout(TIMEOUT, query.fetch_optional(connection)).await??;
    Ok(row.map(|(oid, comment)| Found { oid, comment }))
}

async fn create(connection: &mut PgConnection, name: &str) -> Result<()> {
    let statement = format!("CREATE DATABASE {name}");
    let run = async |connection: &mut PgConnection, statement: String| {
        timeout(TIMEOUT * 6, sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection))
            .await?
            .map_err(anyhow::Error::from)
    };
    run(connection, statement.clone())
        .await
        .map_err(|error| anyhow!("{statement}: {error}. If you create it yourself, up asks before it uses it."))?;
    run(connection, format!("COMMENT ON DATABASE {name} IS '{CREATED_BY_UP}'")).await.map(drop)
}

/// Asks whether foreign databases may be used. Without a terminal, the error says how to confirm it.
fn confirm(place: &str, names: &[&str]) -> Result<()> {
    let question = format!(
        "On PostgreSQL at {place} there is already: {}, not made by just up. The services would create their tables in it, and \
         migrate them with each version.",
        names.join(", ")
    );
    if !stdin().is_terminal() {
        return Err(anyhow!("{question}\nTo confirm: just up --yes. Nothing was changed."));
    }
    eprint!("{question}\nType yes to continue: ");
    stderr().flush()?;
    let mut response = String::new();
    stdin().read_line(&mut response)?;
    if response.trim() == "yes" { Ok(()) } else { Err(anyhow!("Nothing was changed.")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_database_is_replaced_and_nothing_else() {
        assert_eq!(url_of("postgres://u:p@h:1/x?a=b/c", "patients"), "postgres://u:p@h:1/patients?a=b/c");
        assert_eq!(url_of("postgres://h", "patients"), "postgres://h/patients");
    }
}
