use std::sync::atomic::{AtomicI32, Ordering};

/// A tenth of a token, so that whole numbers do.
const TOKEN: i32 = 10;
/// Tokens at most. Retries are allowed while more than half are left.
const MOST: i32 = 10 * TOKEN;

/// Bounds retries to a share of calls, as gRFC A6 has it: a failure costs a token, a success gives a tenth of one back.
/// While a service fails throughout, its clients do not double its load.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: AtomicI32,
}

impl Budget {
    pub(crate) fn full() -> Self {
        Self { tokens: AtomicI32::new(MOST) }
    }

    pub(crate) fn success(&self) {
        self.add(1);
    }

    pub(crate) fn failure(&self) {
        self.add(-TOKEN);
    }

    pub(crate) fn allows_retry(&self) -> bool {
        self.tokens.load(Ordering::Relaxed) > MOST / 2
    }

    fn add(&self, amount: i32) {
        let new = |tokens: i32| Some((tokens + amount).clamp(0, MOST));
        // It always succeeds, because `new` always gives a value.
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_before_the_tokens_do_and_come_back_slowly() {
        let budget = Budget::full();
        for _ in 0..4 {
            budget.failure();
        }
        assert!(budget.allows_retry());
        budget.failure();
        assert!(!budget.allows_retry());
        budget.success();
        assert!(budget.allows_retry());
        for _ in 0..100 {
            budget.failure();
        }
        for _ in 0..50 {
            budget.success();
        }
        assert!(!budget.allows_retry());
    }
}
