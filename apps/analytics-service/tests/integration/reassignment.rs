//! Partitions that leave an instance and return, and patients that move to another partition.

use codec::event::EventKind::{Created, Deleted, Updated};
use serde_json::{Value as Json, json};
use testbed::broker;
use uuid::Uuid;

use crate::{
    harness::{PARTITIONS, record, with_topic},
    partitions::{read, register},
};

testbed::on_each_broker!(
    a_partition_that_returns_continues_at_its_own_offset_with_its_own_counts,
    a_patient_whose_events_come_on_another_partition_is_counted_once,
);

fn a_partition_that_returns_continues_at_its_own_offset_with_its_own_counts(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        for (partition, patients) in [(0, 2), (1, 3), (2, 4)] {
            topic.send(partition, (0..patients).map(|_| record(Uuid::now_v7(), Created, 1)).collect()).await;
        }
        let all = topic.start(&[]).await;
        all.until_applied(9).await;
        all.stop().await;

        let share = topic.start(&[("PARTITIONS", "0/2")]).await;
        let summary = share.until_applied(6).await;
        assert_eq!((read(&summary), &summary["created"]), (vec![0, 2], &json!(6)));
        register(&mut topic, 0..PARTITIONS).await;
        assert_eq!(share.until_applied(8).await["created"], 8);
        share.stop().await;

        let again = topic.start(&[]).await;
        let summary = again.until_applied(12).await;
        assert_eq!((&summary["activePatients"], &summary["created"]), (&json!(12), &json!(12)));
        again.stop().await;
    });
}

fn a_patient_whose_events_come_on_another_partition_is_counted_once(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let patient = Uuid::now_v7();
        topic.send(0, vec![record(patient, Created, 1), record(patient, Updated, 2)]).await;
        let service = topic.start(&[]).await;
        assert_eq!(service.until_applied(2).await["updated"], 1);
        // As after partitions were added to the topic.
        topic.send(1, vec![record(patient, Updated, 3), record(patient, Deleted, 4)]).await;
        let counts = |summary: &Json| ["created", "updated", "deleted"].map(|name| summary[name].as_i64().unwrap());
        assert_eq!(counts(&service.until_applied(4).await), [1, 2, 1]);
        service.stop().await;
        for (partition, records, expected) in [("0", 2, [0, 0, 0]), ("1", 2, [1, 2, 1]), ("0,1,2", 4, [1, 2, 1])] {
            let service = topic.start(&[("PARTITIONS", partition)]).await;
            assert_eq!(counts(&service.until_applied(records).await), expected, "partitions {partition}");
            service.stop().await;
        }
    });
}
