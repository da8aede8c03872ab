//! Batching of concurrent requests, on a real server.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Mutex,
    time::{Duration, Instant},
};

use config::{Environment, Reader};
use postgres::{
    Acquire as _, BatchStatement, Batcher, Database, Error, Migrator, PgConnection, Row as _, Settings, query,
};
use runtime::Shutdown;
use testbed::{sql::Session, until};

/// Puts numbers into the table `numbers`, which takes each once and none below 0; the response is the number.
enum Put {}

impl BatchStatement for Put {
    type Request = i32;
    type Response = i32;
    const NAME: &'static str = "put number";
    const MAX_REQUESTS: usize = 20;

    async fn execute(database: &Database, numbers: &[i32]) -> Result<Vec<i32>, Error> {
        let put = database.run(async |connection| {
            let statement = "INSERT INTO numbers SELECT n, txid_current() FROM unnest($1::int[]) n RETURNING n";
            let rows = query(statement).bind(numbers).fetch_all(connection).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        });
        put.await
    }
}

/// Requests whose subject is the number of their hundreds, and which are put into the table; the response is the request. It
/// checks that no two concurrent statements have the same subject.
enum HasSubject {}

static RUNNING: Mutex<BTreeMap<i32, i32>> = Mutex::new(BTreeMap::new());

impl BatchStatement for HasSubject {
    type Request = i32;
    type Response = i32;
    const NAME: &'static str = "about";
    const MAX_REQUESTS: usize = 20;

    fn subject(request: &i32) -> Option<u128> {
        Some(u128::from(request.unsigned_abs()) / 100)
    }

    async fn execute(database: &Database, requests: &[i32]) -> Result<Vec<i32>, Error> {
        let subjects: BTreeSet<_> = requests.iter().map(|request| request / 100).collect();
        for subject in &subjects {
            let other = RUNNING.lock().unwrap().insert(*subject, requests[0]);
            assert_eq!(other, None, "it runs while {requests:?} do");
        }
        let put = put(database, requests).await;
        for subject in &subjects {
            RUNNING.lock().unwrap().remove(subject);
        }
        put.map(|()| requests.to_vec())
    }
}

/// Numbers to be put into the table, and until when each may wait for a lock; the response is the number.
enum HasWaitUntil {}

impl BatchStatement for HasWaitUntil {
    type Request = (i32, Instant);
    type Response = i32;
    const NAME: &'static str = "put number in time";
    const MAX_REQUESTS: usize = 20;

    fn wait_until((_, until): &(i32, Instant)) -> Option<Instant> {
        Some(*until)
    }

    async fn execute(database: &Database, requests: &[(i32, Instant)]) -> Result<Vec<i32>, Error> {
        let numbers: Vec<_> = requests.iter().map(|(n, _)| *n).collect();
        put(database, &numbers).await.map(|()| numbers)
    }
}

/// Puts numbers into the table, and waits for locks as long as the batcher says.
async fn put(database: &Database, numbers: &[i32]) -> Result<(), Error> {
    let statement = "INSERT INTO numbers
        SELECT n, 0 FROM unnest($1::int[]) n, pg_sleep(0.001), set_config('lock_timeout', $2, true)";
    let limit = database.lock_timeout().as_millis().to_string();
    let put = async |connection: &mut PgConnection| {
        query(statement).bind(numbers).bind(&limit).execute(connection).await.map(drop)
    };
    database.run(put).await
}

async fn database() -> Database {
    database_at(&testbed::shared_database().await).await
}

async fn database_at(url: &str) -> Database {
    database_with_deadline(url, "2s").await
}

async fn database_with_deadline(url: &str, deadline: &str) -> Database {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("DATABASE_DEADLINE", deadline)
        .with("DATABASE_CONNECTIONS", "4");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/test", "test");
    let database = Database::new(reader.finish(settings).unwrap().0);
    database.migrate(&Migrator::DEFAULT, &Shutdown::new()).await.unwrap();
    let table =
        "CREATE TABLE numbers (n int CONSTRAINT once PRIMARY KEY CONSTRAINT positive CHECK (n >= 0), tx bigint)";
    database.run(async |connection| query(table).execute(connection).await).await.unwrap();
    database
}

