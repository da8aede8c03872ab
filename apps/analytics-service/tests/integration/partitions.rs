//! Partitions that are added to the topic while it is read.

use std::time::{Duration, Instant};

use codec::event::EventKind::Created;
use kafka::testing::add_partitions;
use serde_json::{Value as Json, json};
use testbed::{broker, until};
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, record, with_topic};

// Nisshi cannot add partitions.
testbed::on_each_kafka!(
    partitions_that_are_added_are_read,
    each_share_reads_its_own_added_partitions,
    added_partitions_that_are_not_listed_are_reported,
);

/// Twice the partitions.
const AFTER: i32 = 2 * PARTITIONS;

async fn add(topic: &Harness) {
    let kafka = kafka::Settings { deadline: Duration::from_secs(30), ..topic.kafka.clone() };
    add_partitions(&kafka, &topic.topic, AFTER).await.unwrap();
    // The leaders of the new partitions are elected a little later.
    until("the partitions have leaders", async || {
        let leaders = kafka::leaders(&kafka, &topic.topic).await;
        leaders.is_ok_and(|leaders| leaders.iter().flatten().count() == AFTER as usize)
    })
    .await;
}

/// Publishes the registration of one patient to each of these partitions.
pub(crate) async fn register(topic: &mut Harness, partitions: std::ops::Range<i32>) {
    for partition in partitions {
        topic.send(partition, vec![record(Uuid::now_v7(), Created, 1)]).await;
    }
}

pub(crate) fn read(summary: &Json) -> Vec<i64> {
    summary["partitions"].as_array().unwrap().iter().map(|p| p["partition"].as_i64().unwrap()).collect()
}

fn partitions_that_are_added_are_read(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        register(&mut topic, 0..PARTITIONS).await;
        let service = topic.start(&[]).await;
        service.until_applied(3).await;
        add(&topic).await;
        register(&mut topic, 0..AFTER).await;
        let summary = service.until_applied(9).await;
        assert_eq!((read(&summary), &summary["created"]), ((0..6).collect(), &json!(9)));
        service.stop().await;
        let again = topic.start(&[]).await;
        assert_eq!(again.until_applied(9).await["created"], 9);
        again.stop().await;
    });
}

fn each_share_reads_its_own_added_partitions(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let service = topic.start(&[("PARTITIONS", "1/2")]).await;
        service.until("it reads its own", |summary| read(summary) == [1]).await;
        add(&topic).await;
        register(&mut topic, 0..AFTER).await;
        let summary = service.until_applied(3).await;
        assert_eq!((read(&summary), &summary["created"]), (vec![1, 3, 5], &json!(3)));
        service.stop().await;
    });
}

fn added_partitions_that_are_not_listed_are_reported(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let service = topic.start(&[("PARTITIONS", "0,1,4")]).await;
        service.until("it reads its own", |summary| read(summary) == [0, 1, 4]).await;
        add(&topic).await;
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let readiness = service.get("/actuator/health/readiness").await;
            let ingest = readiness.json()["components"]["ingest"].to_string();
            if readiness.status == 200 && ingest.contains("DEGRADED") && ingest.contains("{3, 5}") {
                break;
            }
            assert!(Instant::now() < end, "{ingest}");
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        service.stop().await;
    });
}
