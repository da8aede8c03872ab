//! PostgreSQL is killed, stopped, disconnected or busy, fails over, or cannot remove dead rows.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use surf::http::Method;
use testbed::{
    Scratch, Signal,
    audit::Acknowledged,
    http::Response,
    postgres::{Cluster, Durability},
    proxy::{Mode, Proxy, Target},
    sql::{self, Session},
    system::{BackingServices, DedicatedServers, System},
    until,
    writers::Writers,
};

use crate::support::{
    TIMEOUT, any_broker, audit, fast_broker, is_unavailable, logged, readiness, register, start, stop_and_audit,
    system, until_metric, until_readiness,
};

/// Time for a response without the database: `DATABASE_ACQUIRE_DEADLINE`, `DATABASE_DEADLINE`, and a margin for a busy
/// machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3 + 2);
const UNAVAILABLE: &str = "the database is unavailable";
const AVAILABLE_AGAIN: &str = "the database is available again";

#[test]
fn nothing_is_lost_when_postgresql_is_killed_or_frozen_under_load() {
    runtime::block_on(2, async {
        let mut servers = DedicatedServers::start(any_broker()).await.unwrap_or_else(|error| panic!("{error}"));
        let system = start(servers.backing_services(), 1, &[]).await;
        let writers = Writers::start(&[system.patients[0].address()], 6);
        for (outages, freeze) in (1..).zip([true, false, true, false]) {
            writers.until(writers.acknowledged().count() + 20, TIMEOUT).await.unwrap();
            servers.cluster.process().signal_all(if freeze { Signal::STOP } else { Signal::KILL });
            if !freeze {
                servers.cluster.process().kill().await;
            }
            // The services notice the outage with their next statement.
            until_readiness(&system.patients[0], "database", 503, "DOWN").await;
            until_readiness(&system.billing, "database", 503, "DOWN").await;
            let started = Instant::now();
            let response = system.patient_client().get("/patients?limit=1").await.unwrap();
            assert!(
                is_unavailable(&response) && started.elapsed() < RESPONSE_TIMEOUT,
                "{:?} {}",
                started.elapsed(),
                response.text()
            );
            let alive = system.patient_client().get("/actuator/health/liveness").await.unwrap();
            assert_eq!(alive.status, 200);
            if freeze {
                servers.cluster.process().signal_all(Signal::CONT);
            } else {
                servers.restart_postgres().await.unwrap();
            }
            for service in [&system.patients[0], &system.billing] {
                until_readiness(service, "database", 200, "UP").await;
                until("its end is logged", async || logged(service, AVAILABLE_AGAIN) >= outages).await;
                assert_eq!(
                    (logged(service, UNAVAILABLE), logged(service, AVAILABLE_AGAIN)),
                    (outages, outages),
                    "logged once each"
                );
            }
        }
        let (written, report) = stop_and_audit(writers, &system).await;
        assert!(
            report.acknowledged > 80 && written.slowest < RESPONSE_TIMEOUT + Duration::from_secs(2),
            "{written}\n{report}"
        );
        assert_eq!(written.unanswered, 0, "{written}");
        every_connection_works(&system, 16).await;
    });
}

#[test]
fn with_every_connection_in_use_requests_get_503_in_time_and_no_connection_leaks() {
    runtime::block_on(2, async {
        let system = system(any_broker(), 1, &[("DATABASE_CONNECTIONS", "4")]).await;
        let mut session = Session::open(&system.backing_services().patients_database).await.unwrap();
        for _ in 0..3 {
            session.execute("BEGIN; LOCK TABLE patients").await.unwrap();
            for (response, took) in reads(&system, 20).await {
                assert!(
                    is_unavailable(&response) && took < RESPONSE_TIMEOUT,
                    "{took:?}: {} {}",
                    response.status,
                    response.text()
                );
            }
            session.execute("ROLLBACK").await.unwrap();
            until("it is back", async || reads(&system, 1).await[0].0.status == 200).await;
            every_connection_works(&system, 4).await;
        }
    });
}

#[test]
fn silently_dead_connections_are_replaced() {
    runtime::block_on(2, async {
        let servers = DedicatedServers::start(any_broker()).await.unwrap_or_else(|error| panic!("{error}"));
        let proxy = Proxy::start().await.unwrap();
        proxy.set_target(Target::Socket(servers.cluster.socket_directory().join(".s.PGSQL.5432")));
        let cut = format!("postgres://postgres@127.0.0.1:{}/patients", proxy.port());
        let backing_services = BackingServices { patients_database: cut, ..servers.backing_services() };
        let system = start(backing_services, 1, &[("DATABASE_CONNECTIONS", "3"), ("DATABASE_DEADLINE", "1s")]).await;
        let acknowledged = Acknowledged::default();
        for round in 0..6 {
            register(&system.patient_client(), &acknowledged).await;
            proxy.set(Mode::Stall);
            for (response, took) in reads(&system, 6).await {
                assert!(
                    is_unavailable(&response) && took < RESPONSE_TIMEOUT,
                    "{took:?}: {} {}",
                    response.status,
                    response.text()
                );
            }
            if round % 2 == 0 {
                proxy.set(Mode::Reset);
                assert!(is_unavailable(&reads(&system, 1).await[0].0));
            }
            proxy.set(Mode::Pass);
            until("it is back", async || reads(&system, 1).await[0].0.status == 200).await;
        }
        every_connection_works(&system, 3).await;
        audit(&system, &acknowledged).await;
    });
}

