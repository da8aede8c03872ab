//! Two roles for one database: the owner migrates, and the service reads and writes rows.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Settings, query};
use runtime::Shutdown;
use sqlx::{
    AssertSqlSafe, SqlSafeStr as _,
    migrate::{Migration, MigrationType},
};
use testbed::sql;

/// How long something may take.
const LIMIT: Duration = Duration::from_secs(60);
const FIRST: &str = "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)";
const SECOND: &str = "CREATE TABLE tags (note bigint NOT NULL REFERENCES notes, tag text NOT NULL)";

/// A database with two roles that have its name, and their URLs.
struct Roles {
    admin: String,
    owner: String,
    service: String,
    name: String,
}

impl Roles {
    /// The owner may create tables, and `granted` is what the service gets.
    async fn new(granted: &[&str]) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let admin = testbed::shared_database().await;
        let name = format!("notes_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let url = |role: &str| admin.replace("postgres@", &format!("{name}_{role}@"));
        let roles = Self { owner: url("owner"), service: url("service"), admin, name };
        roles
            .execute("CREATE ROLE {owner} LOGIN; CREATE ROLE {service} LOGIN; ALTER SCHEMA public OWNER TO {owner}")
            .await;
        for statement in granted {
            roles.execute(statement).await;
        }
        roles
    }

    /// Executes a statement as a superuser, with `{owner}` and `{service}` for the names of the roles.
    async fn execute(&self, statement: &str) {
        let [owner, service] = ["owner", "service"].map(|role| format!("{}_{role}", self.name));
        let statement = statement.replace("{owner}", &owner).replace("{service}", &service);
        sql::execute(&self.admin, Box::leak(statement.into_boxed_str())).await.unwrap();
    }

    fn database(&self) -> Database {
        database(&self.service, &self.owner)
    }
}

fn database(url: &str, owner: &str) -> Database {
    let environment = Environment::empty().with("DATABASE_URL", url).with("DATABASE_OWNER_URL", owner);
    let environment = environment.with("DATABASE_DEADLINE", "20s").with("DATABASE_ACQUIRE_DEADLINE", "20s");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    Database::new(reader.finish(settings).unwrap().0)
}

