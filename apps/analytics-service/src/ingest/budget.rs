use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use event_listener::Event;
use smol::lock::Mutex;

/// A limit of bytes in memory, acquired in the order of the calls.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    released: Event,
    /// Held by the first waiter, so that others wait behind it.
    turn: Mutex<()>,
}

/// Acquired bytes, released on drop.
#[derive(Debug)]
pub(super) struct BudgetPermit {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), released: Event::new(), turn: Mutex::new(()) })
    }

    /// Waits until `bytes` fit into the limit. More than the limit can be acquired while nothing else is.
    pub(super) async fn acquire(self: &Arc<Self>, bytes: usize) -> BudgetPermit {
        let _turn = self.turn.lock().await;
        loop {
            let released = self.released.listen();
            // Only the holder of the turn adds; others can only release meanwhile.
            let used = self.used.load(Ordering::Acquire);
            if used == 0 || used.saturating_add(bytes) <= self.limit {
                self.used.fetch_add(bytes, Ordering::AcqRel);
                return BudgetPermit { bytes, budget: self.clone() };
            }
            released.await;
        }
    }
}

impl Drop for BudgetPermit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.released.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn no_more_than_the_limit_is_acquired() {
        block_on(async {
            let budget = Budget::new(10);
            let first = budget.acquire(6).await;
            let mut second = Box::pin(budget.acquire(6));
            assert!(poll_once(&mut second).await.is_none(), "the limit is reached");
            let mut third = Box::pin(budget.acquire(1));
            assert!(poll_once(&mut third).await.is_none(), "it is not its turn");
            drop(first);
            let second = poll_once(&mut second).await.expect("bytes were released");
            let third = poll_once(&mut third).await.expect("it is its turn");
            drop((second, third));
            assert_eq!(budget.used.load(Ordering::Acquire), 0);
        });
    }

    #[test]
    fn more_than_the_limit_is_acquired_alone() {
        block_on(async {
            let budget = Budget::new(10);
            let small = budget.acquire(1).await;
            let mut large = Box::pin(budget.acquire(100));
            assert!(poll_once(&mut large).await.is_none());
            drop(small);
            let large = poll_once(&mut large).await.expect("nothing else is acquired");
            assert!(poll_once(Box::pin(budget.acquire(1))).await.is_none());
            drop(large);
            assert!(poll_once(Box::pin(budget.acquire(1))).await.is_some());
        });
    }
}
