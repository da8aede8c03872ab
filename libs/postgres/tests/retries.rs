//! Which work is retried, and which never is, on a real server.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, PgConnection, Row as _, Settings, query};
use runtime::Shutdown;
use testbed::{
    Scratch,
    postgres::{Cluster, Durability},
    proxy::{Mode, Proxy},
    sql::{self, Session},
    until,
};

/// How long a test waits for a condition.
const TIMEOUT: Duration = Duration::from_secs(30);

async fn open(url: &str, settings: &[(&str, &str)]) -> Database {
    let mut environment = Environment::empty().with("DATABASE_URL", url);
    for (name, value) in settings {
        environment = environment.with(*name, *value);
    }
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    let database = Database::new(reader.finish(settings).unwrap().0);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    database
}

/// Gives a loaded machine time; these tests are not about the limits.
const PATIENT: [(&str, &str); 2] = [("DATABASE_DEADLINE", "10s"), ("DATABASE_ACQUIRE_DEADLINE", "10s")];

async fn number(database: &Database, statement: &'static str) -> Result<i64, Error> {
    database.run(async |connection| query(statement).fetch_one(connection).await?.try_get(0)).await
}

async fn execute(database: &Database, statement: &'static str) -> Result<(), Error> {
    database.run(async |connection| query(statement).execute(connection).await.map(drop)).await
}

#[test]
fn stale_statements_are_prepared_again_and_the_work_retried() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let database = open(&url, &PATIENT).await;
        sql::execute(&url, "CREATE TABLE people (id int, name text); INSERT INTO people VALUES (1, 'Jane')")
            .await
            .unwrap();
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let times: [_; 4] = std::array::from_fn(|_| std::sync::Arc::new(AtomicUsize::new(0)));
        let work = |n: usize| {
            let (database, done, times) = (database.clone(), done.clone(), times[n].clone());
            runtime::spawn(async move {
                while !done.load(SeqCst) {
                    let name = if n.is_multiple_of(2) {
                        let read = database.run(async |connection| {
                            let row = query("SELECT name FROM people WHERE id = $1").bind(1);
                            row.fetch_one(connection).await?.try_get::<String, _>(0)
                        });
                        read.await
                    } else {
                        let change = database.transaction(async |transaction| {
                            let row = query("UPDATE people SET name = $1 WHERE id = 1 RETURNING name").bind("Jane");
                            row.fetch_one(transaction).await?.try_get::<String, _>(0)
                        });
                        change.await
                    };
                    assert_eq!(name.unwrap(), "Jane");
                    times.fetch_add(1, SeqCst);
                }
            })
        };
        let working: Vec<_> = (0..times.len()).map(work).collect();
        // Until each has done work that began after this call: work is not retried as often as its table might change.
        let all_go_on = async || {
            for times in &times {
                let before = times.load(SeqCst);
                until("work goes on", async || times.load(SeqCst) >= before + 2).await;
            }
        };
        let mut session = Session::open(&url).await.unwrap();
        for _ in 0..5 {
            session.execute("ALTER TABLE people ALTER COLUMN name TYPE varchar(200)").await.unwrap();
            all_go_on().await;
            session.execute("ALTER TABLE people ALTER COLUMN name TYPE text").await.unwrap();
            all_go_on().await;
        }
        done.store(true, SeqCst);
        for work in working {
            work.await;
        }

        // Each of these makes the prepared statements of the one connection stale in its own way.
        let database = open(&url, &[("DATABASE_CONNECTIONS", "1"), PATIENT[0], PATIENT[1]]).await;
        sql::execute(&url, "CREATE TYPE mood AS ENUM ('good'); CREATE TABLE moods (mood mood)").await.unwrap();
        let statement = "SELECT count(*) FROM moods WHERE mood = 'good'::mood";
        for change in [
            "SELECT 1",
            "DROP TABLE moods; DROP TYPE mood; CREATE TYPE mood AS ENUM ('bad', 'good'); CREATE TABLE moods (mood mood)",
            "DROP TABLE moods; CREATE TABLE moods (mood text)",
        ] {
            sql::execute(&url, change).await.unwrap();
            assert_eq!(
                number(&database, statement).await.ok(),
                (!change.contains("mood text")).then_some(0),
                "{change}"
            );
        }
        execute(&database, "DEALLOCATE ALL").await.unwrap();
        assert_eq!(number(&database, "SELECT count(*) FROM people").await.unwrap(), 1);
        execute(&database, "DEALLOCATE ALL").await.unwrap();
        assert_eq!(number(&database, "SELECT count(*) FROM people").await.unwrap(), 1);
    });
}

