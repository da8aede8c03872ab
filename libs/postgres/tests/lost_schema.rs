//! A database whose tables are gone while services run, as after a restore.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Row as _, Settings, query};
use runtime::Shutdown;
use smol::Task;
use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType},
};
use testbed::{sql, until};

const MIGRATIONS: [&str; 2] =
    ["CREATE TABLE notes (id int); CREATE TABLE tags (id int)", "ALTER TABLE notes ADD COLUMN text text"];

/// A database with its schema, which is kept until the end of the test.
async fn open(url: &str) -> (Database, Task<()>) {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("DATABASE_DEADLINE", "20s")
        .with("DATABASE_ACQUIRE_DEADLINE", "20s");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    let database = Database::new(reader.finish(settings).unwrap().0);
    let migration = |(number, sql): (usize, &&'static str)| {
        Migration::new(number as i64 + 1, "test".into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let migrations = MIGRATIONS.iter().enumerate().map(migration).collect();
    let migrator = Migrator { migrations, ..Migrator::DEFAULT };
    let keeper = database.clone();
    let keeping = runtime::spawn(async move {
        let ended = keeper.keep_migrated(&migrator, &[], &Shutdown::new()).await;
        panic!("it ends only with the service: {ended:?}");
    });
    until("the schema is migrated", async || database.ping().await.is_ok()).await;
    (database, keeping)
}

async fn count(database: &Database, statement: &'static str) -> Result<i64, Error> {
    database.run(async |connection| query(statement).fetch_one(connection).await?.try_get(0)).await
}

const COUNT: &str = "SELECT count(text) FROM notes";

#[test]
fn a_schema_that_is_lost_is_migrated_again_without_a_restart() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let (database, _keeping) = open(&url).await;
        for loss in [
            // The database was made anew.
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
            // A dump that is older than the last migration was restored.
            "ALTER TABLE notes DROP COLUMN text; DELETE FROM _sqlx_migrations WHERE version = 2",
        ] {
            assert_eq!(count(&database, COUNT).await.unwrap(), 0);
            sql::execute(&url, loss).await.unwrap();
            let lost = count(&database, COUNT).await;
            assert!(matches!(lost, Err(Error::Unavailable(_))), "{loss}: {lost:?}");
            until("it is migrated again", async || count(&database, COUNT).await.is_ok()).await;
            database.ping().await.unwrap();
        }
    });
}

#[test]
fn a_schema_that_cannot_be_migrated_again_makes_the_database_unavailable_until_it_can() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let (database, _keeping) = open(&url).await;
        // As in the middle of a restore: a table is there, and neither the other nor the history.
        sql::execute(&url, "DROP TABLE notes, _sqlx_migrations").await.unwrap();
        count(&database, COUNT).await.unwrap_err();
        until("it is unavailable and says why", async || {
            let answer = database.ping().await;
            matches!(answer, Err(Error::Unavailable(why)) if why.contains("\"tags\" already exists"))
        })
        .await;
        assert!(database.permanent_error().is_none());
        sql::execute(&url, "DROP TABLE tags").await.unwrap();
        until("it is migrated again", async || count(&database, COUNT).await.is_ok()).await;
        database.ping().await.unwrap();
    });
}

#[test]
fn a_table_that_no_migration_brings_back_concerns_no_other() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let (database, _keeping) = open(&url).await;
        sql::execute(&url, "DROP TABLE tags").await.unwrap();
        for _ in 0..100 {
            let lost = count(&database, "SELECT count(*) FROM tags").await;
            assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
            assert_eq!(count(&database, COUNT).await.unwrap(), 0);
            database.ping().await.unwrap();
        }
        sql::execute(&url, "CREATE TABLE tags (id int)").await.unwrap();
        assert_eq!(count(&database, "SELECT count(*) FROM tags").await.unwrap(), 0);
    });
}

/// In a rolling update the new version was the first to migrate the schema again, or its migrations were there before.
#[test]
fn migrations_of_a_newer_version_do_not_keep_a_running_one_from_its_schema() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let (database, _keeping) = open(&url).await;
        let newer = "INSERT INTO _sqlx_migrations SELECT 99, 'newer', now(), true, 'x', 1; \
                     ALTER TABLE notes DROP COLUMN text; DELETE FROM _sqlx_migrations WHERE version = 2";
        sql::execute(&url, newer).await.unwrap();
        count(&database, COUNT).await.unwrap_err();
        until("it is migrated again", async || count(&database, COUNT).await.is_ok()).await;
        database.ping().await.unwrap();
        // Nothing is to migrate, and only what needs the table is unavailable.
        sql::execute(&url, "DROP TABLE tags").await.unwrap();
        count(&database, "SELECT count(*) FROM tags").await.unwrap_err();
        assert_eq!(count(&database, COUNT).await.unwrap(), 0);
        database.ping().await.unwrap();
    });
}
