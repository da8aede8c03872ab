//! Commits the progress of ingest to the consumer group, for programs that show its lag or scale by it. Ingest resumes at the
//! offsets in the state. Those of the group are read by standbys alone, which follow what the owner of a partition has committed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kafka::GroupProgress;

use super::Ingest;

/// How often progress is committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Progress that is unchanged is committed so often: brokers forget the offsets of a group without members after
/// `offsets.retention.minutes`, by default a week.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Commits the positions of the read model until it is dropped.
pub(super) async fn commit(ingest: &Ingest, group: &str) {
    let mut progress = GroupProgress::new(ingest.settings.kafka.clone(), group, &ingest.settings.topic);
    let mut committed: Option<(BTreeMap<i32, i64>, Instant)> = None;
    let mut failures = 0;
    loop {
        smol::Timer::after(COMMIT_INTERVAL).await;
        let next: BTreeMap<i32, i64> = ingest.read_model.read(|snapshot| {
            snapshot.partitions.iter().map(|(partition, position)| (*partition, position.next)).collect()
        });
        let is_repeated =
            |(before, at): &(BTreeMap<i32, i64>, Instant)| *before == next && at.elapsed() < REPEAT_INTERVAL;
        if next.is_empty() || committed.as_ref().is_some_and(is_repeated) {
            continue;
        }
        let result = progress.commit(&next).await;
        ingest.report_progress(&mut failures, result.as_ref().err());
        if result.is_ok() {
            committed = Some((next, Instant::now()));
        }
    }
}
