//! What is logged while the server lacks resources. A process of its own, because it collects every message.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Settings, query};
use runtime::Shutdown;
use testbed::messages;

#[test]
fn a_lack_of_resources_is_logged_once_and_is_no_outage() {
    messages::collect("postgres");
    runtime::block_on(2, async {
        // As a disk without room for temporary files.
        let url = testbed::shared_database().await;
        let url = format!("{url}&options=-c%20temp_file_limit%3D0%20-c%20work_mem%3D64kB");
        let mut reader = Reader::new(Environment::empty().with("DATABASE_URL", url).with("DATABASE_DEADLINE", "20s"));
        let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
        let database = Database::new(reader.finish(settings).unwrap().0);
        database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
        for _ in 0..5 {
            let sort = "SELECT n FROM generate_series(1, 100000) n ORDER BY n DESC";
            let sorted = database.read(async |connection| query(sort).execute(connection).await).await;
            assert!(matches!(&sorted, Err(Error::Resources(why)) if why.contains("53400")), "{sorted:?}");
            let io_error = "DO $$ BEGIN RAISE 'as of a disk' USING ERRCODE = 'io_error'; END $$";
            let failed = database.read(async |connection| query(io_error).execute(connection).await).await;
            assert!(matches!(failed, Err(Error::Resources(_))), "{failed:?}");
            database.read(async |connection| query("SELECT 1").execute(connection).await).await.unwrap();
            database.ping().await.unwrap();
        }
        assert_eq!(messages::count("the server lacks resources for a statement"), 1);
        assert_eq!(messages::count("available"), 0);
    });
}
