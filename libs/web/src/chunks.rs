//! Bytes that come in pieces: heads and bodies of clients that take their time.
//!
//! The first ones are in a buffer that grows. The others lie in blocks of one region of memory for all connections, which is
//! mapped as long as any of it is in use. Buffers of any size, of many connections that come and go, would leave holes that
//! the allocator cannot give back to the system; the region goes back as a whole.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a block: a page.
const BLOCK: usize = 4096;
/// Bytes of the region at least. glibc maps what is larger than 32 MiB by itself and unmaps it when it is freed; pages that
/// nobody writes to are not there.
const LEAST_REGION: usize = 33 * 1024 * 1024;

/// Memory in blocks.
pub(crate) struct Region {
    blocks: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Empty while no block is in use.
    memory: Vec<u8>,
    /// Blocks that were in use and are not any more.
    free: Vec<usize>,
    /// Blocks from here on have not been used.
    fresh: usize,
    used: usize,
}

impl Region {
    /// A region for so many bytes.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { blocks: bytes.max(LEAST_REGION) / BLOCK, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What it holds is right between any two steps.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, blocks: usize) -> Option<usize> {
        if self.memory.is_empty() {
            self.memory = vec![0; blocks * BLOCK];
        }
        let block = self.free.pop().or_else(|| (self.fresh < blocks).then_some(self.fresh))?;
        self.fresh = self.fresh.max(block + 1);
        self.used += 1;
        Some(block)
    }
}

/// Bytes that have come so far.
pub(crate) struct Pieces {
    start: Vec<u8>,
    region: Arc<Region>,
    /// What follows the start.
    blocks: Vec<usize>,
    /// Bytes in the blocks.
    length: usize,
}

impl Pieces {
    /// These bytes, and room for more in the region.
    pub(crate) fn new(region: &Arc<Region>, mut start: Vec<u8>) -> Self {
        // It may be a slice of a larger buffer.
        start.shrink_to_fit();
        Self { start, region: region.clone(), blocks: Vec::new(), length: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.start.len() + self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that they take.
    pub(crate) fn size(&self) -> usize {
        self.start.capacity() + self.blocks.len() * BLOCK
    }

    /// Adds what has come.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.blocks.is_empty() && self.start.len() + bytes.len() <= BLOCK {
            self.start.extend_from_slice(bytes);
            return;
        }
        let mut inner = self.region.lock();
        while !bytes.is_empty() {
            let filled = self.length % BLOCK;
            if filled == 0 {
                // More is in use than may be charged only for a moment, so that there is one.
                let Some(block) = inner.take(self.region.blocks) else { break };
                self.blocks.push(block);
            }
            let Some(block) = self.blocks.last() else { break };
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - filled));
            let begin = block * BLOCK + filled;
            inner.memory[begin..begin + now.len()].copy_from_slice(now);
            self.length += now.len();
            bytes = later;
        }
        drop(inner);
        if !bytes.is_empty() {
            let mut all = self.take();
            all.extend_from_slice(bytes);
            self.start = all;
        }
    }

    /// All of them in one buffer, of which this is left empty.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.start);
        if self.blocks.is_empty() {
            return all;
        }
        all.reserve_exact(self.length);
        {
            let inner = self.region.lock();
            let mut left = self.length;
            for block in &self.blocks {
                let begin = block * BLOCK;
                all.extend_from_slice(&inner.memory[begin..begin + left.min(BLOCK)]);
                left = left.saturating_sub(BLOCK);
            }
        }
        self.give_back();
        all
    }

    fn give_back(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let mut inner = self.region.lock();
        inner.used -= self.blocks.len();
        inner.free.append(&mut self.blocks);
        self.length = 0;
        if inner.used == 0 {
            *inner = Inner::default();
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn what_comes_in_pieces_is_the_same_in_one(
            start in vec(any::<u8>(), 0..5_000),
            pieces in vec((0..3_usize, vec(any::<u8>(), 0..9_000)), 0..20),
        ) {
            let region = Region::new(0);
            let mut all = [start.clone(), Vec::new(), Vec::new()];
            let mut gathered = [start, Vec::new(), Vec::new()].map(|start| Pieces::new(&region, start));
            for (number, piece) in &pieces {
                all[*number].extend_from_slice(piece);
                gathered[*number].push(piece);
                prop_assert_eq!(gathered[*number].len(), all[*number].len());
                prop_assert!(gathered[*number].size() >= all[*number].len());
            }
            // One gives its blocks back to the others before it is gone.
            let [mut first, mut second, third] = gathered;
            prop_assert_eq!(first.take(), all[0].as_slice());
            second.push(&all[2]);
            prop_assert_eq!(second.take(), [all[1].as_slice(), &all[2]].concat());
            drop(third);
            prop_assert!(region.lock().memory.is_empty(), "nothing is mapped when nothing is in use");
        }
    }

    #[test]
    fn what_the_region_cannot_hold_is_held_all_the_same() {
        let region = Arc::new(Region { blocks: 3, inner: Mutex::default() });
        let mut pieces = Pieces::new(&region, Vec::new());
        let bytes: Vec<u8> = (0..5 * BLOCK).map(|n| n as u8).collect();
        bytes.chunks(1_000).for_each(|piece| pieces.push(piece));
        assert_eq!(pieces.take(), bytes);
        assert!(region.lock().memory.is_empty());
    }
}
