//! Errors that end the session, as a server and the proxies before it report them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, PgConnection, Settings};
use runtime::Shutdown;
use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use testbed::{
    proxy::{Mode, Proxy, Target},
    sql, until,
};

fn database_at(url: &str) -> Database {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("DATABASE_CONNECTIONS", "1")
        .with("DATABASE_DEADLINE", "10s")
        .with("DATABASE_ACQUIRE_DEADLINE", "10s");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    Database::new(reader.finish(settings).unwrap().0)
}

async fn open(url: &str) -> Database {
    let database = database_at(url);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    database
}

/// A message of PostgreSQL's protocol with an error that ends the session.
fn fatal(code: &str, message: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E", &length[..], fields.as_bytes()].concat()
}

/// Supavisor reports a server that it has lost with `FATAL: XX000`, a standby a conflict with recovery with `FATAL: 40001`.
#[test]
fn a_write_that_a_fatal_error_answers_is_not_executed_again() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
        let (proxy, through_proxy) = Proxy::to_postgres(&url).await.unwrap();
        let database = open(&through_proxy).await;
        let committed = async |n: i64| {
            let rows = sql::rows(&url, "SELECT n::bigint FROM t", |row| sqlx::Row::try_get::<i64, _>(row, 0));
            rows.await.unwrap().into_iter().filter(|row| *row == n).count()
        };
        for code in ["XX000", "26000", "42703", "40001", "08006"] {
            sql::execute(&url, "TRUNCATE t").await.unwrap();
            for n in [1, 2, 3] {
                let begun = AtomicBool::new(false);
                let stall = || {
                    proxy.set(Mode::StallResponses);
                    begun.store(true, SeqCst);
                };
                let write = async {
                    match n {
                        1 => {
                            let insert = async |connection: &mut PgConnection| {
                                sqlx::raw_sql("SELECT 1").execute(&mut *connection).await?;
                                stall();
                                sqlx::raw_sql("INSERT INTO t VALUES (1)").execute(connection).await.map(drop)
                            };
                            database.run(insert).await
                        }
                        2 => {
                            let insert = async |transaction: &mut PgConnection| {
                                sqlx::raw_sql("INSERT INTO t VALUES (2)").execute(transaction).await?;
                                stall();
                                Ok(())
                            };
                            database.transaction(insert).await
                        }
                        _ => {
                            // Idempotent work is retried.
                            let insert = async |connection: &mut PgConnection| {
                                sqlx::raw_sql("SELECT 1").execute(&mut *connection).await?;
                                if !begun.load(SeqCst) {
                                    stall();
                                }
                                let insert = "INSERT INTO t SELECT 3 WHERE NOT EXISTS (SELECT 1 FROM t WHERE n = 3)";
                                sqlx::raw_sql(insert).execute(connection).await.map(drop)
                            };
                            database.run_idempotent(insert).await
                        }
                    }
                };
                let lose = async {
                    until("it is committed", async || begun.load(SeqCst) && committed(n).await == 1).await;
                    proxy.close_open_with(&fatal(code, "the server is gone")).await;
                    proxy.set(Mode::Pass);
                };
                let (result, ()) = smol::future::zip(write, lose).await;
                if n == 3 {
                    result.unwrap();
                } else {
                    assert!(matches!(result, Err(Error::Unavailable(_))), "{code} {n}: {result:?}");
                }
                assert_eq!(committed(n).await, 1, "{code} {n}: not twice");
            }
        }
    });
}

/// Answers each attempt to connect with an error of its own.
async fn refuse(listener: TcpListener, error: Vec<u8>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let mut startup = [0; 1024];
        if client.read(&mut startup).await.is_ok() {
            let _ = client.write_all(&error).await;
        }
    }
}

#[test]
fn an_error_while_connecting_is_an_outage_whatever_its_code() {
    runtime::block_on(2, async {
        let (server, by_tcp) = Proxy::to_postgres(&testbed::shared_database().await).await.unwrap();
        let proxy = Proxy::start().await.unwrap();
        let url = by_tcp.replace(&server.port().to_string(), &proxy.port().to_string()) + "?sslmode=disable";
        proxy.set_target(Target::Port(server.port()));
        let working = open(&url).await;
        for code in ["XX000", "55000", "42P05", "22023"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            proxy.set_target(Target::Port(listener.local_addr().unwrap().port()));
            let _refusing = runtime::spawn(refuse(listener, fatal(code, "Tenant or user not found")));

            proxy.reset_open().await;
            let select = async |connection: &mut PgConnection| sqlx::raw_sql("SELECT 1").execute(connection).await;
            let read = working.run_idempotent(select).await;
            let is_outage = matches!(&read, Err(Error::Unavailable(why)) if why.contains("Tenant or user not found"));
            assert!(is_outage, "{code}: {read:?}");

            let database = database_at(&url);
            let migrating = runtime::spawn({
                let database = database.clone();
                async move { database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await }
            });
            let before = proxy.accepted();
            until("it is tried again", async || migrating.is_finished() || proxy.accepted() > before + 2).await;
            proxy.set_target(Target::Port(server.port()));
            migrating.await.unwrap();
            working.ping().await.unwrap();
        }
    });
}
