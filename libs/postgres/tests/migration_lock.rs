//! A migration that takes long, and what stops or waits for it. A process of its own, because it collects every message.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::time::Duration;

use config::{Environment, Reader};
use postgres::{Database, Error, MigrationError, Migrator, Settings};
use runtime::Shutdown;
use smol::Task;
use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType},
};
use testbed::{messages, sql, until};

/// Longer than the test.
const LONG_MIGRATION: &str = "CREATE TABLE notes (id int); SELECT pg_sleep(3600)";
const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

const END_SLEEPING: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE wait_event = 'PgSleep' AND datname = current_database()";

fn database(url: &str) -> Database {
    let mut reader =
        Reader::new(Environment::empty().with("DATABASE_URL", url).with("DATABASE_ACQUIRE_DEADLINE", "20s"));
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    Database::new(reader.finish(settings).unwrap().0)
}

/// Begins the long migration, and waits until it runs.
async fn migrate(url: &str, shutdown: &Shutdown) -> Task<Result<(), MigrationError>> {
    let (database, shutdown) = (database(url), shutdown.clone());
    let sql = LONG_MIGRATION.into_sql_str();
    let migrations = vec![Migration::new(1, "test".into(), MigrationType::Simple, sql, false)];
    let migrator = Migrator { migrations: migrations.into(), ..Migrator::DEFAULT };
    let migrating = runtime::spawn(async move { database.migrate(&migrator, &shutdown).await });
    until("the migration runs", async || sql::number(url, SLEEPING).await.unwrap() == 1).await;
    migrating
}

#[test]
fn a_migration_ends_with_the_shutdown() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let shutdown = Shutdown::new();
        let migrating = migrate(&url, &shutdown).await;
        shutdown.trigger();
        runtime::timeout(Duration::from_secs(5), migrating).await.expect("it ends at once").unwrap();
    });
}

#[test]
fn a_migration_that_waits_for_another_says_so_until_that_one_has_ended_or_lost_its_client() {
    messages::collect("postgres");
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let shutdown = Shutdown::new();
        let migrating = migrate(&url, &shutdown).await;
        let second = database(&url);
        let waiting = runtime::spawn({
            let second = second.clone();
            async move { second.migrate(&Migrator::DEFAULT, &Shutdown::new()).await }
        });
        until("it says what it waits for", async || {
            let answer = second.ping().await;
            matches!(answer, Err(Error::Unavailable(why)) if why.contains("a lock that process"))
        })
        .await;
        // It tries again meanwhile.
        smol::Timer::after(Duration::from_secs(4)).await;
        assert_eq!(messages::count("the migration waits for a lock that another session holds"), 1);
        // The statement of the other one does not end: the server finds that its client is gone.
        shutdown.trigger();
        migrating.await.unwrap();
        if sql::number(&url, "SELECT current_setting('server_version_num')::bigint").await.unwrap() < 140_000 {
            println!("PostgreSQL before 14 does not look for its client while a statement runs: the session is ended");
            sql::execute(&url, END_SLEEPING).await.unwrap();
        }
        runtime::timeout(Duration::from_secs(30), waiting).await.expect("the lock is free").unwrap();
        second.ping().await.unwrap();
        assert_eq!(sql::number(&url, SLEEPING).await.unwrap(), 0);
        sql::execute(&url, "CREATE TABLE notes (id int)").await.expect("what was not complete is rolled back");
    });
}
