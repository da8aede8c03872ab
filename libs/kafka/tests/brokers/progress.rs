//! Offsets that are committed to a consumer group.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kafka::{Error, GroupProgress, testing::committed_offsets};
use testbed::broker::Kind;

use crate::topic;

testbed::on_each_version!(progress_is_committed_to_a_group);

/// Commits, and waits for the coordinator.
pub(crate) async fn commit(progress: &mut GroupProgress, next: &BTreeMap<i32, i64>) {
    let end = Instant::now() + Duration::from_secs(30);
    // The first request makes Kafka create the topic of its coordinators.
    while let Err(error) = progress.commit(next).await {
        assert!(matches!(error, Error::Unavailable(_)) && Instant::now() < end, "{error}");
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

fn progress_is_committed_to_a_group(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let (topic, group) = (topic(&settings, 3).await, format!("group-{:016x}", fastrand::u64(..)));
        let mut progress = GroupProgress::new(settings.clone(), &group, &topic);
        for next in [BTreeMap::from([(0, 5), (2, 0)]), BTreeMap::from([(0, 7), (1, 1), (2, 0)])] {
            commit(&mut progress, &next).await;
            assert_eq!(committed_offsets(&settings, &group, &topic, 3).await.unwrap(), next);
        }
    });
}
