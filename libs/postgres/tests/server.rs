//! The pool on a real server, healthy and failing.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Row as _, Settings, query};
use runtime::{Shutdown, timeout};
use testbed::{
    Scratch, Signal,
    postgres::{Cluster, Durability},
};

const DEADLINE: Duration = Duration::from_millis(500);

fn settings(url: &str, connections: &str) -> Settings {
    settings_with(url, connections, "500ms")
}

fn settings_with(url: &str, connections: &str, deadline: &str) -> Settings {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("DATABASE_CONNECTIONS", connections)
        .with("DATABASE_DEADLINE", deadline)
        .with("DATABASE_ACQUIRE_DEADLINE", deadline);
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    reader.finish(settings).unwrap().0
}

async fn open(url: &str, connections: &str) -> Database {
    open_with(settings(url, connections)).await
}

async fn open_with(settings: Settings) -> Database {
    let database = Database::new(settings);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    database
}

async fn number(database: &Database, statement: &'static str) -> Result<i32, Error> {
    database.run(async |connection| query(statement).fetch_one(connection).await?.try_get(0)).await
}

async fn until_available(database: &Database) {
    let started = Instant::now();
    while let Err(error) = number(database, "select 1").await {
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30), "{error}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

#[test]
fn nothing_runs_before_the_schema_is_migrated() {
    runtime::block_on(1, async {
        let database = Database::new(settings(&testbed::shared_database().await, "1"));
        assert!(matches!(number(&database, "select 1").await, Err(Error::Unavailable(_))));
        database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
        assert_eq!(number(&database, "select 1").await.unwrap(), 1);
    });
}

#[test]
fn cancelled_work_releases_its_permit() {
    runtime::block_on(1, async {
        let database = open(&testbed::shared_database().await, "1").await;
        for _ in 0..3 {
            let sleeping = database.read(async |connection| query("select pg_sleep(10)").execute(connection).await);
            assert!(timeout(Duration::from_millis(50), sleeping).await.is_err());
            assert_eq!(number(&database, "select 1").await.unwrap(), 1);
        }
    });
}

#[test]
fn work_that_panics_releases_its_permit() {
    runtime::block_on(2, async {
        let database = open(&testbed::shared_database().await, "1").await;
        for _ in 0..3 {
            let panicking = database.clone();
            let work = async move |_: &mut postgres::PgConnection| -> Result<(), _> {
                panic!("this panic belongs to the test")
            };
            // As the server's edge does with a handler that panics.
            let outcome = std::panic::AssertUnwindSafe(panicking.run(work));
            assert!(smol::future::FutureExt::catch_unwind(outcome).await.is_err());
            assert_eq!(number(&database, "select 1").await.unwrap(), 1);
        }
    });
}

#[test]
fn a_slow_statement_ends_at_the_deadline_on_client_and_server() {
    runtime::block_on(1, async {
        let database = open(&testbed::shared_database().await, "1").await;
        let started = Instant::now();
        let late = number(&database, "select 1 from pg_sleep(10)").await;
        assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
        assert!(started.elapsed() < DEADLINE * 2, "{:?}", started.elapsed());
        let running =
            "select count(*)::int from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()
            and datname = current_database() and state = 'active'";
        assert_eq!(number(&database, running).await.unwrap(), 0);
    });
}

#[test]
fn an_exhausted_pool_says_so_in_time() {
    runtime::block_on(2, async {
        let database = open(&testbed::shared_database().await, "1").await;
        let holder = database.clone();
        let (held, wait) = smol::channel::bounded::<()>(1);
        let holding = runtime::spawn(async move {
            let work = async |_: &mut postgres::PgConnection| {
                held.send(()).await.unwrap();
                std::future::pending::<()>().await;
                Ok(())
            };
            holder.run(work).await
        });
        wait.recv().await.unwrap();
        let started = Instant::now();
        assert!(timeout(DEADLINE / 2, number(&database, "select 1")).await.is_err());
        assert!(started.elapsed() >= DEADLINE / 2);
        assert!(matches!(holding.await, Err(Error::Unavailable(_))));
        assert_eq!(number(&database, "select 1").await.unwrap(), 1);
    });
}

#[test]
fn reserved_connections_are_free_while_every_other_is_in_use() {
    runtime::block_on(2, async {
        let database = open(&testbed::shared_database().await, "1").await;
        let reserved = database.reserve("reserved", 1);
        for (slow, quick) in [(&database, &reserved), (&reserved, &database)] {
            let sleeping = slow.clone();
            let sleeping = runtime::spawn(async move { number(&sleeping, "select 1 from pg_sleep(0.3)").await });
            until_sleeping(quick).await;
            let waiting = timeout(DEADLINE / 10, number(slow, "select 1"));
            assert!(waiting.await.is_err(), "the only permit is taken");
            assert_eq!(number(quick, "select 1").await.unwrap(), 1);
            assert_eq!(sleeping.await.unwrap(), 1);
        }
    });
}

async fn until_sleeping(database: &Database) {
    let started = Instant::now();
    let sleeping =
        "select count(*)::int from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
    while number(database, sleeping).await.unwrap() == 0 {
        assert!(started.elapsed() < DEADLINE, "nobody sleeps");
    }
}

#[test]
fn connections_are_given_in_the_order_of_requests() {
    const GREEDY: usize = 3;
    runtime::block_on(1, async {
        // The order is what counts, however long a busy machine takes.
        let database = open_with(settings_with(&testbed::shared_database().await, "1", "10s")).await;
        let served = Arc::new(AtomicUsize::new(0));
        // Each acquires again in the moment in which it releases its permit.
        let greedy = |_| {
            let (database, served) = (database.clone(), served.clone());
            runtime::spawn(async move {
                while number(&database, "select 1").await.is_ok() {
                    served.fetch_add(1, SeqCst);
                }
            })
        };
        let _greedy: Vec<_> = (0..GREEDY).map(greedy).collect();
        for _ in 0..50 {
            // Another one has the permit, or this one would overtake the others.
            let before = served.load(SeqCst);
            while served.load(SeqCst) == before {
                smol::future::yield_now().await;
            }
            let before = served.load(SeqCst);
            number(&database, "select 1").await.unwrap();
            let overtaken = served.load(SeqCst) - before;
            // Each may be before us in line, and come again until we hear of our own answer.
            assert!(overtaken <= GREEDY * 2, "{overtaken} were served before one who asked earlier");
        }
    });
}

#[test]
fn a_database_with_all_connections_in_use_is_available_while_it_answers() {
    runtime::block_on(1, async {
        let database = open(&testbed::shared_database().await, "1").await;
        // Each waits at least 400 ms for the connection, which is longer than the timeout of a ping.
        let busy = |_| {
            let database = database.clone();
            runtime::spawn(async move {
                loop {
                    let _ = number(&database, "select 1 from pg_sleep(0.2)").await;
                }
            })
        };
        let _busy: Vec<_> = (0..3).map(busy).collect();
        smol::Timer::after(DEADLINE).await;
        let end = Instant::now() + DEADLINE * 3;
        let mut taken = Vec::new();
        while Instant::now() < end {
            let started = Instant::now();
            database.ping().await.unwrap();
            taken.push(started.elapsed());
            smol::Timer::after(Duration::from_millis(10)).await;
        }
        // Most, not each: a busy machine delays some.
        taken.sort();
        assert!(taken[taken.len() / 2] < Duration::from_millis(250), "a ping does not wait in line: {taken:?}");
    });
}

#[test]
fn a_constraint_violation_names_the_constraint_and_keeps_the_connection() {
    runtime::block_on(1, async {
        let database = open(&testbed::shared_database().await, "1").await;
        let backend = number(&database, "select pg_backend_pid()").await.unwrap();
        let statement = "create table t (n int constraint t_positive check (n > 0))";
        database.run(async |connection| query(statement).execute(connection).await).await.unwrap();
        let insert = "insert into t values (-1)";
        let error = database.run(async |connection| query(insert).execute(connection).await).await.unwrap_err();
        assert!(matches!(&error, Error::Constraint(name) if name == "t_positive"), "{error:?}");
        let error = number(&database, "select 1 / (select 0)").await.unwrap_err();
        assert!(matches!(error, Error::Query(_)), "{error:?}");
        assert_eq!(number(&database, "select pg_backend_pid()").await.unwrap(), backend);
    });
}

#[test]
fn a_broken_connection_clears_the_idle_ones() {
    runtime::block_on(1, async {
        let database = open(&testbed::shared_database().await, "3").await;
        let three_at_once = async || {
            let backend = |_| {
                let database = database.clone();
                runtime::spawn(async move { number(&database, "select pg_backend_pid() from pg_sleep(0.1)").await })
            };
            let mut backends = Vec::new();
            for backend in (0..3).map(backend).collect::<Vec<_>>() {
                backends.push(backend.await.unwrap());
            }
            backends
        };
        let before = three_at_once().await;
        let ended = number(&database, "select 1 where pg_terminate_backend(pg_backend_pid())").await;
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        let after = three_at_once().await;
        assert!(after.iter().all(|backend| !before.contains(backend)), "{before:?} {after:?}");
    });
}

#[test]
fn a_server_that_freezes_dies_and_comes_back_is_used_again() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let database = open(&cluster.url("postgres"), "4").await;
        assert_eq!(number(&database, "select 1").await.unwrap(), 1, "there is a connection at rest");

        cluster.process().signal_all(Signal::STOP);
        for _ in 0..10 {
            let frozen = timeout(DEADLINE * 3, number(&database, "select 1")).await.expect("it ends in time");
            assert!(matches!(frozen, Err(Error::Unavailable(_))), "{frozen:?}");
        }
        cluster.process().signal_all(Signal::CONT);
        until_available(&database).await;

        cluster.process().signal_all(Signal::KILL);
        cluster.process().kill().await;
        let dead = number(&database, "select 1").await;
        assert!(matches!(dead, Err(Error::Unavailable(_))), "{dead:?}");
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        until_available(&database).await;
    });
}

#[test]
fn migration_waits_for_the_server() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        cluster.stop().await;
        let database = Database::new(settings(&cluster.url("postgres"), "1"));
        let (migrating, shutdown) = (database.clone(), Shutdown::new());
        let migration = runtime::spawn(async move { migrating.migrate(&Migrator::DEFAULT, &shutdown).await });
        smol::Timer::after(DEADLINE).await;
        assert!(matches!(database.ping().await, Err(Error::Unavailable(_))));
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        migration.await.unwrap();
        database.ping().await.unwrap();
    });
}