#[test]
fn connections_to_a_read_only_server_are_replaced() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let url = cluster.url("postgres");
        let database = open(&url, &PATIENT).await;
        let reserved = database.reserve("reserved", 2);
        execute(&database, "CREATE TABLE t (n int)").await.unwrap();
        // Many idle connections in both pools, and one in use.
        let rest = |n: usize| {
            let database = if n.is_multiple_of(4) { reserved.clone() } else { database.clone() };
            runtime::spawn(async move { number(&database, "SELECT count(*) FROM pg_sleep(0.2)").await.unwrap() })
        };
        for resting in (0..8).map(rest).collect::<Vec<_>>() {
            resting.await;
        }
        let (slow, release) = (database.clone(), smol::channel::bounded::<()>(1));
        let held = runtime::spawn(async move {
            slow.run(async |connection| {
                query("SELECT 1").execute(&mut *connection).await?;
                let _ = release.1.recv().await;
                query("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get::<i32, _>(0)
            })
            .await
        });
        // Existing sessions are read-only from now on and new ones are not: as behind a name that resolves to the new
        // primary.
        cluster.run("postgres", "ALTER ROLE postgres SET default_transaction_read_only = off").await.unwrap();
        cluster.run("postgres", "ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
        cluster.run("postgres", "SELECT pg_reload_conf()").await.unwrap();
        let old = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test' AND backend_start <
            (SELECT pg_conf_load_time())";
        let write = |n: usize| {
            let database = if n.is_multiple_of(4) { reserved.clone() } else { database.clone() };
            runtime::spawn(async move {
                for _ in 0..5 {
                    if n.is_multiple_of(2) {
                        execute(&database, "INSERT INTO t VALUES (1)").await.unwrap();
                    } else {
                        let insert = async |transaction: &mut PgConnection| {
                            query("INSERT INTO t VALUES (1)").execute(transaction).await.map(drop)
                        };
                        database.transaction(insert).await.unwrap();
                    }
                }
            })
        };
        for writing in (0..8).map(write).collect::<Vec<_>>() {
            writing.await;
        }
        assert_eq!(number(&database, "SELECT count(*) FROM t").await.unwrap(), 40, "each once");
        release.0.send(()).await.unwrap();
        held.await.unwrap();
        until("the old connections are closed, that at work too", async || sql::number(&url, old).await.unwrap() == 0)
            .await;
    });
}

#[test]
fn work_moves_to_a_new_connection_if_its_idle_one_was_closed() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
        let database_name = url.rsplit_once('/').unwrap().1.split_once('?').unwrap().0;
        let limit = format!("ALTER DATABASE {database_name} SET idle_session_timeout = '500ms'");
        sql::execute(&url, Box::leak(limit.into_boxed_str())).await.unwrap();
        let (_proxy, by_tcp) = Proxy::to_postgres(&url).await.unwrap();
        let mut written = 0;
        for url in [&url, &by_tcp] {
            let database = open(url, &PATIENT).await;
            for _ in 0..2 {
                let work = |n: usize| {
                    let database = database.clone();
                    runtime::spawn(async move {
                        if n.is_multiple_of(2) {
                            execute(&database, "INSERT INTO t SELECT 1 FROM pg_sleep(0.1)").await
                        } else {
                            number(&database, "SELECT count(*) FROM pg_sleep(0.1)").await.map(drop)
                        }
                    })
                };
                for work in (0..16).map(work).collect::<Vec<_>>() {
                    work.await.unwrap();
                }
                written += 8;
                let ours = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'test'";
                until("the server has ended the sessions", async || sql::number(url, ours).await.unwrap() == 0).await;
            }
            assert_eq!(number(&database, "SELECT count(*) FROM t").await.unwrap(), written, "each once");
        }
    });
}

