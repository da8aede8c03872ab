//! The queue between the fetchers and the task that applies.

use std::{
    any::Any,
    future::pending,
    panic::{AssertUnwindSafe, resume_unwind},
};

use smol::{
    Task,
    channel::{Receiver, Sender, bounded},
    future::FutureExt as _,
};

use super::fetched_batch::FetchedBatch;

/// The capacity of the queue, of all partitions: large transactions share their fixed cost (births, registrations, positions, the
/// last page of the WAL) between more records.
const MAX_QUEUED_BATCHES: usize = 32;

/// The end of the queue at which batches are applied.
pub(super) struct Queue {
    pub(super) batches: Receiver<FetchedBatch>,
    panics: Receiver<Panic>,
}

/// What fetchers have of the queue.
#[derive(Clone)]
pub(super) struct QueueSender {
    batches: Sender<FetchedBatch>,
    panics: Sender<Panic>,
}

/// The payload of a panic.
type Panic = Box<dyn Any + Send>;

/// Both ends of a queue.
pub(super) fn queue() -> (QueueSender, Queue) {
    let (batches, panics) = (bounded(MAX_QUEUED_BATCHES), bounded(1));
    (QueueSender { batches: batches.0, panics: panics.0 }, Queue { batches: batches.1, panics: panics.1 })
}

impl Queue {
    /// Panics as soon as a fetcher has: nobody would read its partition any more. Never ends otherwise.
    pub(super) async fn panic_of_fetcher<T>(&self) -> T {
        match self.panics.recv().await {
            Ok(panic) => resume_unwind(panic),
            // No fetcher is left.
            Err(_) => pending().await,
        }
    }
}

impl QueueSender {
    /// Enqueues a batch. If the queue is not used any more, nothing happens: the fetcher is about to be cancelled.
    pub(super) async fn send(&self, batch: FetchedBatch) {
        let _ = self.batches.send(batch).await;
    }

    /// Spawns a fetcher, whose panic is passed on to the queue.
    pub(super) fn spawn(&self, fetcher: impl Future<Output = ()> + Send + 'static) -> Task<()> {
        let panics = self.panics.clone();
        runtime::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(fetcher).catch_unwind().await {
                // It fails if there is one already.
                let _ = panics.try_send(panic);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "this panic belongs to the test")]
    fn a_panic_of_a_fetcher_is_one_of_the_task_that_applies() {
        runtime::block_on(1, async {
            let (sender, queue) = queue();
            let _others = sender.spawn(pending());
            let _fetcher = sender.spawn(async { panic!("this panic belongs to the test") });
            queue.panic_of_fetcher::<()>().await;
        });
    }
}
