//! The databases on a PostgreSQL server that the user names with `DATABASE_URL`.
//!
//! The services make their tables in them and change those with each version. So a database that is there already, and that
//! no `up` has made, is used only after its owner has agreed: it may be somebody's production.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stderr, stdin},
    path::Path,
    str::FromStr as _,
    time::Duration,
};

use runtime::timeout;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{Failure, Outcome, databases::Databases, private_file, show::step};

/// Time for the server to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Our databases.
const NAMES: [&str; 2] = ["patients", "billing"];
/// The comment on a database that `up` has made.
const MADE_BY_US: &str = "made by patient-management: just up";
/// In the folder of the data: the databases of others that the user has agreed to, a line each.
const AGREED: &str = "agreed-databases";

/// A server's URL with the name of one of our databases.
pub(crate) fn url_of(url: &str, name: &str) -> String {
    let (before, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let scheme_end = before.find("://").map_or(0, |at| at + 3);
    let authority_end = before[scheme_end..].find('/').map_or(before.len(), |at| scheme_end + at);
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{}/{name}{query}", &before[..authority_end])
}

/// Makes those that are missing. `agreed`: those of others are taken without a question.
pub(crate) async fn find_or_make(url: &str, home: &Path, agreed: bool) -> Outcome<Databases> {
    let wrong = |_| Failure("DATABASE_URL is not a PostgreSQL URL (its value is not shown).".to_owned());
    let options = PgConnectOptions::from_str(url).map_err(wrong)?;
    let place = options.get_socket().map_or_else(
        || format!("{}:{}", options.get_host(), options.get_port()),
        |socket| format!("{}:{}", socket.display(), options.get_port()),
    );
    let connect = async {
        let connection = timeout(LIMIT, options.connect()).await;
        let connection = connection.map_err(|_| Failure(format!("PostgreSQL at {place} does not answer.")))?;
        connection.map_err(|error| Failure(format!("PostgreSQL at {place}: {error}")))
    };
    let mut connection = step("Looking for the given PostgreSQL", "", connect).await?;
    let file = home.join(AGREED);
    let before = fs::read_to_string(&file).unwrap_or_default();
    let mut of_others = Vec::new();
    let mut missing = Vec::new();
    for name in NAMES {
        match find(&mut connection, name).await? {
            None => missing.push(name),
            Some(found) if found.comment.as_deref() == Some(MADE_BY_US) => {}
            Some(found) => of_others.push((name, format!("{place} {name} {}", found.oid))),
        }
    }
    of_others.retain(|(_, line)| !before.lines().any(|known| known == line));
    if !of_others.is_empty() {
        let names: Vec<_> = of_others.iter().map(|(name, _)| *name).collect();
        if !agreed {
            ask(&place, &names)?;
        }
        let lines: String = of_others.iter().map(|(_, line)| format!("{line}\n")).collect();
        private_file::write(&file, &(before + &lines))?;
    }
    for name in missing {
        make(&mut connection, name).await?;
    }
    let _ = timeout(LIMIT, connection.close()).await;
    Ok(Databases { patients: url_of(url, NAMES[0]), billing: url_of(url, NAMES[1]) })
}

struct Found {
    oid: i64,
    comment: Option<String>,
}

async fn find(connection: &mut PgConnection, name: &str) -> Outcome<Option<Found>> {
    let query = "SELECT oid::bigint, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
    let query = sqlx::query_as::<_, (i64, Option<String>)>(query).bind(name);
    let row = timeout(LIMIT, query.fetch_optional(connection)).await??;
    Ok(row.map(|(oid, comment)| Found { oid, comment }))
}

async fn make(connection: &mut PgConnection, name: &str) -> Outcome {
    let statement = format!("CREATE DATABASE {name}");
    let run = async |connection: &mut PgConnection, statement: String| {
        timeout(LIMIT * 6, sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection)).await?.map_err(Failure::from)
    };
    run(connection, statement.clone()).await.map_err(|Failure(why)| {
        Failure(format!("{statement}: {why}. If its owner has made it, up asks before it uses it."))
    })?;
    run(connection, format!("COMMENT ON DATABASE {name} IS '{MADE_BY_US}'")).await.map(drop)
}

/// Asks whether databases may be used; without a terminal, says how to agree.
fn ask(place: &str, names: &[&str]) -> Outcome {
    let question = format!(
        "On PostgreSQL at {place} there is already: {}, not made by just up. The services would make their tables there, and \
         change them as their version demands.",
        names.join(", ")
    );
    if !stdin().is_terminal() {
        return Err(Failure(format!("{question}\nIf that is what you want: just up --yes. Nothing was changed.")));
    }
    eprint!("{question}\nType yes to go on: ");
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure("Nothing was changed.".to_owned())) }
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
