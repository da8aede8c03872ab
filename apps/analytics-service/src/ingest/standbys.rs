//! Standbys: copies of the partitions of other members of the consumer group.
//!
//! A standby reads a partition as its owner does, but never past what an owner has committed to the group, which the owner has in its
//! state. So whatever a standby has passed, an owner has stored, its dead letters too: the standby skips them, and a member that
//! becomes the owner forwards those that come after.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_listener::Event;
use runtime::timeout;

use crate::read_model::ReadModel;

/// Records of the own partitions that are not applied yet, above which copies have to wait.
const MAX_OWN_LAG: i64 = 50_000;
/// How often a copy that waits looks at the own partitions.
const LAG_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How far standbys may read.
#[derive(Debug, Default)]
pub(super) struct StandbyLimits {
    /// The offsets that owners have committed.
    committed: Mutex<BTreeMap<i32, i64>>,
    changed: Event,
}

impl StandbyLimits {
    /// Replaces the offsets that owners have committed.
    pub(super) fn set(&self, committed: BTreeMap<i32, i64>) {
        let mut known = self.lock();
        if *known != committed {
            *known = committed;
            self.changed.notify(usize::MAX);
        }
    }

    /// Waits until a partition may be read from `next` on, and the own partitions are not far behind: they are answered for. Returns the
    /// offset that is not to be reached.
    pub(super) async fn wait(&self, partition: i32, next: i64, read_model: &ReadModel) -> i64 {
        loop {
            let changed = self.changed.listen();
            let limit = self.lock().get(&partition).copied().filter(|limit| *limit > next);
            let Some(limit) = limit else {
                changed.await;
                continue;
            };
            let own_lag: i64 =
                read_model.read(|snapshot| snapshot.partitions.values().map(|position| position.lag()).sum());
            if own_lag <= MAX_OWN_LAG {
                return limit;
            }
            let _ = timeout(LAG_POLL_INTERVAL, changed).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        // Nothing panics while it is held.
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{block_on, poll_once};

    use super::*;
    use crate::read_model::Position;

    #[test]
    fn a_standby_waits_for_what_its_owner_has_committed() {
        block_on(async {
            let (limits, read_model) = (StandbyLimits::default(), ReadModel::new("t"));
            let mut waiting = Box::pin(limits.wait(1, 5, &read_model));
            assert_eq!(poll_once(&mut waiting).await, None, "nothing is committed");
            limits.set([(0, 9), (1, 5)].into());
            assert_eq!(poll_once(&mut waiting).await, None, "it has read that");
            limits.set([(0, 9), (1, 7)].into());
            assert_eq!(waiting.await, 7);
            assert_eq!(limits.wait(0, 0, &read_model).await, 9);
        });
    }

    #[test]
    fn a_standby_waits_while_the_own_partitions_are_far_behind() {
        block_on(async {
            let (limits, read_model) = (StandbyLimits::default(), ReadModel::new("t"));
            limits.set([(1, 7)].into());
            let own = |next| (0, Position { next, end: MAX_OWN_LAG + 1, halted: None });
            read_model.change(|snapshot| snapshot.assign([own(0)]));
            let mut waiting = Box::pin(limits.wait(1, 0, &read_model));
            assert_eq!(poll_once(&mut waiting).await, None);
            read_model.change(|snapshot| snapshot.assign([own(1)]));
            assert_eq!(waiting.await, 7);
        });
    }
}