#[test]
fn a_failover_to_a_lagging_standby_delays_no_event() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let [primary, replica] = ["primary", "replica"].map(|name| scratch.path().join(name));
        let mut cluster = Cluster::start(&primary, Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        for name in ["patients", "billing"] {
            cluster.create_database(name).await.unwrap();
        }
        let proxy = Proxy::start().await.unwrap();
        let point_proxy_to = |directory: &Path| proxy.set_target(Target::Socket(directory.join(".s.PGSQL.5432")));
        point_proxy_to(&primary);
        let [patients_database, billing_database] =
            ["patients", "billing"].map(|name| format!("postgres://postgres@127.0.0.1:{}/{name}", proxy.port()));
        let backing_services =
            BackingServices { patients_database, billing_database, ..BackingServices::shared(any_broker()).await };
        // The relay assumes that every transaction ends within five deadlines.
        let system = start(backing_services, 1, &[("DATABASE_DEADLINE", "1s")]).await;
        let (client, database) = (system.patient_client(), system.backing_services().patients_database.clone());
        let jane = register(&client, &Acknowledged::default()).await;

        // A standby that lags: a copy of the primary that gets no further changes.
        cluster.stop().await;
        testbed::create_open_directory(&replica).unwrap();
        let copied = Command::new("cp").arg("-a").arg(primary.join("data")).arg(&replica).status().unwrap();
        assert!(copied.success());
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let mut standby = Cluster::start(&replica, Durability::Process).await.unwrap();
        scratch.guard(standby.process()).unwrap();
        until_readiness(&system.patients[0], "database", 200, "UP").await;
        until_readiness(&system.billing, "database", 200, "UP").await;
        let path = format!("/patients/{}", jane["id"].as_str().unwrap());
        // A request may fail because of a connection from before the restart.
        let mut tag = None;
        until("she is changed", async || {
            let changed = client.put(&path, &crate::support::patient()).await.unwrap();
            tag = changed.header("etag").map(str::to_owned);
            tag.is_some()
        })
        .await;
        let tag = tag.unwrap();
        let waiting = async || sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap_or(1);
        // Long enough that the low watermark of the relay is beyond the published events.
        let (mut registered, end) = (0, Instant::now() + Duration::from_secs(7));
        while Instant::now() < end || registered < 50 {
            register(&client, &Acknowledged::default()).await;
            registered += 1;
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        until("all events are published", async || waiting().await == 0).await;

        point_proxy_to(&replica);
        proxy.set(Mode::Reset);
        cluster.stop().await;
        proxy.set(Mode::Pass);
        until_readiness(&system.patients[0], "database", 200, "UP").await;
        until_readiness(&system.billing, "database", 200, "UP").await;
        until("a registration succeeds", async || {
            client.post("/patients", &crate::support::patient()).await.unwrap().status == 201
        })
        .await;
        // The relay rereads the whole outbox every 30 s. Without its check of ids, the second event would wait for that.
        for _ in 0..2 {
            register(&client, &Acknowledged::default()).await;
            let started = Instant::now();
            until("the event is published", async || waiting().await == 0).await;
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
        until_metric(&system.patients[0], "outbox_id_regressions_total", |times| times == 1.0).await;
        let created = registered + 4;
        system.until_summary(TIMEOUT, |summary| summary["created"].as_i64() >= Some(created)).await.unwrap();

        // The documented recovery in docs/failures.md: old entity tags do not match, and no change counts as a duplicate.
        sql::execute(&database, "UPDATE patients SET version = version + 1000000").await.unwrap();
        let [change, other] = [crate::support::patient(), crate::support::patient()];
        let stale = client.send(Method::Put, &path, &[("if-match", &tag)], Some(&change)).await.unwrap();
        assert_eq!(stale.status, 412);
        assert_eq!(client.put(&path, &other).await.unwrap().status, 200);
        let applied = "events_applied_total{kind=\"PATIENT_UPDATED\"}";
        until_metric(&system.analytics, applied, |events| events == 2.0).await;
        let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!(summary["updated"], 1, "the lost change counts no more, as PostgreSQL has it");
    });
}

