//! Statements that were given up while the server goes on with them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use config::{Environment, Reader};
use postgres::{Database, Error, Migrator, Row as _, Settings, query};
use runtime::{Shutdown, timeout};
use testbed::{
    Scratch,
    pgbouncer::{PgBouncer, PoolMode},
    postgres::{Cluster, Durability},
    sql::{self, Session},
    until,
};

const CONNECTIONS: usize = 8;

async fn open(url: &str, connections: usize, deadline: &str) -> Database {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("DATABASE_CONNECTIONS", connections.to_string())
        .with("DATABASE_DEADLINE", deadline)
        .with("DATABASE_ACQUIRE_DEADLINE", "5s");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    let database = Database::new(reader.finish(settings).unwrap().0);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    database
}

async fn write(database: &Database) -> Result<(), Error> {
    database.run(async |connection| query("INSERT INTO t VALUES (1)").execute(connection).await.map(drop)).await
}

async fn read(database: &Database) -> Result<i64, Error> {
    database.read(async |connection| query("SELECT 1::bigint").fetch_one(connection).await?.try_get(0)).await
}

async fn start(scratch: &Scratch) -> Cluster {
    let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
    scratch.guard(cluster.process()).unwrap();
    cluster
}

/// Starts PgBouncer with a line of its configuration.
async fn start_pooler(scratch: &Scratch, cluster: &Cluster, line: &str) -> PgBouncer {
    let directory = scratch.path().join("pgbouncer");
    let mut pooler = PgBouncer::start(&directory, cluster, PoolMode::Session, line).await.unwrap();
    scratch.guard(pooler.process()).unwrap();
    pooler
}

#[test]
fn commits_that_do_not_end_cost_a_bounded_number_of_sessions_and_no_read() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let cluster = start(&scratch).await;
        commits_that_do_not_end(&cluster, open(&cluster.url("postgres"), CONNECTIONS, "500ms").await, 200).await;
    });
}

/// The pooler closes both connections long before the deadline.
#[test]
fn through_pgbouncer_that_cuts_connections_such_commits_cost_no_more_sessions() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let cluster = start(&scratch).await;
        let pooler = start_pooler(&scratch, &cluster, "query_timeout = 0.2").await;
        commits_that_do_not_end(&cluster, open(&pooler.url("postgres"), CONNECTIONS, "20s").await, 20_000).await;
    });
}

/// With synchronous replication and no standby, a commit waits for ever, and its session does not notice that its client is gone.
/// Every other caller gives up after `patience_ms`.
async fn commits_that_do_not_end(cluster: &Cluster, database: Database, patience_ms: u64) {
    let url = cluster.url("postgres");
    sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
    write(&database).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let configure = async |standbys: &str| {
        let setting = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
        cluster.run("postgres", &setting).await.unwrap();
        cluster.run("postgres", "SELECT pg_reload_conf()").await.unwrap();
    };

    configure("nobody").await;
    let (done, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writing = |n: usize| {
        let (database, done, failed) = (database.clone(), done.clone(), failed.clone());
        runtime::spawn(async move {
            while !done.load(SeqCst) {
                let limit = Duration::from_millis(if n.is_multiple_of(2) { patience_ms } else { 20_000 });
                match timeout(limit, write(&database)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(Error::Unavailable(_))) | Err(_) => drop(failed.fetch_add(1, SeqCst)),
                    Ok(Err(error)) => panic!("{error}"),
                }
                smol::future::yield_now().await;
            }
        })
    };
    let writing: Vec<_> = (0..CONNECTIONS).map(writing).collect();
    until("commits wait", async || sql::number(&url, waiting).await.unwrap() > 0).await;
    // Many more than without a bound: each that is late would leave a session.
    until("many have failed", async || {
        assert_eq!(read(&database).await.unwrap(), 1);
        database.ping().await.unwrap();
        let sessions = sql::number(&url, waiting).await.unwrap();
        assert!(sessions <= (CONNECTIONS + CONNECTIONS / 4) as i64, "{sessions} sessions wait");
        failed.load(SeqCst) >= 20 * CONNECTIONS
    })
    .await;
    done.store(true, SeqCst);
    for writing in writing {
        writing.await;
    }

    configure("").await;
    until("changes are possible again", async || write(&database).await.is_ok()).await;
    assert_eq!(sql::number(&url, waiting).await.unwrap(), 0);
}

