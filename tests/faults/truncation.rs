//! The broker loses the tail of a log, which analytics has counted.

use kafka::Consumer;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use testbed::{
    Signal,
    audit::{Acknowledged, Auditor},
    broker::Kind,
    system::{BackingServices, System},
    until,
};

use crate::support::{
    TIMEOUT, analytics, audit, logged, own_broker, register_many, start, until_metric, until_readiness,
};

/// Nisshi has no leader epochs, and its log is a database.
mod on_kafka_alone {
    use super::*;

    #[test]
    fn a_log_that_was_truncated_and_refilled_halts_analytics_until_it_may_continue() {
        truncate_and_refill(Kind::Kafka);
    }
}

/// Its controller may give the only broker its previous epoch again. Then the timestamp of the last record tells.
mod on_older_kafka_alone {
    use super::*;

    #[test]
    fn a_log_that_was_truncated_and_refilled_halts_analytics_until_it_may_continue() {
        truncate_and_refill(Kind::OlderKafka);
    }
}

fn truncate_and_refill(kind: Kind) {
    runtime::block_on(2, async {
        let (scratch, mut broker) = own_broker(kind, "").await;
        let backing_services = BackingServices::on_broker(broker.address()).await;
        let settings = [("KAFKA_DEADLINE", "2s"), ("KAFKA_TOPIC_PARTITIONS", "1")];
        let mut system = start(backing_services, 1, &settings).await;
        let (client, acknowledged) = (system.patient_client(), Acknowledged::default());
        // Each is a batch of its own.
        for _ in 0..10 {
            register_many(&client, &acknowledged, 1).await;
            audit(&system, &acknowledged).await;
        }

        // It is noticed although the log is as long as before when analytics reads again.
        system.analytics.process().signal(Signal::STOP);
        broker.process().kill().await;
        broker.truncate_log("patient", 0, 6).unwrap();
        register_many(&client, &acknowledged, 20).await;
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        let mut consumer = Consumer::new(Auditor::of(&system).kafka, "patient", 0);
        until("the log is refilled", async || consumer.offsets().await.is_ok_and(|offsets| offsets.end >= 26)).await;
        system.analytics.process().signal(Signal::CONT);
        until_halted(&system).await;

        // So it is after a restart, with nothing to compare but the leader epoch, as after the marker of a transaction.
        system.analytics.stop().await;
        if kind == Kind::Kafka {
            forget_timestamps(&system).await;
        }
        system.restart_without_waiting(analytics).unwrap();
        until_halted(&system).await;

        // The documented recovery.
        let restarted = system.restart_with(analytics, |mut launch| {
            launch.environment.push(("ON_OFFSET_LOSS".to_owned(), "continue".to_owned()));
            launch.start()
        });
        restarted.await.unwrap();
        system.until_summary(TIMEOUT, |summary| summary["activePatients"] == 30).await.unwrap();
        until_readiness(&system.analytics, "ingest", 200, "UP").await;
        let resumed = ["where the log was truncated", "at the earliest offset"]
            .map(|place| logged(&system.analytics, &format!("records lost; resuming {place}")));
        assert!(resumed == [1, 0] || kind == Kind::OlderKafka && resumed == [0, 1], "{resumed:?}");
    });
}

async fn until_halted(system: &System) {
    until_readiness(&system.analytics, "ingest", 503, "DOWN").await;
    until_metric(&system.analytics, "ingest_halted{partition=\"0\"}", |value| value == 1.0).await;
    let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
    let why = summary["partitions"][0]["halted"].as_str().unwrap().to_owned();
    assert_eq!(why, "the log was truncated: it lost records before offset 10 that were read");
    assert_eq!(summary["activePatients"], 10, "nothing is counted");
}

async fn forget_timestamps(system: &System) {
    let options = SqliteConnectOptions::new().filename(system.state_file());
    let mut state = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE positions SET last_timestamp = NULL").execute(&mut state).await.unwrap();
    state.close().await.unwrap();
}