async fn number(database: &Database, statement: &'static str) -> i64 {
    database.run(async |connection| query(statement).fetch_one(connection).await?.try_get(0)).await.unwrap()
}

async fn put_all<S: BatchStatement<Request = i32, Response = i32>>(
    batcher: &Batcher<S>,
    numbers: impl Iterator<Item = i32>,
) -> Vec<(i32, Result<i32, Error>)> {
    let put = |n| {
        let batcher = batcher.clone();
        runtime::spawn(async move { (n, batcher.submit(n).await) })
    };
    let mut responses = Vec::new();
    for response in numbers.map(put).collect::<Vec<_>>() {
        responses.push(response.await);
    }
    responses
}

#[test]
fn two_statements_about_the_same_never_run_at_the_same_time_and_no_request_is_forgotten() {
    runtime::block_on(1, async {
        let database = database().await;
        let batcher = Batcher::<HasSubject>::new(database.clone());
        let requests = (0..200).map(|n| n % 5 * 100 + n / 5).chain((500..2000).step_by(100));
        let mut responses = put_all(&batcher, requests.clone()).await;
        responses.sort_by_key(|(request, _)| *request);
        let mut expected: Vec<_> = requests.collect();
        expected.sort_unstable();
        let responses: Vec<_> = responses.into_iter().map(|(_, response)| response.unwrap()).collect();
        assert_eq!(responses, expected);
        assert_eq!(number(&database, "SELECT count(*) FROM numbers").await, expected.len() as i64);
    });
}

#[test]
fn concurrent_requests_share_statements_and_each_gets_its_own_response() {
    runtime::block_on(1, async {
        let database = database().await;
        let batcher = Batcher::<Put>::new(database.clone());
        for (n, response) in put_all(&batcher, 0..100).await {
            assert_eq!(response.unwrap(), n);
        }
        assert_eq!(number(&database, "SELECT count(*) FROM numbers").await, 100);
        let transactions = number(&database, "SELECT count(DISTINCT tx) FROM numbers").await;
        // Two statements run at once, and each executes at most twenty requests.
        assert!((5..20).contains(&transactions), "{transactions} transactions");
    });
}

#[test]
fn a_request_that_fails_affects_no_other_in_its_batch() {
    runtime::block_on(1, async {
        let database = database().await;
        let batcher = Batcher::<Put>::new(database.clone());
        for (n, response) in put_all(&batcher, (-1..30).chain([7])).await {
            match response {
                Ok(response) => assert_eq!(response, n),
                Err(Error::Constraint(name)) => {
                    assert!(matches!((n, &*name), (-1, "positive") | (7, "once")), "{n}: {name}");
                }
                Err(error) => panic!("{n}: {error}"),
            }
        }
        assert_eq!(number(&database, "SELECT count(*) FROM numbers").await, 30);
    });
}

#[test]
fn a_request_cancelled_before_its_statement_is_not_executed() {
    runtime::block_on(1, async {
        let database = database().await;
        let batcher = Batcher::<Put>::new(database.clone());
        let locker = database.clone();
        let (locked, is_locked) = smol::channel::bounded::<()>(1);
        let (released, release) = smol::channel::bounded::<()>(1);
        let locking = runtime::spawn(async move {
            let lock = async |connection: &mut PgConnection| {
                let mut transaction = connection.begin().await?;
                query("LOCK TABLE numbers").execute(&mut *transaction).await?;
                locked.send(()).await.unwrap();
                release.recv().await.unwrap();
                transaction.commit().await
            };
            locker.run(lock).await
        });
        is_locked.recv().await.unwrap();
        let mut busy = Vec::new();
        for n in 0..2 {
            let batcher = batcher.clone();
            busy.push(runtime::spawn(async move { batcher.submit(n).await }));
            until_waiting_for_the_table(&database, busy.len() as i64).await;
        }
        assert!(smol::future::poll_once(pin!(batcher.submit(2))).await.is_none(), "both statements are running");
        released.send(()).await.unwrap();
        locking.await.unwrap();
        for (n, response) in (0..).zip(busy) {
            assert_eq!(response.await.unwrap(), n);
        }
        assert_eq!(batcher.submit(3).await.unwrap(), 3);
        assert_eq!(number(&database, "SELECT count(*) FROM numbers WHERE n = 2").await, 0);
    });
}

