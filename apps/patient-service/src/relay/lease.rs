use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::outbox::Outbox;

/// The right to send a shard's events, for a while.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) outbox: Outbox,
    pub(super) shard: i32,
    pub(super) holder: Uuid,
    pub(super) duration: Duration,
    /// Until when the lease is ours without doubt, by our own monotonic clock; none if it is not.
    pub(super) until: Arc<Mutex<Option<Instant>>>,
}

impl Lease {
    /// Takes or keeps it; false if another holder has it.
    pub(super) async fn hold(&self) -> Result<bool, postgres::Error> {
        // From before the question: the database's period begins later, so that ours ends first.
        let asked = Instant::now();
        let held = self.outbox.hold_lease(self.shard, self.holder, self.duration).await?;
        self.set(held.then(|| asked + self.duration));
        Ok(held)
    }

    pub(super) fn is_ours(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    pub(super) async fn release(&self) {
        self.set(None);
        // A lease that cannot be given back runs out by itself.
        let _ = self.outbox.release_lease(self.shard, self.holder).await;
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}