fn migrator(statements: &[&'static str]) -> Migrator {
    let migration = |(number, sql): (usize, &&'static str)| {
        Migration::new(number as i64 + 1, "test".into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator { migrations: statements.iter().enumerate().map(migration).collect(), ..Migrator::DEFAULT }
}

async fn execute(database: &Database, statement: &str) -> Result<u64, Error> {
    let work = async |connection: &mut postgres::PgConnection| {
        let statement = AssertSqlSafe(statement.to_owned());
        Ok(sqlx::query(statement).persistent(false).execute(connection).await?.rows_affected())
    };
    database.run(work).await
}

const DEFAULT_PRIVILEGES: &str = "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {service};
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT, UPDATE ON SEQUENCES TO {service}";

/// The limit may be of the role, of the database or of the server.
#[test]
fn work_waits_for_a_released_connection_while_the_server_takes_no_more() {
    runtime::block_on(2, async {
        let roles = Roles::new(&["ALTER ROLE {service} CONNECTION LIMIT 4"]).await;
        let database = database(&roles.service, &roles.owner);
        database.assume_migrated();
        let read = |_| {
            let database = database.clone();
            let read = async |connection: &mut postgres::PgConnection| {
                query("SELECT pg_sleep(0.01)").execute(connection).await.map(drop)
            };
            runtime::spawn(async move { database.read(read).await })
        };
        // Many more than the pool's connections, of which the server takes four.
        for read in (0..100).map(read).collect::<Vec<_>>() {
            read.await.unwrap();
        }
    });
}

#[test]
fn the_owner_migrates_and_the_service_changes_rows_alone_also_in_tables_of_later_migrations() {
    runtime::block_on(1, async {
        let roles = Roles::new(&[DEFAULT_PRIVILEGES]).await;
        let first = roles.database();
        first.migrate(&migrator(&[FIRST]), &Shutdown::new()).await.unwrap();
        for (statement, rows) in [
            ("INSERT INTO notes (text) VALUES ('a'), ('b')", 2),
            ("SELECT * FROM notes", 2),
            ("SELECT setval('notes_id_seq', 7) FROM notes_id_seq WHERE last_value < 7", 1),
            ("UPDATE notes SET text = 'c' WHERE text = 'b'", 1),
            ("DELETE FROM notes WHERE text = 'c'", 1),
        ] {
            assert_eq!(execute(&first, statement).await.unwrap(), rows, "{statement}");
        }
        for statement in [
            "CREATE TABLE others (id bigint)",
            "CREATE INDEX ON notes (text)",
            "ALTER TABLE notes ADD COLUMN x text",
            "DROP TABLE notes",
            "TRUNCATE notes",
            "GRANT SELECT ON notes TO PUBLIC",
            "CREATE SCHEMA others",
            "SELECT * FROM _sqlx_migrations",
            "DELETE FROM _sqlx_migrations",
            "SET ROLE postgres",
        ] {
            let outcome = execute(&first, statement).await;
            // A GRANT without the right to it is a warning of PostgreSQL.
            let is_harmless = statement.starts_with("GRANT") && outcome.is_ok();
            let error = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(is_harmless || error.contains("42501"), "{statement}: {error}");
        }
        let readers = sql::number(
            &roles.admin,
            "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'PUBLIC' AND table_name = 'notes'",
        );
        assert_eq!(readers.await.unwrap(), 0);
        first.close().await;

        let second = roles.database();
        second.migrate(&migrator(&[FIRST, SECOND]), &Shutdown::new()).await.unwrap();
        assert_eq!(execute(&second, "INSERT INTO tags SELECT id, 'red' FROM notes").await.unwrap(), 1);
        assert!(matches!(execute(&second, "DROP TABLE tags").await, Err(Error::Denied(_))));
        second.close().await;
    });
}

/// Waits until work is rejected for a reason with these words; the schema is not migrated then.
async fn until_told(database: &Database, words: &[&str]) {
    let end = Instant::now() + LIMIT;
    loop {
        let outcome = database.run(async |connection| query("SELECT 1").fetch_one(connection).await).await;
        let told = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        if words.iter().all(|word| told.contains(word)) {
            return;
        }
        assert!(Instant::now() < end, "{words:?} is not in {told:?}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

#[test]
fn missing_privileges_are_told_until_they_are_granted_without_a_restart() {
    runtime::block_on(2, async {
        let roles = Roles::new(&["REVOKE ALL ON SCHEMA public FROM PUBLIC"]).await;
        let database = roles.database();
        let migrating = {
            let database = database.clone();
            runtime::spawn(async move { database.migrate(&migrator(&[FIRST]), &Shutdown::new()).await })
        };
        until_told(&database, &["same notes", "GRANT USAGE ON SCHEMA public"]).await;
        roles.execute("GRANT USAGE ON SCHEMA public TO {service}; GRANT SELECT, INSERT ON notes TO {service}").await;
        until_told(&database, &["_service", "lacks UPDATE, DELETE on the table notes", "ALTER DEFAULT PRIVILEGES"])
            .await;
        roles.execute("GRANT UPDATE, DELETE ON notes TO {service}").await;
        until_told(
            &database,
            &["lacks SELECT, UPDATE on the sequence notes_id_seq", "GRANT SELECT, UPDATE ON SEQUENCES"],
        )
        .await;
        roles.execute("GRANT SELECT, UPDATE ON notes_id_seq TO {service}").await;
        migrating.await.unwrap();
        assert_eq!(execute(&database, "INSERT INTO notes (text) VALUES ('a')").await.unwrap(), 1);

        // One that is taken away while the service runs.
        roles.execute("REVOKE INSERT ON notes FROM {service}").await;
        let denied = execute(&database, "INSERT INTO notes (text) VALUES ('b')").await.unwrap_err();
        assert!(matches!(&denied, Error::Denied(why) if why.contains("notes") && why.contains("42501")), "{denied}");
        database.ping().await.unwrap();
        roles.execute("GRANT INSERT ON notes TO {service}").await;
        assert_eq!(execute(&database, "INSERT INTO notes (text) VALUES ('b')").await.unwrap(), 1);
        database.close().await;
    });
}

#[test]
fn an_owner_of_another_database_or_without_rights_is_told() {
    runtime::block_on(2, async {
        let (roles, others) = (Roles::new(&[DEFAULT_PRIVILEGES]).await, Roles::new(&[DEFAULT_PRIVILEGES]).await);
        others.database().migrate(&migrator(&[FIRST]), &Shutdown::new()).await.unwrap();
        let database_of_two = database(&others.service, &roles.owner);
        let migrating = {
            let database = database_of_two.clone();
            runtime::spawn(async move { database.migrate(&migrator(&[FIRST]), &Shutdown::new()).await })
        };
        until_told(&database_of_two, &["DATABASE_OWNER_URL", "same notes", "same host, database"]).await;
        drop(migrating);

        // The two URLs the wrong way round.
        let exchanged = database(&roles.owner, &roles.service);
        let error = exchanged.migrate(&migrator(&[FIRST, SECOND]), &Shutdown::new()).await.unwrap_err().to_string();
        assert!(error.contains("role of DATABASE_OWNER_URL") && error.contains("GRANT CREATE"), "{error}");
    });
}
