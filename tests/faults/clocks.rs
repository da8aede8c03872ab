//! The clock of a service or of PostgreSQL is wrong, or steps.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use testbed::{
    Signal,
    audit::Acknowledged,
    broker::Kind,
    clock::SteppedClock,
    service::Service,
    sql,
    system::{DedicatedServers, System},
    until,
};

use crate::support::{
    TIMEOUT, analytics, any_broker, audit, billing, id, logged, metric, patient, patients, register, start, system,
    until_metric, until_readiness,
};

testbed::on_each_broker!(versions_decide_and_not_clocks_that_are_an_hour_off);

/// In seconds.
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

fn versions_decide_and_not_clocks_that_are_an_hour_off(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 2, &[("RELAY_LEASE", "1s")]).await;
        let [ahead, behind] = [HOUR, -HOUR].map(|offset| {
            let clock = SteppedClock::new(system.directory()).unwrap();
            clock.set(offset).unwrap();
            clock
        });
        restart_with(&mut system, patients, &ahead).await;
        restart_with(&mut system, analytics, &behind).await;
        let acknowledged = Acknowledged::default();
        let (fast, right) = (system.patients[0].client(), system.patients[1].client());

        // By the clocks, a later change is an hour older than the one before.
        let jane = register(&fast, &acknowledged).await;
        let path = format!("/patients/{}", id(&jane));
        for (version, client) in [(2, &right), (3, &fast), (4, &right)] {
            let response = client.put(&path, &patient()).await.unwrap();
            assert_eq!(response.header("etag"), Some(format!("\"{version}\"").as_str()), "{}", response.text());
            acknowledged.stored(id(&jane), version);
        }
        audit(&system, &acknowledged).await;
        let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        let counts = ["activePatients", "created", "updated"].map(|name| summary[name].clone());
        assert_eq!(counts, [json!(1), json!(1), json!(3)]);
        let last: DateTime<Utc> = summary["lastEventTime"].as_str().unwrap().parse().unwrap();
        assert!(last - Utc::now() > TimeDelta::minutes(50), "the clock is off: {last}");

        // The wrong clock changes neither the length of a lease nor the age of a key.
        until("one of them has the lease", async || {
            metric(&system.patients[0], "relay_leases_held").await == Some(1.0)
                || metric(&system.patients[1], "relay_leases_held").await == Some(1.0)
        })
        .await;
        for survivor in [1, 0] {
            system.patients[1 - survivor].process().kill().await;
            register(&system.patients[survivor].client(), &acknowledged).await;
            let started = Instant::now();
            audit(&system, &acknowledged).await;
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
            system.restart(|system| &mut system.patients[1 - survivor]).await.unwrap();
        }
    });
}

mod on_kafka_alone {
    use super::*;

    /// Kafka rejects records with a timestamp more than an hour ahead (`message.timestamp.after.max.ms`).
    #[test]
    fn events_stay_in_the_outbox_while_the_clock_is_too_far_ahead_for_kafka() {
        runtime::block_on(2, async {
            let mut system = system(Kind::Kafka, 1, &[]).await;
            let clock = SteppedClock::new(system.directory()).unwrap();
            clock.set(HOUR + 100).unwrap();
            restart_with(&mut system, patients, &clock).await;
            let acknowledged = Acknowledged::default();
            for _ in 0..5 {
                register(&system.patient_client(), &acknowledged).await;
            }
            let rejections =
                "kafka_broker_errors_total{ended_by=\"clock\",error=\"InvalidTimestamp\",request=\"Produce\"}";
            until_metric(&system.patients[0], rejections, |rejections| rejections >= 3.0).await;
            until_readiness(&system.patients[0], "kafka", 200, "DEGRADED").await;
            let database = system.backing_services().patients_database.clone();
            let count = async |statement| sql::number(&database, statement).await.unwrap();
            assert_eq!(count("SELECT count(*) FROM outbox").await, 5);
            assert_eq!(count("SELECT count(*) FROM outbox_dead_letters").await, 0);
            let service = &system.patients[0];
            assert_eq!(logged(service, "events cannot be published; they wait in the outbox"), 1, "{}", service.log());
            for word in ["InvalidTimestamp", "the clock of this service", "message.timestamp.after.max.ms"] {
                assert!(service.log().contains(word), "{word}: {}", service.log());
            }

            clock.set(0).unwrap();
            audit(&system, &acknowledged).await;
            until_readiness(&system.patients[0], "kafka", 200, "UP").await;
            assert_eq!(count("SELECT count(*) FROM outbox_dead_letters").await, 0);
        });
    }
}

async fn restart_with(system: &mut System, which: fn(&mut System) -> &mut Service, clock: &SteppedClock) {
    let clock = clock.environment();
    let restarted = system.restart_with(which, |mut launch| {
        launch.environment.extend(clock);
        launch.start()
    });
    restarted.await.unwrap();
    which(system).until_ready().await.unwrap();
}

/// As when PostgreSQL moves to a host with another clock, or its clock is set.
#[test]
fn a_step_of_postgresqls_clock_delays_events_and_tasks_by_their_own_timeouts_alone() {
    runtime::block_on(2, async {
        let mut servers = DedicatedServers::start(any_broker()).await.unwrap();
        let mut system = start(servers.backing_services(), 2, &[]).await;
        let acknowledged = Acknowledged::default();
        let database = system.backing_services().patients_database.clone();
        for (number, offset) in [0, -HOUR, HOUR, -3 * DAY, 3 * DAY, 0].into_iter().enumerate() {
            // Kills both the holder of the lease, and the replicas that have claimed billing tasks.
            system.billing.process().kill().await;
            let tasks = async || sql::number(&database, "SELECT count(*) FROM billing_tasks").await.unwrap();
            for service in &system.patients {
                register(&service.client(), &acknowledged).await;
            }
            until("tasks were tried", async || {
                let tried = "SELECT count(*) FROM billing_tasks WHERE attempts > 0";
                sql::number(&database, tried).await.unwrap() > 0
            })
            .await;
            assert!(tasks().await >= 2);
            for number in 0..2 {
                system.patients[number].process().kill().await;
            }
            servers.clock.set(offset).unwrap();
            if number % 2 == 0 {
                servers.cluster.process().signal_all(Signal::KILL);
                servers.cluster.process().kill().await;
                servers.restart_postgres().await.unwrap();
            }
            system.restart(billing).await.unwrap();
            for number in 0..2 {
                system.restart(|system| &mut system.patients[number]).await.unwrap();
            }
            let started = Instant::now();
            register(&system.patient_client(), &acknowledged).await;
            let outbox = async || sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap();
            until("the events are published", async || outbox().await == 0).await;
            let published = started.elapsed();
            until("the tasks are done", async || tasks().await == 0).await;
            let done = started.elapsed();
            println!("{offset} s: events published after {published:.1?}, tasks done after {done:.1?}");
            // RELAY_LEASE, and the time for new replicas to start; the longest backoff of a task.
            assert!(published < Duration::from_secs(3 + 7), "{offset}: {published:?}");
            assert!(done < Duration::from_secs(31 + 9), "{offset}: {done:?}");
            audit(&system, &acknowledged).await;
        }
    });
}