#[test]
fn a_long_unrelated_transaction_stalls_no_delivery() {
    runtime::block_on(2, async {
        let system = system(fast_broker(), 1, &[]).await;
        let database = system.backing_services().patients_database.clone();
        // As long as it is open, PostgreSQL cannot remove rows that were deleted since.
        let mut unrelated = Session::open(&database).await.unwrap();
        let open = "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TEMPORARY TABLE unrelated (n int);
            SELECT count(*) FROM idempotency_keys";
        unrelated.execute(open).await.unwrap();
        let many = "INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value)
            SELECT id, n, gen_random_uuid(), 'PATIENT_CREATED', '\\x0a24' || convert_to(id::text, 'UTF8')
            FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(1, 6000) n) events";
        sql::execute(&database, many).await.unwrap();
        until("they are published", async || sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap() == 0)
            .await;
        // There are 6,000 dead index entries before the next live one. The relay soon skips them.
        let mut session = Session::open(&database).await.unwrap();
        let mut entries_read = async || {
            let statement = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'";
            session.execute("SELECT pg_stat_force_next_flush()").await.unwrap();
            session.rows(statement, |row| sqlx::Row::try_get::<i64, _>(row, 0)).await.unwrap()[0]
        };
        until("the relay skips the dead entries", async || {
            let before = entries_read().await;
            for _ in 0..4 {
                register(&system.patient_client(), &Acknowledged::default()).await;
                smol::Timer::after(Duration::from_millis(600)).await;
            }
            entries_read().await - before < 20_000
        })
        .await;
        let registered = async || system.until_summary(TIMEOUT, |_| true).await.unwrap()["updated"].as_i64().unwrap();
        let jane = register(&system.patient_client(), &Acknowledged::default()).await;
        let (before, started) = (registered().await, Instant::now());
        let path = format!("/patients/{}", jane["id"].as_str().unwrap());
        assert_eq!(system.patient_client().put(&path, &crate::support::patient()).await.unwrap().status, 200);
        let log = || system.analytics.log();
        until("it is delivered", async || registered().await == before + 1 || started.elapsed() > TIMEOUT / 2).await;
        assert!(registered().await == before + 1, "it is not delivered: {}", log());
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        unrelated.execute("COMMIT").await.unwrap();
    });
}

#[test]
fn a_statement_of_background_work_that_fails_is_logged_and_a_lost_schema_is_migrated_again() {
    runtime::block_on(2, async {
        let system = system(any_broker(), 1, &[]).await;
        register(&system.patient_client(), &Acknowledged::default()).await;
        let backing_services = system.backing_services();
        let (patients, billing) = (&system.patients[0], &system.billing);

        // The history says that the column is there, so no migration brings it back. No request needs it.
        let database = &backing_services.patients_database;
        sql::execute(database, "ALTER TABLE billing_tasks RENAME COLUMN rejections TO lost").await.unwrap();
        until("it is logged", async || logged(patients, "a statement failed") > 0).await;
        let line = patients.log().lines().find(|line| line.contains("a statement failed")).unwrap().to_owned();
        assert!(line.contains("claim billing tasks") && line.contains("42703"), "{line}");
        sql::execute(database, "ALTER TABLE billing_tasks RENAME COLUMN lost TO rejections").await.unwrap();

        for database in [database, &backing_services.billing_database] {
            let mut session = Session::open(database).await.unwrap();
            // It can be the victim of a deadlock with the work that goes on.
            until("the tables are gone", async || {
                session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.is_ok()
            })
            .await;
        }
        until("patients are registered again, with an account", async || {
            let response = system.patient_client().post("/patients", &crate::support::patient()).await.unwrap();
            assert!(response.status == 201 || is_unavailable(&response), "{} {}", response.status, response.text());
            response.status == 201 && response.json()["billing"]["status"] == "ACTIVE"
        })
        .await;
        for service in [patients, billing] {
            until_readiness(service, "database", 200, "UP").await;
            assert!(logged(service, "the schema is not complete; it is migrated again") > 0);
        }
    });
}

/// Concurrent reads, with their times.
async fn reads(system: &System, count: usize) -> Vec<(Response, Duration)> {
    let read = |_| {
        let client = system.patient_client();
        runtime::spawn(async move {
            let started = Instant::now();
            (client.get("/patients?limit=1").await.unwrap(), started.elapsed())
        })
    };
    let reading: Vec<_> = (0..count).map(read).collect();
    let mut responses = Vec::new();
    for response in reading {
        responses.push(response.await);
    }
    responses
}

/// Runs as many statements at once as there are connections; all must succeed.
async fn every_connection_works(system: &System, connections: usize) {
    let mut session = Session::open(&system.backing_services().patients_database).await.unwrap();
    session.execute("BEGIN; LOCK TABLE patients").await.unwrap();
    let client = system.patient_client();
    let reading: Vec<_> = (0..connections)
        .map(|_| {
            let client = client.clone();
            runtime::spawn(async move { client.get("/patients?limit=1").await.unwrap().status })
        })
        .collect();
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let mut watch = Session::open(&system.backing_services().patients_database).await.unwrap();
    // Background tasks use one of them at times.
    let enough = connections as i64 - 1;
    until("every connection is in use", async || {
        watch.rows(waiting, |row| sqlx::Row::try_get::<i64, _>(row, 0)).await.unwrap()[0] >= enough
    })
    .await;
    session.execute("ROLLBACK").await.unwrap();
    for status in reading {
        assert_eq!(status.await, 200);
    }
    until_metric(&system.patients[0], "db_pool_connections{pool=\"requests\",state=\"used\"}", |used| used <= 1.0)
        .await;
    assert_eq!(readiness(&system.patients[0], "database").await, (200, "UP".to_owned()));
}
