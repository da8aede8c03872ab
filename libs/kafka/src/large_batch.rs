//! Limits large batches to one at a time in the process.
//!
//! A consumer of each partition holds a response and decompressed records, both small. A batch may be far larger; if every
//! partition had one at the same time, a service with little memory would be killed. So a consumer waits until the large
//! batch before has been dropped.

use smol::lock::{Semaphore, SemaphoreGuard};

static PERMIT: Semaphore = Semaphore::new(1);

/// Waits for the permit to read a large batch. It is released when the guard is dropped.
pub(crate) async fn acquire() -> SemaphoreGuard<'static> {
    PERMIT.acquire().await
}
