//! Counting of the partitions that the settings assign to this instance.

use std::{collections::BTreeSet, mem};

use smol::future::or;

use super::{
    Fetchers, Ingest, PARTITION_POLL_INTERVAL, fetcher, gate::Gate, group_progress, known_topic, pauses::Pauses,
    reports::report_moved_keys,
};
use crate::{
    settings::Assignment,
    state::{SavedState, StateError},
};

/// Reads and applies from the saved positions on, until the state fails.
pub(super) async fn run(ingest: &Ingest, saved: SavedState, pauses: &mut Pauses) -> StateError {
    let count = ingest.wait_for_partition_count(known_topic(&saved)).await;
    let assigned = assigned(ingest, count);
    let mut saved = match ingest.prepare(saved, &assigned, count).await {
        Ok(saved) => saved,
        Err(error) => return error,
    };
    ingest.read_model.change(|snapshot| snapshot.load(mem::take(&mut saved.counts)));
    ingest.assign_kafka_error(&assigned);
    let (shared, queue) = ingest.queue(&saved, 0);
    let mut fetchers = Fetchers::new();
    ingest.start_fetchers(assigned, &saved, &shared, &mut fetchers);
    let watch = watch_partitions(ingest, count, &saved, &shared, &mut fetchers);
    let commit_progress = async {
        if let Some(group) = &ingest.settings.group.0 {
            group_progress::commit(ingest, group).await;
        }
        std::future::pending().await
    };
    let gate = Gate::open();
    let error = or(or(ingest.apply_all(&queue, &gate, pauses), watch), commit_progress).await;
    for (_, fetcher) in fetchers {
        fetcher.cancel().await;
    }
    // The gate stays open, so it ended by an error alone.
    error.err().unwrap_or_else(|| unreachable!("the gate is never closed"))
}

/// Polls for partitions that are added to the topic, and starts to fetch those of this instance.
async fn watch_partitions(
    ingest: &Ingest,
    mut count: i32,
    saved: &SavedState,
    shared: &fetcher::Shared,
    fetchers: &mut Fetchers,
) -> Result<(), StateError> {
    loop {
        smol::Timer::after(PARTITION_POLL_INTERVAL).await;
        // The fetchers report an unavailable broker.
        let Ok(now) = ingest.partition_count(known_topic(saved)).await else { continue };
        if now <= count {
            continue;
        }
        let added: BTreeSet<_> = (count..now).collect();
        count = now;
        let ours = assigned(ingest, count);
        let new: BTreeSet<_> = ours.iter().copied().filter(|partition| !fetchers.contains_key(partition)).collect();
        tracing::warn!(
            ?added,
            reading = ?new,
            "partitions were added to the topic: those of this instance are read from their beginning"
        );
        if ingest.settings.assignment != Assignment::All {
            report_moved_keys();
        }
        ingest.start_fetchers(new, saved, shared, fetchers);
        if let Assignment::Listed(_) = ingest.settings.assignment {
            let unread: Vec<_> = added.difference(&ours).copied().collect();
            if !unread.is_empty() {
                tracing::warn!(
                    ?unread,
                    "partitions were added that PARTITIONS does not name: another instance has to read them"
                );
                ingest.read_model.change(|snapshot| snapshot.unassigned.extend(unread));
            }
        }
    }
}

/// The partitions of this instance.
fn assigned(ingest: &Ingest, count: i32) -> BTreeSet<i32> {
    ingest.settings.assignment.partitions(count).into_iter().collect()
}