/// As a firewall does, without a message of PostgreSQL's protocol to either side.
#[test]
fn idle_connections_that_were_reset_cost_no_write() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
        let (proxy, by_tcp) = Proxy::to_postgres(&url).await.unwrap();
        let database = open(&by_tcp, &PATIENT).await;
        let write_at_once = async || {
            let write = |_| {
                let database = database.clone();
                runtime::spawn(async move { execute(&database, "INSERT INTO t SELECT 1 FROM pg_sleep(0.1)").await })
            };
            for writing in (0..16).map(write).collect::<Vec<_>>() {
                writing.await.unwrap();
            }
        };
        write_at_once().await;
        proxy.reset_open().await;
        // Longer than a connection may be idle without a ping.
        smol::Timer::after(Duration::from_millis(300)).await;
        write_at_once().await;
        assert_eq!(number(&database, "SELECT count(*) FROM t").await.unwrap(), 32, "each once");
    });
}

#[test]
fn only_a_write_that_was_certainly_not_committed_is_retried() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
        let (proxy, by_tcp) = Proxy::to_postgres(&url).await.unwrap();
        let database = open(&by_tcp, &[("DATABASE_CONNECTIONS", "1"), PATIENT[0], PATIENT[1]]).await;
        execute(&database, "INSERT INTO t VALUES (0)").await.unwrap();
        let committed = async |n: i64| {
            let rows = sql::rows(&url, "SELECT n::bigint FROM t", |row| row.try_get::<i64, _>(0)).await.unwrap();
            rows.iter().filter(|row| **row == n).count()
        };

        // One statement, and a transaction: they are committed, and the connection is lost before the answer.
        for n in [1, 2] {
            let (writing, proxy_of_work) = (database.clone(), &proxy);
            let begun = AtomicBool::new(false);
            let write = async {
                if n == 1 {
                    let insert = async |connection: &mut PgConnection| {
                        query("SELECT 1").execute(&mut *connection).await?;
                        proxy_of_work.set(Mode::StallResponses);
                        begun.store(true, SeqCst);
                        sqlx::raw_sql("INSERT INTO t VALUES (1)").execute(connection).await.map(drop)
                    };
                    writing.run(insert).await
                } else {
                    let insert = async |transaction: &mut PgConnection| {
                        query("INSERT INTO t VALUES (2)").execute(transaction).await?;
                        proxy_of_work.set(Mode::StallResponses);
                        begun.store(true, SeqCst);
                        Ok(())
                    };
                    writing.transaction(insert).await
                }
            };
            let lose = async {
                until("it is committed", async || begun.load(SeqCst) && committed(n).await == 1).await;
                proxy.reset_open().await;
                proxy.set(Mode::Pass);
            };
            let (result, ()) = smol::future::zip(write, lose).await;
            assert!(matches!(result, Err(Error::Unavailable(_))), "{n}: {result:?}");
            assert_eq!(committed(n).await, 1, "{n}: not twice");
        }

        // Idempotent work is retried.
        let begun = AtomicBool::new(false);
        let write = database.run_idempotent(async |connection: &mut PgConnection| {
            query("SELECT 1").execute(&mut *connection).await?;
            if !begun.load(SeqCst) {
                proxy.set(Mode::StallResponses);
            }
            begun.store(true, SeqCst);
            let insert = "INSERT INTO t SELECT 4 WHERE NOT EXISTS (SELECT 1 FROM t WHERE n = 4)";
            sqlx::raw_sql(insert).execute(connection).await.map(drop)
        });
        let lose = async {
            until("it is committed", async || begun.load(SeqCst) && committed(4).await == 1).await;
            proxy.reset_open().await;
            proxy.set(Mode::Pass);
        };
        smol::future::zip(write, lose).await.0.unwrap();
        assert_eq!(committed(4).await, 1);

        // A transaction whose connection is lost before COMMIT is retried.
        let attempts = AtomicUsize::new(0);
        let insert = async |transaction: &mut PgConnection| {
            query("INSERT INTO t VALUES (3)").execute(&mut *transaction).await?;
            if attempts.fetch_add(1, SeqCst) == 0 {
                query("SELECT pg_terminate_backend(pg_backend_pid())").execute(transaction).await?;
            }
            Ok(())
        };
        database.transaction(insert).await.unwrap();
        assert_eq!((attempts.load(SeqCst), committed(3).await), (2, 1));
    });
}

