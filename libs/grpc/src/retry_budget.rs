use std::sync::atomic::{AtomicI32, Ordering};

/// A token, in tenths, so that integers are enough.
const TOKEN: i32 = 10;
/// Most tokens. Retries are allowed while more than half of them are left.
const MAX_TOKENS: i32 = 10 * TOKEN;

/// Retry throttling of gRFC A6: a failure costs a token, a success gives back a tenth of one. A service that fails
/// constantly does not get a multiple of its load in retries.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tokens: AtomicI32,
}

impl RetryBudget {
    pub(crate) fn full() -> Self {
        Self { tokens: AtomicI32::new(MAX_TOKENS) }
    }

    pub(crate) fn success(&self) {
        self.add(1);
    }

    pub(crate) fn failure(&self) {
        self.add(-TOKEN);
    }

    pub(crate) fn allows_retry(&self) -> bool {
        self.tokens.load(Ordering::Relaxed) > MAX_TOKENS / 2
    }

    fn add(&self, amount: i32) {
        let new = |tokens: i32| Some((tokens + amount).clamp(0, MAX_TOKENS));
        // It always succeeds, because `new` never gives none.
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stop_at_half_of_the_tokens_and_resume_with_successes() {
        let budget = RetryBudget::full();
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
