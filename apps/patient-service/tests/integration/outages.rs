//! A database that goes away and comes back, and a shutdown.

use std::time::{Duration, Instant};

use testbed::{
    Scratch, Signal,
    postgres::{Cluster, Durability},
};

use crate::harness::{Harness, patient, with_service};

#[test]
fn without_its_database_it_says_503_in_time_and_recovers_by_itself() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let service = Harness::start(&cluster.url("postgres"), &[]).await;
        service.register("Jane Doe").await;

        cluster.process().signal_all(Signal::STOP);
        for path in ["/patients", "/patients/00000000-0000-7000-8000-000000000000"] {
            let started = Instant::now();
            let answer = service.get(path).await;
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("2")), "{}", answer.text());
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
        assert_eq!(service.post("/patients", &patient("John Doe")).await.status, 503);
        let readiness = service.get("/actuator/health/readiness").await;
        assert_eq!((readiness.status, readiness.json()["status"].as_str()), (503, Some("DOWN")));
        assert_eq!(service.get("/actuator/health/liveness").await.status, 200);
        cluster.process().signal_all(Signal::CONT);
        service.until("it is thawed", async || service.get("/patients").await.status == 200).await;

        cluster.process().signal_all(Signal::KILL);
        cluster.process().kill().await;
        assert_eq!(service.get("/patients").await.status, 503);
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        service.until("it is back", async || service.get("/patients").await.status == 200).await;
        assert_eq!(service.get("/patients?search=jane").await.json().as_array().unwrap().len(), 1);
        service.stop().await;
    });
}

#[test]
fn without_broker_and_billing_it_is_degraded_and_ready() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        let degraded = async || {
            let readiness = service.get("/actuator/health/readiness").await;
            let body = readiness.json();
            readiness.status == 200
                && body["status"] == "DEGRADED"
                && body["components"]["kafka"]["status"] == "DEGRADED"
                && body["components"]["database"]["status"] == "UP"
        };
        service.until("the missing broker is told", degraded).await;
        let pending = async || service.get("/metrics").await.text().contains("outbox_pending{shard=\"0\"} 1\n");
        service.until("the outbox is told", pending).await;
    });
}
