//! The queue between those who make spans or log lines and the collector, and the task that empties it.

use std::{iter, sync::Arc, time::Duration};

use runtime::{Shutdown, Wake, within};
use smol::channel::{self, Receiver, Sender};

use crate::delivery::{Delivery, Signal};

/// Items that wait at most; a span takes about half a kilobyte.
const QUEUE: usize = 8192;
/// Items of one delivery at most. As many wake the exporter before its time.
const BATCH: usize = 512;
/// How long an item waits for others.
const DELAY: Duration = Duration::from_secs(1);

/// Takes items from whoever makes them.
pub(crate) struct Queue<T> {
    signal: Signal,
    sender: Sender<T>,
    full_batch: Arc<Wake>,
}

impl<T> Queue<T> {
    /// Never waits.
    pub(crate) fn add(&self, item: T) {
        if self.sender.try_send(item).is_err() {
            self.signal.count("dropped", 1);
        } else if self.sender.len() >= BATCH {
            self.full_batch.notify();
        }
    }
}

/// Sends what is in the queue, in batches.
pub(crate) struct Batches<T, M> {
    delivery: Delivery,
    waiting: Receiver<T>,
    full_batch: Arc<Wake>,
    message: M,
}

/// A queue and the task that empties it. `message` makes the bytes of a delivery.
pub(crate) fn queue<T, M: Fn(Vec<T>) -> Vec<u8>>(delivery: Delivery, message: M) -> (Queue<T>, Batches<T, M>) {
    let (sender, waiting) = channel::bounded(QUEUE);
    let full_batch = Arc::new(Wake::new());
    let queue = Queue { signal: delivery.signal(), sender, full_batch: full_batch.clone() };
    (queue, Batches { delivery, waiting, full_batch, message })
}

impl<T, M: Fn(Vec<T>) -> Vec<u8>> Batches<T, M> {
    /// Sends what is there now and then until `stop`; then what is left.
    pub(crate) async fn run(mut self, stop: Shutdown) {
        let mut stopping = false;
        while !stopping {
            // The outcome does not matter: time, a full batch, or the end.
            let _ = stop.or_stop(within(DELAY, self.full_batch.wait())).await;
            stopping = stop.is_triggered();
            loop {
                let batch: Vec<_> = iter::from_fn(|| self.waiting.try_recv().ok()).take(BATCH).collect();
                let count = batch.len();
                if count > 0 {
                    self.delivery.deliver((self.message)(batch), count as u64, &stop).await;
                }
                if count < BATCH {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
