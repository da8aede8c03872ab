//! The limit of streams that are open at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Most streams: one for each open tab.
const MAX_STREAMS: usize = 32;

/// The [`MAX_STREAMS`] slots of one console.
#[derive(Debug, Default)]
pub(crate) struct StreamSlots(Arc<AtomicUsize>);

impl StreamSlots {
    /// None if all slots are taken.
    pub(crate) fn take(&self) -> Option<StreamSlot> {
        let slot = StreamSlot(self.0.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < MAX_STREAMS).then_some(slot)
    }
}

/// One of the [`StreamSlots`], until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamSlot(Arc<AtomicUsize>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
