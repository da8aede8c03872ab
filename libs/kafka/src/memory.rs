//! What takes more memory than usual, one at a time in the whole process.
//!
//! A consumer of each partition may have an answer in its buffer and records decompressed beside it, and both are small. A
//! batch may be far larger; if every partition had such a one at the same time, a service with little memory would be
//! killed for it. So whoever reads one waits until the one before is done with.

use smol::lock::{Semaphore, SemaphoreGuard};

static LARGE: Semaphore = Semaphore::new(1);

/// Waits for the right to take much memory.
pub(crate) async fn large() -> SemaphoreGuard<'static> {
    LARGE.acquire().await
}
