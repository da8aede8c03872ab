//! How requests of this instance notify its relays of events to publish.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use runtime::Notify;

use crate::outbox::OutboxRow;

/// Events that a shard's relay has not taken yet, at most. Further ones are read from the outbox.
const MAX_HANDED_OVER: usize = 1000;

/// Wakes the relays of this instance when there is something to publish, and hands them the events that need not be read.
#[derive(Clone, Debug)]
pub struct RelayWaker(Arc<[Shard]>);

#[derive(Debug, Default)]
struct Shard {
    notify: Notify,
    handed_over: Mutex<HandedOver>,
}

/// What requests have handed to a relay since its last step.
#[derive(Debug, Default)]
pub(super) struct HandedOver {
    /// Committed events, each the first of its patient.
    pub(super) events: Vec<OutboxRow>,
    /// Whether requests have written other events, which have to be read from the outbox.
    pub(super) has_unread: bool,
}

impl RelayWaker {
    /// For the relays of this many shards.
    pub fn new(shards: i32) -> Self {
        Self((0..shards).map(|_| Shard::default()).collect())
    }

    /// Wakes the relays of all shards to read the outbox. Never waits.
    pub fn notify(&self) {
        for shard in self.0.iter() {
            shard.lock().has_unread = true;
            shard.notify.notify();
        }
    }

    /// Hands the committed first event of a patient to the relay of its shard. No event has to be sent before it, so the
    /// relay need not read the outbox. The event may be dropped: the outbox has it too. Never waits.
    pub fn hand_over(&self, event: OutboxRow) {
        // Hashes are not negative.
        let shard = &self.0[event.key_hash as usize % self.0.len()];
        {
            let mut handed_over = shard.lock();
            if handed_over.events.len() < MAX_HANDED_OVER {
                handed_over.events.push(event);
            } else {
                handed_over.has_unread = true;
            }
        }
        shard.notify.notify();
    }

    /// Waits until there is something for the relay of a shard.
    pub(super) async fn wait(&self, shard: i32) {
        self.0[shard as usize].notify.wait().await;
    }

    /// Takes what was handed to the relay of a shard.
    pub(super) fn take(&self, shard: i32) -> HandedOver {
        mem::take(&mut *self.0[shard as usize].lock())
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, HandedOver> {
        // Nothing panics while it is held.
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