#[test]
fn work_that_is_cancelled_blocks_no_other() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let database = open(&url, CONNECTIONS, "500ms").await;
        sql::execute(&url, "CREATE TABLE t (n int); CREATE TABLE locked (n int); INSERT INTO locked VALUES (1)")
            .await
            .unwrap();
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; UPDATE locked SET n = 2").await.unwrap();
        for _ in 0..CONNECTIONS {
            let reading = database.read(async |connection| query("SELECT pg_sleep(10)").execute(connection).await);
            assert!(timeout(Duration::from_millis(50), reading).await.is_err());
            let waiting = database.run(async |connection| query("UPDATE locked SET n = 3").execute(connection).await);
            assert!(timeout(Duration::from_millis(50), waiting).await.is_err());
            write(&database).await.unwrap();
            read(&database).await.unwrap();
        }
    });
}

/// Work that is given up between two statements; the server does nothing for it.
async fn give_up(database: &Database) {
    let work = database.run(async |connection| {
        query("SELECT 1").execute(connection).await?;
        std::future::pending::<Result<(), sqlx::Error>>().await
    });
    assert!(timeout(Duration::from_millis(100), work).await.is_err());
}

#[test]
fn through_pgbouncer_a_session_that_is_handed_on_is_not_abandoned() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let cluster = start(&scratch).await;
        let pooler = start_pooler(&scratch, &cluster, "").await;
        let database = open(&pooler.url("postgres"), 1, "2s").await;
        sql::execute(&cluster.url("postgres"), "CREATE TABLE t (n int)").await.unwrap();
        for _ in 0..20 {
            write(&database).await.unwrap();
            give_up(&database).await;
            // The pooler has few sessions, and this work is given the one that was given up.
            write(&database).await.unwrap();
        }
    });
}

/// Such as one whose client has lost its network: the server finds out with TCP's keep-alive.
#[test]
fn a_session_that_does_nothing_is_not_abandoned_although_its_state_is_not_tracked() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let cluster = start(&scratch).await;
        let url = cluster.url("postgres");
        sql::execute(&url, "CREATE TABLE t (n int)").await.unwrap();
        let database = open(&format!("{url}&options=-c%20track_activities%3Doff"), 1, "20s").await;
        let (given_up, until_given_up) = smol::channel::bounded(1);
        let work = database.run(async |connection| {
            let row = query("SELECT pg_backend_pid()::bigint").fetch_one(connection).await?;
            let pid: i64 = row.try_get(0)?;
            let reading =
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'disabled' AND wait_event = 'ClientRead'";
            until("it does nothing", async || sql::number(&url, reading).await.unwrap() == 1).await;
            // It does not notice that its client goes.
            let stopped = std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status();
            assert!(stopped.unwrap().success());
            given_up.send(()).await.unwrap();
            std::future::pending::<Result<(), sqlx::Error>>().await
        });
        smol::future::or(async { work.await.unwrap() }, async { until_given_up.recv().await.unwrap() }).await;
        write(&database).await.unwrap();
    });
}

#[test]
fn a_ping_finds_out_that_abandoned_sessions_have_ended() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let database = open(&url, CONNECTIONS, "20s").await;
        let reports = database.reserve("reports", CONNECTIONS);
        let abandoned = || {
            let metrics = String::from_utf8(telemetry::metrics::render()).unwrap();
            let is = |line: &&str| line.starts_with("db_pool_connections{pool=\"reports\",state=\"abandoned\"}");
            metrics.lines().find(is).map(|line| line.rsplit(' ').next().unwrap().to_owned())
        };
        give_up(&reports).await;
        assert_eq!(abandoned().as_deref(), Some("1"));
        until("it is forgotten", async || {
            read(&database).await.unwrap();
            database.ping().await.unwrap();
            abandoned().as_deref() == Some("0")
        })
        .await;
    });
}