/// `ON CONFLICT` takes one unique index for the constraint, and `REINDEX CONCURRENTLY` has two for some time.
#[test]
fn a_violation_of_an_index_of_a_reindex_is_retried_and_then_that_of_the_constraint() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let table = "CREATE TABLE numbers (n int); CREATE UNIQUE INDEX once_ccold1 ON numbers (n);
            CREATE UNIQUE INDEX once ON numbers (n); INSERT INTO numbers VALUES (1)";
        sql::execute(&url, table).await.unwrap();
        let database = open(&url, &PATIENT).await;
        let attempts = AtomicUsize::new(0);
        let insert = async |connection: &mut PgConnection| {
            // As a row that is there for ON CONFLICT the next time.
            let number = 1 + attempts.fetch_add(1, SeqCst) as i32;
            query("INSERT INTO numbers VALUES ($1)").bind(number).execute(connection).await.map(drop)
        };
        database.run(insert).await.unwrap();
        assert_eq!(attempts.load(SeqCst), 2);
        let violated = execute(&database, "INSERT INTO numbers VALUES (1)").await;
        assert!(matches!(&violated, Err(Error::Constraint(name)) if name == "once"), "{violated:?}");
    });
}

#[test]
fn serialization_failures_and_deadlocks_are_retried() {
    const TASKS: usize = 6;
    const EACH: usize = 5;
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE counted (n bigint); CREATE TABLE pairs (id int PRIMARY KEY, n int)")
            .await
            .unwrap();
        sql::execute(&url, "INSERT INTO pairs VALUES (0, 0), (1, 0)").await.unwrap();
        let database_name = url.rsplit_once('/').unwrap().1.split_once('?').unwrap().0;
        let serializable = format!("ALTER DATABASE {database_name} SET default_transaction_isolation = serializable");
        sql::execute(&url, Box::leak(serializable.into_boxed_str())).await.unwrap();
        let database = open(&url, &[("DATABASE_DEADLINE", "30s"), ("DATABASE_ACQUIRE_DEADLINE", "30s")]).await;
        let count = |_| {
            let database = database.clone();
            runtime::spawn(async move {
                for _ in 0..EACH {
                    let add = database.transaction(async |transaction| {
                        let row = query("SELECT count(*) FROM counted").fetch_one(&mut *transaction).await?;
                        let counted: i64 = row.try_get(0)?;
                        query("INSERT INTO counted VALUES ($1)").bind(counted).execute(transaction).await.map(drop)
                    });
                    add.await.unwrap();
                }
            })
        };
        for counting in (0..TASKS).map(count).collect::<Vec<_>>() {
            counting.await;
        }
        let distinct = "SELECT count(DISTINCT n) FROM counted";
        assert_eq!(number(&database, distinct).await.unwrap(), (TASKS * EACH) as i64, "each has seen all before it");

        // Two that lock the same rows in the other order: one of them is the deadlock's victim.
        let met = std::sync::Arc::new(smol::lock::Barrier::new(2));
        let cross = |first: i32| {
            let (database, met) = (database.clone(), met.clone());
            let attempts = AtomicUsize::new(0);
            runtime::spawn(async move {
                let change = database.transaction(async |transaction| {
                    let update = "UPDATE pairs SET n = n + 1 WHERE id = $1";
                    query(update).bind(first).execute(&mut *transaction).await?;
                    if attempts.fetch_add(1, SeqCst) == 0 {
                        met.wait().await;
                    }
                    query(update).bind(1 - first).execute(transaction).await.map(drop)
                });
                change.await.unwrap();
            })
        };
        for crossing in [0, 1].map(cross) {
            crossing.await;
        }
        assert_eq!(number(&database, "SELECT sum(n) FROM pairs").await.unwrap(), 4);
    });
}

