//! What is logged of commits that are not durable. A process of its own, because it collects every message.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use config::{Environment, Reader};
use postgres::{Database, Migrator, Settings};
use runtime::Shutdown;
use testbed::messages;

/// Migrates; returns how often it has been told so far.
async fn told(url: &str, owner: Option<&str>) -> usize {
    let mut environment = Environment::empty().with("DATABASE_URL", url).with("DATABASE_DEADLINE", "20s");
    if let Some(owner) = owner {
        environment = environment.with("DATABASE_OWNER_URL", owner);
    }
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    let database = Database::new(reader.finish(settings).unwrap().0);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    messages::count("synchronous_commit is off")
}

#[test]
fn commits_that_are_not_durable_are_told_at_each_start() {
    messages::collect("postgres");
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        assert_eq!(told(&url, None).await, 0);
        assert_eq!(told(&format!("{url}&options=-c%20synchronous_commit%3Doff"), None).await, 1);
        // Of the role that works, and not of the owner.
        let role = "CREATE ROLE hasty LOGIN; ALTER ROLE hasty SET synchronous_commit = off";
        testbed::sql::execute(&url, role).await.unwrap();
        assert_eq!(told(&url.replace("postgres@", "hasty@"), Some(&url)).await, 2);
        assert_eq!(told(&url, Some(&url)).await, 2);
    });
}
