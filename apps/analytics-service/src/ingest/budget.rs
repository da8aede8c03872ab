use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use event_listener::Event;
use smol::lock::Mutex;

/// Bytes that may be taken at once, in the order of asking.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    taken: AtomicUsize,
    given_back: Event,
    /// Held by whoever waits for room; the others wait for their turn.
    turn: Mutex<()>,
}

/// Bytes that were taken from a budget, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0), given_back: Event::new(), turn: Mutex::new(()) })
    }

    /// Waits until there is room for so many bytes. More than the limit are given while nobody else has any.
    pub(super) async fn take(self: &Arc<Self>, bytes: usize) -> Share {
        let _turn = self.turn.lock().await;
        loop {
            let given_back = self.given_back.listen();
            // Only one adds at a time; who gives back meanwhile makes room.
            let taken = self.taken.load(Ordering::Acquire);
            if taken == 0 || taken.saturating_add(bytes) <= self.limit {
                self.taken.fetch_add(bytes, Ordering::AcqRel);
                return Share { bytes, budget: self.clone() };
            }
            given_back.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.given_back.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        block_on(async {
            let budget = Budget::new(10);
            let first = budget.take(6).await;
            let mut second = Box::pin(budget.take(6));
            assert!(poll_once(&mut second).await.is_none(), "there is no room");
            let mut third = Box::pin(budget.take(1));
            assert!(poll_once(&mut third).await.is_none(), "it is not its turn");
            drop(first);
            let second = poll_once(&mut second).await.expect("there is room");
            let third = poll_once(&mut third).await.expect("it is its turn");
            drop((second, third));
            assert_eq!(budget.taken.load(Ordering::Acquire), 0);
        });
    }

    #[test]
    fn more_than_the_limit_is_taken_alone() {
        block_on(async {
            let budget = Budget::new(10);
            let small = budget.take(1).await;
            let mut large = Box::pin(budget.take(100));
            assert!(poll_once(&mut large).await.is_none());
            drop(small);
            let large = poll_once(&mut large).await.expect("nobody else has any");
            assert!(poll_once(Box::pin(budget.take(1))).await.is_none());
            drop(large);
            assert!(poll_once(Box::pin(budget.take(1))).await.is_some());
        });
    }
}