#[test]
fn retries_end_at_the_deadline_of_the_work() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let settings = [("DATABASE_DEADLINE", "600ms"), ("DATABASE_ACQUIRE_DEADLINE", "400ms")];
        let database = open(&url, &settings).await;
        assert_eq!(database.work_timeout(), Duration::from_secs(1));
        let attempts = AtomicUsize::new(0);
        let started = Instant::now();
        let failing = database.run(async |connection: &mut PgConnection| {
            attempts.fetch_add(1, SeqCst);
            let fail = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END $$";
            query(fail).execute(connection).await.map(drop)
        });
        let failed = failing.await;
        assert!(matches!(failed, Err(Error::Locked | Error::Unavailable(_))), "{failed:?}");
        assert!(attempts.load(SeqCst) > 2);
        let taken = started.elapsed();
        assert!((Duration::from_millis(300)..Duration::from_millis(1900)).contains(&taken), "{taken:?}");

        // Several pieces of work together.
        let together = database.with_shared_deadline();
        let started = Instant::now();
        while together.run(async |connection| query("SELECT pg_sleep(0.2)").execute(connection).await).await.is_ok() {
            assert!(started.elapsed() < TIMEOUT);
        }
        assert!(started.elapsed() < Duration::from_millis(1900), "{:?}", started.elapsed());
    });
}

#[test]
fn silent_connections_cost_one_deadline_and_no_more() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let (proxy, by_tcp) = Proxy::to_postgres(&url).await.unwrap();
        let settings = [("DATABASE_DEADLINE", "600ms"), ("DATABASE_ACQUIRE_DEADLINE", "400ms")];
        let database = open(&by_tcp, &settings).await;
        assert_eq!(number(&database, "SELECT 1::bigint").await.unwrap(), 1);
        proxy.set(Mode::Stall);
        for _ in 0..3 {
            let started = Instant::now();
            let silent = number(&database, "SELECT 1::bigint").await;
            assert!(matches!(silent, Err(Error::Unavailable(_))), "{silent:?}");
            assert!(started.elapsed() < Duration::from_millis(1900), "{:?}", started.elapsed());
        }
        proxy.set(Mode::Pass);
        until("it is back", async || number(&database, "SELECT 1::bigint").await.is_ok()).await;
    });
}

#[test]
fn lock_timeouts_and_statement_timeouts_are_no_outage() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await.unwrap();
        let settings = [("DATABASE_DEADLINE", "2s"), ("DATABASE_ACQUIRE_DEADLINE", "10s")];
        let database = open(&url, &settings).await;
        let backend = "SELECT pg_backend_pid()::bigint";
        let before = number(&database, backend).await.unwrap();
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; UPDATE t SET n = 2").await.unwrap();
        let locked = execute(&database, "UPDATE t SET n = 3").await;
        assert!(matches!(locked, Err(Error::Locked)), "{locked:?}");
        let late = execute(&database, "SELECT pg_sleep(10)").await;
        assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
        // Neither has cost the connection, and the database is available.
        assert_eq!(number(&database, backend).await.unwrap(), before);
        database.ping().await.unwrap();
        session.execute("ROLLBACK").await.unwrap();
        execute(&database, "UPDATE t SET n = 3").await.unwrap();
    });
}
