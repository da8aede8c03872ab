//! What is logged while statements that were given up do not end. A process of its own, because it collects every message.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Settings, query};
use runtime::{Shutdown, timeout};
use testbed::until;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects the messages.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("postgres")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{value:?}"));
        }
    }
}

fn is_logged(text: &str) -> bool {
    MESSAGES.lock().unwrap().iter().any(|message| message.contains(text))
}

const BEGIN: &str = "no change is sent to the database";
const END: &str = "changes are sent to the database again";

#[test]
fn only_changes_that_are_not_sent_are_logged_and_their_end_without_another_change() {
    tracing::subscriber::set_global_default(Log).unwrap();
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
        assert!(write().await.is_ok() && !is_logged(BEGIN), "changes are sent");

        let writing = database.run(async |connection| query("SELECT pg_sleep(5)").execute(connection).await);
        assert!(timeout(given_up_after, writing).await.is_err());
        assert!(matches!(write().await, Err(Error::Unavailable(_))));
        assert!(is_logged(BEGIN) && !is_logged(END));
        until("its end is logged", async || {
            let _ = read().await;
            let _ = database.ping().await;
            is_logged(END)
        })
        .await;
    });
}
