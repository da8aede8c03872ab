//! Health, metrics, and the order of startup.

use std::time::{Duration, Instant};

use testbed::{
    broker::Kind,
    system::{DedicatedServers, System},
    until,
};

use crate::{
    fresh_system::system,
    support::{TIMEOUT, path, patient, register},
};

testbed::on_each_broker!(every_service_shows_its_health_and_metrics, services_start_before_their_database_and_broker);

fn every_service_shows_its_health_and_metrics(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, &[]).await;
        let client = system.patient_client();
        let jane = register(&client, "Jane Doe").await;
        client.put(&path(&jane), &patient("Jane Smith")).await.unwrap();
        system.until_summary(TIMEOUT, |summary| summary["updated"] == 1).await.unwrap();
        let expected: [(_, &[&str]); 3] = [
            (
                &system.patients[0],
                &[
                    "http_requests_total{method=\"POST\",route=\"/patients\",status=\"201\"} 1",
                    "http_request_duration_seconds_bucket{method=\"PUT\",route=\"/patients/:id\",le=\"",
                    "http_requests_in_flight 0",
                    "outbox_pending{shard=\"0\"} 0",
                    "outbox_oldest_age_seconds{shard=\"0\"} 0",
                    "relay_published_total 2",
                    "grpc_client_calls_total{method=\"CreateBillingAccount\",outcome=\"ok\"} 1",
                    "db_pool_connections{pool=\"requests\",state=\"",
                ],
            ),
            (
                &system.billing,
                &[
                    "grpc_server_calls_total{code=\"ok\",method=\"BillingService/CreateBillingAccount\"} 1",
                    "db_pool_connections{pool=\"requests\",state=\"",
                ],
            ),
            (
                &system.analytics,
                &[
                    "events_applied_total{kind=\"PATIENT_CREATED\"} 1",
                    "events_applied_total{kind=\"PATIENT_UPDATED\"} 1",
                    "events_duplicate_total 0",
                    "events_dead_total 0",
                    "kafka_consumer_lag{partition=\"0\",topic=\"",
                ],
            ),
        ];
        let described = include_str!("../../docs/observability.md");
        for (service, lines) in expected {
            let client = service.client();
            for health in ["/actuator/health", "/actuator/health/liveness", "/actuator/health/readiness"] {
                // On a busy machine a call to the broker may have been too slow a moment ago.
                until(health, async || {
                    let response = client.get(health).await.unwrap();
                    (response.status, response.json()["status"].as_str()) == (200, Some("UP"))
                })
                .await;
            }
            for line in lines {
                until(line, async || {
                    client.get("/metrics").await.unwrap().text().lines().any(|found| found.starts_with(line))
                })
                .await;
            }
            let metrics = client.get("/metrics").await.unwrap().text();
            for name in metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()) {
                assert!(described.contains(&format!("`{name}")), "{name} is not in docs/observability.md");
            }
            assert_eq!(client.get("/nothing").await.unwrap().header("content-type"), Some("application/problem+json"));
        }
    });
}

fn services_start_before_their_database_and_broker(kind: Kind) {
    runtime::block_on(2, async {
        let mut servers = DedicatedServers::start(kind).await.unwrap();
        servers.broker.process().kill().await;
        servers.cluster.stop().await;
        let starting = System::start(servers.backing_services(), 1, &[]);
        let started = Instant::now();
        let restart_later = async {
            smol::Timer::after(Duration::from_secs(2)).await;
            servers.restart_postgres().await.unwrap();
        };
        // The services are ready as soon as their database is, and do not wait for the broker.
        let (system, ()) = smol::future::zip(starting, restart_later).await;
        let system = system.unwrap();
        assert!(started.elapsed() > Duration::from_secs(2));
        let client = system.patient_client();
        let stored = Instant::now();
        register(&client, "Jane Doe").await;
        assert!(stored.elapsed() < Duration::from_secs(3), "no request waits for the broker");
        assert_outages_are_logged_once(&system.patients[0].log());
        servers.restart_broker().await.unwrap();
        system.until_summary(TIMEOUT, |summary| summary["activePatients"] == 1).await.unwrap();
    });
}

/// A line for each reason of an outage of the database, and not for each attempt: while a server starts, it first refuses
/// connections and then says that it is starting.
fn assert_outages_are_logged_once(log: &str) {
    // The last line may be half written.
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut reasons = Vec::new();
    for line in lines {
        match line["message"].as_str() {
            Some("the database is unavailable") => reasons.push(line["error"].to_string()),
            Some("the database is available again") => reasons.push("none".to_owned()),
            _ => {}
        }
    }
    assert!(reasons.iter().any(|reason| reason != "none"), "{log}");
    assert!(reasons.windows(2).all(|pair| pair[0] != pair[1]), "logged again: {reasons:?}");
}