async fn until_waiting_for_the_table(database: &Database, statements: i64) {
    let started = Instant::now();
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'numbers'::regclass AND NOT granted";
    while number(database, waiting).await < statements {
        assert!(started.elapsed() < Duration::from_secs(1), "the statements have not begun");
    }
}

#[test]
fn the_queue_is_bounded_in_length_and_waiting_time() {
    const WAITING: i32 = 16 * 20;
    runtime::block_on(1, async {
        let url = testbed::shared_database().await;
        let database = database_at(&url).await;
        let batcher = Batcher::<Put>::new(database.clone());
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; LOCK TABLE numbers").await.unwrap();
        let started = Instant::now();
        let mut asked: Vec<_> = (0..2 + WAITING).map(|n| Box::pin(batcher.submit(n))).collect();
        // A request is in the queue as soon as its future has been polled.
        for (n, request) in asked.iter_mut().enumerate() {
            assert!(smol::future::poll_once(request).await.is_none(), "the table is locked");
            if n < 2 {
                until_waiting_for_the_table(&database, n as i64 + 1).await;
            }
        }
        let full = smol::future::poll_once(pin!(batcher.submit(1000))).await.expect("at once");
        assert!(matches!(full, Err(Error::QueueFull)), "{full:?}");
        for asked in asked {
            let response = asked.await;
            assert!(matches!(response, Err(Error::Locked | Error::Unavailable(_))), "{response:?}");
        }
        // 1 s to begin and 2 s for the statement, and time for a loaded machine.
        assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
        session.execute("ROLLBACK").await.unwrap();
        assert_eq!(batcher.submit(2000).await.unwrap(), 2000);
        assert_eq!(number(&database, "SELECT count(*) FROM numbers").await, 1, "none of those that were told so");
    });
}

#[test]
fn a_request_that_is_late_because_the_one_before_it_waited_for_a_lock_is_locked_too() {
    runtime::block_on(1, async {
        let url = testbed::shared_database().await;
        let database = database_with_deadline(&url, "20s").await;
        let batcher = Batcher::<HasSubject>::new(database.clone());
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; INSERT INTO numbers VALUES (10001, 0)").await.unwrap();
        let submit = |n| {
            let batcher = batcher.clone();
            runtime::spawn(async move { batcher.submit(n).await })
        };
        let first = submit(10_001);
        until_waiting_alone(&database).await;
        let mut second = pin!(batcher.submit(10_002));
        assert!(smol::future::poll_once(&mut second).await.is_none(), "it is behind the first one");
        let submitted = Instant::now();
        until("the second one is late", async || submitted.elapsed() > database.acquire_timeout()).await;
        session.execute("ROLLBACK").await.unwrap();
        assert_eq!(first.await.unwrap(), 10_001);
        let second = second.await;
        assert!(matches!(second, Err(Error::Locked)), "{second:?}");
    });
}

/// Waits until a request waits for a lock by itself, whose limit is longer than that of any other statement.
async fn until_waiting_alone(database: &Database) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND datname = current_database() AND query_start < now() - interval '200 ms'";
    until("a request waits by itself", async || number(database, waiting).await > 0).await;
}

#[test]
fn a_request_waits_for_others_that_wait_for_locks_no_longer_than_it_may() {
    runtime::block_on(1, async {
        let url = testbed::shared_database().await;
        // One of the four connections waits for locks.
        let database = database_with_deadline(&url, "20s").await;
        let batcher = Batcher::<HasWaitUntil>::new(database.clone());
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; INSERT INTO numbers VALUES (1, 0), (2, 0)").await.unwrap();
        let submit = |n, limit| {
            let batcher = batcher.clone();
            runtime::spawn(async move { batcher.submit((n, Instant::now() + limit)).await })
        };
        let mut first = submit(1, Duration::from_secs(60));
        until_waiting_alone(&database).await;
        let second = submit(2, Duration::from_millis(300)).await;
        assert!(matches!(second, Err(Error::Locked)), "{second:?}");
        assert!(smol::future::poll_once(&mut first).await.is_none(), "the first one waits longer");
        session.execute("ROLLBACK").await.unwrap();
        assert_eq!(first.await.unwrap(), 1);
    });
}
