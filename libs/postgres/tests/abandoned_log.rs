//! What is logged while statements that were given up do not end. A process of its own, because it collects every message.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::time::Duration;

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Settings, query};
use runtime::{Shutdown, timeout};
use testbed::{messages, until};

const BEGIN: &str = "no change is sent to the database";
const END: &str = "changes are sent to the database again";

#[test]
fn only_changes_that_are_not_sent_are_logged_and_their_end_without_another_change() {
    messages::collect("postgres");
    runtime::block_on(2, async {
        let environment = Environment::empty()
            .with("DATABASE_URL", testbed::shared_database().await)
            .with("DATABASE_CONNECTIONS", "1")
            .with("DATABASE_DEADLINE", "20s");
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
        let database = Database::new(reader.finish(settings).unwrap().0);
        database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
        let read = async || database.read(async |connection| query("SELECT 1").execute(connection).await).await;
        let write = async || database.run(async |connection| query("SELECT 1").execute(connection).await).await;
        let given_up_after = Duration::from_millis(200);

        // As many as make reads fail.
        for _ in 0..4 {
            let reading = database.read(async |connection| query("SELECT pg_sleep(5)").execute(connection).await);
            assert!(timeout(given_up_after, reading).await.is_err());
        }
        assert!(matches!(read().await, Err(Error::Unavailable(_))));
        assert!(write().await.is_ok() && messages::count(BEGIN) == 0, "changes are sent");

        let writing = database.run(async |connection| query("SELECT pg_sleep(5)").execute(connection).await);
        assert!(timeout(given_up_after, writing).await.is_err());
        assert!(matches!(write().await, Err(Error::Unavailable(_))));
        assert!(messages::count(BEGIN) > 0 && messages::count(END) == 0);
        until("its end is logged", async || {
            let _ = read().await;
            let _ = database.ping().await;
            messages::count(END) > 0
        })
        .await;
    });
}
