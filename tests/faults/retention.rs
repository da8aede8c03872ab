//! The broker deletes records before analytics has read them.

use std::{collections::BTreeMap, path::Path};

use chrono::Utc;
use kafka::{Consumer, Producer, Record};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use testbed::{
    audit::{Acknowledged, Auditor},
    broker::Kind,
    system::BackingServices,
    until,
};

use crate::support::{
    TIMEOUT, analytics, audit, logged, metric, own_broker, register_many, start, until_metric, until_readiness,
};

testbed::on_each_broker!(records_deleted_unread_halt_analytics_until_it_may_continue);

/// Settings with which Kafka deletes a segment, which one record fills, as soon as there is another.
const FAST_RETENTION: &str = "log.segment.bytes=1048576\n\
    log.retention.bytes=1048576\n\
    log.retention.check.interval.ms=200\n\
    log.segment.delete.delay.ms=0\n\
    log.initial.task.delay.ms=100";
const PARTITION: i32 = 1;

fn records_deleted_unread_halt_analytics_until_it_may_continue(kind: Kind) {
    runtime::block_on(2, async {
        let (scratch, mut broker) = own_broker(kind, FAST_RETENTION).await;
        let backing_services = BackingServices::on_broker(broker.address()).await;
        // Of a compacted topic, retention deletes nothing.
        let mut system = start(backing_services, 1, &[("KAFKA_TOPIC_CLEANUP_POLICY", "delete")]).await;
        let acknowledged = Acknowledged::default();
        register_many(&system.patient_client(), &acknowledged, 20).await;
        audit(&system, &acknowledged).await;
        system.analytics.stop().await;

        let Auditor { kafka, topic, .. } = Auditor::of(&system);
        let mut consumer = Consumer::new(kafka.clone(), &topic, PARTITION);
        let mut producer = Producer::new(kafka, &topic);
        let unread = consumer.offsets().await.unwrap().end;
        for _ in 0..6 {
            send(&mut producer, PARTITION, 900_000).await.unwrap();
        }
        if kind == Kind::Nisshi {
            broker.stop().await;
            expire_records_at_start(&scratch.path().join("broker/broker.db")).await;
            broker.restart().await.unwrap();
            scratch.guard(broker.process()).unwrap();
        }
        // Otherwise Nisshi would restart the offsets of a partition without records at 0.
        for partition in 0..3 {
            until("a record is accepted", async || send(&mut producer, partition, 100).await.is_ok()).await;
        }
        until("records are deleted", async || consumer.offsets().await.is_ok_and(|offsets| offsets.start > unread))
            .await;

        system.restart_without_waiting(analytics).unwrap();
        until_readiness(&system.analytics, "ingest", 503, "DOWN").await;
        let halted = format!("ingest_halted{{partition=\"{PARTITION}\"}}");
        until_metric(&system.analytics, &halted, |value| value == 1.0).await;
        let message = "partition halted: delete the state to count again what there is, or set ON_OFFSET_LOSS=continue";
        assert_eq!(logged(&system.analytics, message), 1, "{}", system.analytics.log());
        assert!(system.analytics.log().contains("records were deleted before they were read"));
        let summary = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!(summary["activePatients"], 20, "nothing was reset silently");

        // The documented recovery.
        let before = consumer.offsets().await.unwrap();
        let restarted = system.restart_with(analytics, |mut launch| {
            launch.environment.push(("ON_OFFSET_LOSS".to_owned(), "continue".to_owned()));
            launch.start()
        });
        restarted.await.unwrap();
        let at_the_end = |summary: &serde_json::Value| {
            summary["partitions"][PARTITION as usize]["appliedOffset"].as_i64() == Some(before.end - 1)
        };
        let summary = system.until_summary(TIMEOUT, at_the_end).await.unwrap();
        assert_eq!(summary["activePatients"], 20, "the remaining records are not events");
        // The broker may have deleted further records meanwhile.
        let after = consumer.offsets().await.unwrap();
        let lost = metric(&system.analytics, "records_lost_total").await.unwrap() as i64;
        assert!((before.start..=after.start).contains(&(unread + lost)), "{lost}, {unread}, {before:?}, {after:?}");
        until_readiness(&system.analytics, "ingest", 200, "UP").await;
    });
}

/// Sends an undecodable record.
async fn send(producer: &mut Producer, partition: i32, bytes: usize) -> Result<(), kafka::Error> {
    let record = Record { key: None, value: Some(vec![0xff; bytes]), headers: Vec::new(), timestamp: Utc::now() };
    let mut sent = producer.send(BTreeMap::from([(partition, vec![record])])).await;
    sent.remove(&partition).unwrap().map(drop)
}

/// Sets `retention.ms` in Nisshi's database, which our client cannot do. Nisshi deletes old records when it starts, and then
/// every ten minutes.
async fn expire_records_at_start(file: &Path) {
    let options = SqliteConnectOptions::new().filename(file);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let configure = "INSERT INTO topic_configuration (topic, name, value)
        SELECT id, 'cleanup.policy', 'delete' FROM topic UNION ALL SELECT id, 'retention.ms', '1' FROM topic";
    sqlx::query(configure).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
