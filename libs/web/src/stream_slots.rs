//! The limit of streams that are open at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Slots for streams, of which each client keeps one open for as long as it likes. Clones share them.
#[derive(Clone, Debug)]
pub struct StreamSlots {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

impl StreamSlots {
    /// So many slots, all free.
    pub fn new(limit: usize) -> Self {
        Self { taken: Arc::default(), limit }
    }

    /// None if all slots are taken.
    pub fn take(&self) -> Option<StreamSlot> {
        // Too many are given back at once.
        let slot = StreamSlot(self.taken.clone());
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.limit).then_some(slot)
    }
}

/// One of the [`StreamSlots`], until it is dropped.
#[derive(Debug)]
pub struct StreamSlot(Arc<AtomicUsize>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
