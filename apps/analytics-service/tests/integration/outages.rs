//! An unavailable broker or state.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use codec::event::EventKind::Created;
use serde_json::json;
use testbed::{
    Scratch, Signal,
    broker::{self, Broker},
    until,
};
use uuid::Uuid;

use crate::harness::{Harness, Running, with_topic};

testbed::on_each_broker!(
    a_broker_that_is_unavailable_frozen_or_restarted_delays_and_loses_nothing,
    a_state_that_cannot_be_opened_is_reported_and_opened_later,
    a_state_that_can_be_opened_and_not_written_stays_down,
    a_second_service_on_the_same_state_counts_nothing,
);

fn a_broker_that_is_unavailable_frozen_or_restarted_delays_and_loses_nothing(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let scratch = Scratch::new().unwrap();
        let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await.unwrap();
        scratch.guard(broker.process()).unwrap();
        let mut topic = Harness::new(broker.settings("test")).await;
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        broker.process().kill().await;

        let service = topic.start(&[]).await;
        until_its_kafka_is_degraded(&service).await;
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        service.until_applied(1).await;

        broker.process().signal(Signal::STOP);
        until_its_kafka_is_degraded(&service).await;
        broker.process().signal(Signal::CONT);
        let name = topic.topic.clone();
        topic.publish_to(&name, &[(Uuid::now_v7(), Created, 1)]).await;
        service.until_applied(2).await;

        broker.process().kill().await;
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        topic.publish_to(&name, &[(Uuid::now_v7(), Created, 1)]).await;
        assert_eq!(service.until_applied(3).await["activePatients"], 3);
        service.stop().await;
    });
}

async fn until_its_kafka_is_degraded(service: &Running) {
    until("the unavailable broker is reported", async || {
        let readiness = service.get("/actuator/health/readiness").await;
        readiness.status == 200 && readiness.json()["components"]["kafka"]["status"] == "DEGRADED"
    })
    .await;
}

async fn until_its_state_is_down(service: &Running) {
    until("the state is down", async || {
        let readiness = service.get("/actuator/health/readiness").await;
        readiness.status == 503 && readiness.json()["components"]["state"]["status"] == "DOWN"
    })
    .await;
}

fn a_state_that_cannot_be_opened_is_reported_and_opened_later(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        // A file in place of the directory: root may write into any directory.
        let directory = topic.scratch().path().join("state");
        fs::write(&directory, "").unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o400)).unwrap();
        let file = directory.join("analytics.sqlite");
        let service = topic.start(&[("STATE_FILE", file.to_str().unwrap())]).await;
        until_its_state_is_down(&service).await;
        fs::remove_file(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        assert_eq!(service.until_applied(1).await["activePatients"], 1);
        until("it is ready", async || service.get("/actuator/health/readiness").await.status == 200).await;
        service.stop().await;
    });
}

/// As on a full disk: whoever takes an open file for the end of the outage reports it, and the next one, at each attempt.
fn a_state_that_can_be_opened_and_not_written_stays_down(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        service.until_applied(1).await;
        service.stop().await;
        let fail = "CREATE TRIGGER fail BEFORE INSERT ON positions
            BEGIN SELECT raise(ABORT, 'as the test wants it'); END";
        topic.execute_in_state(fail).await;
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        let service = topic.start(&[]).await;
        until_its_state_is_down(&service).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            let readiness = service.get("/actuator/health/readiness").await;
            assert_eq!(readiness.json()["components"]["state"]["status"], "DOWN", "after {:?}", begun.elapsed());
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        assert_eq!(service.summary().await["created"], 1);
        service.stop().await;

        topic.execute_in_state("DROP TRIGGER fail").await;
        let service = topic.start(&[]).await;
        service.until_applied(2).await;
        service.stop().await;
    });
}

fn a_second_service_on_the_same_state_counts_nothing(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        let first = topic.start(&[]).await;
        first.until_applied(1).await;
        let second = topic.start(&[]).await;
        until("the second service is not ready", async || second.get("/actuator/health/readiness").await.status == 503)
            .await;
        topic.publish(&[(Uuid::now_v7(), Created, 1)]).await;
        assert_eq!(first.until_applied(2).await["created"], json!(2));
        first.stop().await;
        assert_eq!(second.until_applied(2).await["created"], json!(2), "it takes over");
        second.stop().await;
    });
}
