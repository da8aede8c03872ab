//! The progress that the consumer group shows.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use codec::event::EventKind::Created;
use kafka::testing::committed_offsets;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, record, with_topic};

testbed::on_each_broker!(progress_is_committed_to_the_group_by_all_instances);

async fn until_committed(topic: &Harness, group: &str, expected: [i64; 3]) {
    let expected: BTreeMap<i32, i64> = (0..).zip(expected).collect();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let committed = committed_offsets(&topic.kafka, group, &topic.topic, PARTITIONS).await;
        if committed.as_ref().is_ok_and(|committed| *committed == expected) {
            return;
        }
        assert!(Instant::now() < end, "{committed:?} instead of {expected:?}");
        smol::Timer::after(Duration::from_millis(100)).await;
    }
}

fn progress_is_committed_to_the_group_by_all_instances(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let group = format!("group-{:016x}", fastrand::u64(..));
        let other_state = topic.state.with_extension("other");
        let group_setting = ("KAFKA_CONSUMER_GROUP", group.as_str());
        let first = topic.start(&[group_setting, ("PARTITIONS", "0,2")]).await;
        let second =
            topic.start(&[group_setting, ("PARTITIONS", "1"), ("STATE_FILE", other_state.to_str().unwrap())]).await;
        for (partition, records) in [(0, 3), (1, 2)] {
            topic.send(partition, (0..records).map(|_| record(Uuid::now_v7(), Created, 1)).collect()).await;
        }
        // A partition without records has no lag, which has to be shown too.
        until_committed(&topic, &group, [3, 2, 0]).await;
        topic.send(2, vec![record(Uuid::now_v7(), Created, 1)]).await;
        until_committed(&topic, &group, [3, 2, 1]).await;
        first.stop().await;
        second.stop().await;
    });
}
