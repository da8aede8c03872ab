//! The databases on an existing PostgreSQL server, which the user sets with `DATABASE_URL`.
//!
//! The services create tables in them, and migrate those with each version. So a database that `up` did not create is used
//! only after the user has confirmed it: it may be in production.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stderr, stdin},
    path::Path,
    time::Duration,
};

use anyhow::{Result, anyhow};
use config::{Environment, Reader};
use runtime::timeout;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use url::{Url, form_urlencoded};

use crate::{private_file, terminal::step};

/// Timeout of a statement and of a connection.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The names of our databases.
const NAMES: [&str; 2] = ["patients", "billing"];
/// The comment on a database that `up` has created.
const CREATED_BY_UP: &str = "made by patient-management: just up";
/// In the data directory: the foreign databases that the user has confirmed, one in a line.
const CONFIRMED_FILE: &str = "agreed-databases";

/// The URL of a server with the name of one of our databases, and no parameter that names another one.
fn url_of(url: &str, name: &str) -> Result<String> {
    let wrong = |_| anyhow!("DATABASE_URL is not a PostgreSQL URL (its value is not shown).");
    let mut url = Url::parse(url.strip_prefix("jdbc:").unwrap_or(url)).map_err(wrong)?;
    url.set_path(name);
    let names_database = |pair: &&str| form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name == "dbname");
    let others: Vec<_> = url.query().unwrap_or_default().split('&').filter(|pair| !names_database(pair)).collect();
    let others = others.join("&");
    url.set_query((!others.is_empty()).then_some(&others));
    Ok(url.into())
}

/// How to connect to the server, by the rules of the services: a URL means the same to both, and variables of libpq that would
/// change it are rejected.
fn options(url: &str, environment: Environment) -> Result<PgConnectOptions> {
    // `up` does not pass these to the services.
    let not_passed = ["SPRING_DATASOURCE_USERNAME", "SPRING_DATASOURCE_PASSWORD", "DATABASE_OWNER_URL"];
    let environment = not_passed.into_iter().fold(environment, |environment, name| environment.with(name, ""));
    let mut reader = Reader::new(environment.with("DATABASE_URL", url));
    let settings = postgres::Settings::read(&mut reader, "postgres://localhost", "just up");
    let (settings, _) = reader.finish(settings)?;
    Ok(settings.url.expose().options())
}

/// The URLs of both databases.
pub(crate) struct Databases {
    pub(crate) patients: String,
    pub(crate) billing: String,
}

impl Databases {
    /// The URLs of both on the server of this URL.
    pub(crate) fn of(url: &str) -> Result<Self> {
        Ok(Self { patients: url_of(url, NAMES[0])?, billing: url_of(url, NAMES[1])? })
    }
}

/// Creates the databases that do not exist. `assume_yes`: uses foreign databases without asking.
pub(crate) async fn find_or_create(url: &str, home: &Path, assume_yes: bool) -> Result<Databases> {
    let options = options(url, Environment::process())?;
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
    Databases::of(url)
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
    // Not the server's defaults: with LC_CTYPE C the search for names would know the letters of ASCII alone.
    let statement = format!("CREATE DATABASE {name} ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0");
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
        let patients = |url: &str| url_of(url, "patients").unwrap();
        assert_eq!(patients("postgres://u:p%40@h:1/x?a=b/c&d=%2F+"), "postgres://u:p%40@h:1/patients?a=b/c&d=%2F+");
        assert_eq!(patients("postgres://h"), "postgres://h/patients");
        assert_eq!(patients("postgres:///x?host=%2Frun"), "postgres:///patients?host=%2Frun");
        assert_eq!(patients("jdbc:postgresql://h/x"), "postgresql://h/patients");
    }

    #[test]
    fn no_parameter_names_another_database() {
        for url in ["postgres://h/?dbname=shop", "postgres://h/x?%64bname=shop&dbname=", "postgres://h?dbname"] {
            assert_eq!(url_of(url, "billing").unwrap(), "postgres://h/billing", "{url}");
        }
        let between = url_of("postgres://h/x?host=a&dbname=shop&port=1", "billing").unwrap();
        assert_eq!(between, "postgres://h/billing?host=a&port=1");
    }

    #[test]
    fn up_connects_where_the_services_do() {
        let connect = |url: &str| options(url, Environment::empty().with("SPRING_DATASOURCE_USERNAME", "john"));
        let found = connect("jdbc:postgresql://me:hunter2@db:5433/x?sslmode=disable").unwrap();
        assert_eq!((found.get_host(), found.get_port(), found.get_username()), ("db", 5433, "me"));
        let found = connect("postgres://me@localhost/x?dbname=shop").unwrap();
        assert_eq!(found.get_database(), Some("shop"));
        for wrong in ["mysql://me:hunter2@db/x", "me:hunter2@db", "postgres://me:hunter2@db/x?hunter2=1"] {
            let error = connect(wrong).unwrap_err().to_string();
            assert!(error.contains("DATABASE_URL") && !error.contains("hunter2"), "{error}");
        }
        let error = options("postgres://h/x", Environment::empty().with("PGUSER", "john")).unwrap_err().to_string();
        assert!(error.contains("PGUSER"), "{error}");
    }
}
