//! Buffers for bytes that arrive in chunks: heads and bodies of slow clients.
//!
//! The first 4 KiB are in a `Vec`. The rest is in blocks of one pool for all connections, which is mapped as long as
//! any block is in use. Buffers of many sizes for many short-lived connections would fragment the heap, so that the
//! allocator cannot return memory to the system; the pool is returned as a whole.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a block: a page.
const BLOCK: usize = 4096;
/// Smallest pool in bytes. glibc maps allocations above 32 MiB separately and unmaps them when they are freed; pages
/// that were never written take no memory.
const MIN_POOL_BYTES: usize = 33 * 1024 * 1024;

/// A pool of blocks of [`BLOCK`] bytes.
pub(crate) struct BlockPool {
    blocks: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Empty while no block is in use.
    memory: Vec<u8>,
    /// Blocks that were used and are free again.
    free: Vec<usize>,
    /// Blocks from this index on have never been used.
    fresh: usize,
    used: usize,
}

impl BlockPool {
    /// A pool for this many bytes.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { blocks: bytes.max(MIN_POOL_BYTES) / BLOCK, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is consistent between any two statements.
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

/// The bytes that have arrived so far.
pub(crate) struct ChunkedBuffer {
    start: Vec<u8>,
    pool: Arc<BlockPool>,
    /// Blocks with the bytes after `start`.
    blocks: Vec<usize>,
    /// Bytes in the blocks.
    length: usize,
}

impl ChunkedBuffer {
    /// Starts with these bytes; more go to the pool.
    pub(crate) fn new(pool: &Arc<BlockPool>, mut start: Vec<u8>) -> Self {
        // Its capacity may be that of a larger buffer.
        start.shrink_to_fit();
        Self { start, pool: pool.clone(), blocks: Vec::new(), length: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.start.len() + self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that are allocated.
    pub(crate) fn size(&self) -> usize {
        self.start.capacity() + self.blocks.len() * BLOCK
    }

    /// Appends bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.blocks.is_empty() && self.start.len() + bytes.len() <= BLOCK {
            self.start.extend_from_slice(bytes);
            return;
        }
        let mut inner = self.pool.lock();
        while !bytes.is_empty() {
            let filled = self.length % BLOCK;
            if filled == 0 {
                // The pool holds more than connections may be charged for, so a block is free except for moments.
                let Some(block) = inner.take(self.pool.blocks) else { break };
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

    /// Takes all bytes as one `Vec` and leaves this empty.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.start);
        if self.blocks.is_empty() {
            return all;
        }
        all.reserve_exact(self.length);
        {
            let inner = self.pool.lock();
            let mut left = self.length;
            for block in &self.blocks {
                let begin = block * BLOCK;
                all.extend_from_slice(&inner.memory[begin..begin + left.min(BLOCK)]);
                left = left.saturating_sub(BLOCK);
            }
        }
        self.release();
        all
    }

    fn release(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let mut inner = self.pool.lock();
        inner.used -= self.blocks.len();
        inner.free.append(&mut self.blocks);
        self.length = 0;
        if inner.used == 0 {
            *inner = Inner::default();
        }
    }
}

impl Drop for ChunkedBuffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn chunks_are_joined_in_order(
            start in vec(any::<u8>(), 0..5_000),
            chunks in vec((0..3_usize, vec(any::<u8>(), 0..9_000)), 0..20),
        ) {
            let pool = BlockPool::new(0);
            let mut all = [start.clone(), Vec::new(), Vec::new()];
            let mut gathered = [start, Vec::new(), Vec::new()].map(|start| ChunkedBuffer::new(&pool, start));
            for (number, piece) in &chunks {
                all[*number].extend_from_slice(piece);
                gathered[*number].push(piece);
                prop_assert_eq!(gathered[*number].len(), all[*number].len());
                prop_assert!(gathered[*number].size() >= all[*number].len());
            }
            // One buffer releases its blocks for the others before it is dropped.
            let [mut first, mut second, third] = gathered;
            prop_assert_eq!(first.take(), all[0].as_slice());
            second.push(&all[2]);
            prop_assert_eq!(second.take(), [all[1].as_slice(), &all[2]].concat());
            drop(third);
            prop_assert!(pool.lock().memory.is_empty(), "nothing is mapped when nothing is in use");
        }
    }

    #[test]
    fn bytes_beyond_the_pool_are_kept_on_the_heap() {
        let pool = Arc::new(BlockPool { blocks: 3, inner: Mutex::default() });
        let mut chunks = ChunkedBuffer::new(&pool, Vec::new());
        let bytes: Vec<u8> = (0..5 * BLOCK).map(|n| n as u8).collect();
        bytes.chunks(1_000).for_each(|piece| chunks.push(piece));
        assert_eq!(chunks.take(), bytes);
        assert!(pool.lock().memory.is_empty());
    }
}
