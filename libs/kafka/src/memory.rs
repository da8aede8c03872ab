//! Limits what fetches hold in memory, beside a buffer of each consumer.

use std::sync::{Arc, LazyLock};

use smol::lock::{Mutex, MutexGuardArc};

/// That of consumers which share none with others, for large batches alone: if every partition had one at the same time, a service with
/// little memory would be killed.
pub(crate) static LARGE_BATCHES: LazyLock<FetchMemory> = LazyLock::new(FetchMemory::default);

/// The memory of the consumers that [share](crate::Consumer::sharing) it: one of them at a time has records, or a response that is larger
/// than it has requested. The others wait, and keep only buffers of the requested size.
#[derive(Clone, Debug, Default)]
pub struct FetchMemory(Arc<Mutex<()>>);

/// The permit to have records in memory, released when it is dropped.
#[derive(Debug)]
pub struct FetchPermit {
    _guard: MutexGuardArc<()>,
}

impl FetchMemory {
    pub(crate) async fn acquire(&self) -> FetchPermit {
        FetchPermit { _guard: self.0.lock_arc().await }
    }
}
