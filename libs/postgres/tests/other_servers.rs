//! A port that other servers have, where PostgreSQL is expected. A process of its own, because it measures its memory.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Settings, query};
use runtime::Shutdown;
use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use testbed::until;

/// Less than compose gives a service, and far less than the first bytes of these answers are as a length.
const MAX_MEMORY: u64 = 64 << 20;

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A server that answers each connection with these bytes.
async fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            runtime::spawn(async move {
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.write_all(answer).await;
            })
            .detach();
        }
    })
    .detach();
    port
}

fn url(port: u16) -> String {
    format!("postgres://u@127.0.0.1:{port}/x")
}

fn database(environment: Environment) -> Database {
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    Database::new(reader.finish(settings).unwrap().0)
}

async fn why_unavailable(database: &Database) -> String {
    let read = database.read(async |connection| query("SELECT 1").execute(connection).await).await;
    let Err(Error::Unavailable(why)) = read else { panic!("{read:?}") };
    why.into_owned()
}

#[test]
fn a_port_of_another_server_is_named_and_costs_no_memory() {
    runtime::block_on(1, async {
        let before = peak_memory();
        let other = "is no PostgreSQL server";
        for (answer, expected) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], other),
            (b"SSH-2.0-OpenSSH_9.6\r\n", other),
            (b"ERROR\r\n", other),
            (b"Ecould not fork new process for connection: Cannot allocate memory\n", "could not fork a process"),
        ] {
            let port = server(answer).await;
            let database = database(Environment::empty().with("DATABASE_URL", url(port)));
            database.assume_migrated();
            for _ in 0..2 {
                let why = why_unavailable(&database).await;
                assert!(why.contains(expected) && why.contains(&port.to_string()), "{why}");
            }
        }
        let more = peak_memory() - before;
        assert!(more < MAX_MEMORY, "{more} bytes");
    });
}

#[test]
fn the_owners_server_says_nothing_about_the_one_of_the_work() {
    runtime::block_on(1, async {
        let owner = testbed::shared_database().await;
        let before = peak_memory();
        let port = server(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let environment = Environment::empty().with("DATABASE_URL", url(port)).with("DATABASE_OWNER_URL", owner);
        let database = database(environment);
        let migrating = database.clone();
        let _migration = runtime::spawn(async move { migrating.migrate(&Migrator::DEFAULT, &Shutdown::new()).await });
        // As the owner it succeeds, and then it looks at what the service may do.
        let mut why = String::new();
        until("the migration has failed", async || {
            why = why_unavailable(&database).await;
            why.contains("not migrated yet: ")
        })
        .await;
        assert!(why.contains("is no PostgreSQL server") && why.contains(&port.to_string()), "{why}");
        let more = peak_memory() - before;
        assert!(more < MAX_MEMORY, "{more} bytes");
    });
}
