//! The instances of analytics-service, and the partitions of each: the members of the consumer group, or those of
//! `ANALYTICS_MEMBERS`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

/// Who answers for which partitions, by the group's current assignment or by the settings. Clones share their data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    current: Arc<Mutex<Option<Vec<Member>>>>,
    changed: Arc<Event>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Host and port of its HTTP server, as it advertises them.
    pub(crate) address: String,
    /// The partitions that it counts; empty if the settings list it.
    pub(crate) partitions: Vec<i32>,
    /// Whether it is this instance.
    pub(crate) is_self: bool,
}

impl Members {
    /// The members; none without a group and without `ANALYTICS_MEMBERS`, where this instance answers for itself alone. With a group
    /// it is empty until the first assignment.
    pub(crate) fn current(&self) -> Option<Vec<Member>> {
        self.lock().clone()
    }

    /// Replaces the members, and notifies [`next_change`](Self::next_change).
    pub(crate) fn set(&self, members: Option<Vec<Member>>) {
        *self.lock() = members;
        self.changed.notify(usize::MAX);
    }

    /// Waits for the next change after this call.
    pub(crate) fn next_change(&self) -> EventListener {
        self.changed.listen()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Member>>> {
        // Nothing panics while it is held.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn clones_share_the_members_and_hear_of_changes() {
        block_on(async {
            let members = Members::default();
            assert_eq!(members.current(), None, "no group");
            let mut changed = members.clone().next_change();
            assert!(poll_once(&mut changed).await.is_none());
            let member = Member { address: "a:1".to_owned(), partitions: vec![0], is_self: true };
            members.clone().set(Some(vec![member.clone()]));
            assert!(poll_once(&mut changed).await.is_some());
            assert_eq!(members.current(), Some(vec![member]));
        });
    }
}
