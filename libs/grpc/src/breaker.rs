use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row that open the breaker.
const THRESHOLD: u32 = 5;
/// How long it stays open at first; it doubles with each probe that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long it stays open at most, and therefore how late a recovery can be noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A circuit breaker: after several failures in a row it refuses calls at once, so that nobody waits for a service that
/// is away, and lets one call through from time to time to see whether it is back.
///
/// Time is an argument, so that a test needs no clock.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// While it is open: the time of the next probe.
    probe_at: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. A call let through must be followed by [`success`](Self::success) or
    /// [`failure`](Self::failure); if it is not, the next probe comes after the pause all the same.
    pub fn allows(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.probe_at {
            None => true,
            Some(at) if now < at => false,
            // This one is the probe. Others wait for its outcome, or for the pause if it never tells.
            Some(_) => {
                state.probe_at = Some(now + pause(state.failures));
                true
            }
        }
    }

    /// A call was answered; true if that closed an open breaker.
    pub fn success(&self) -> bool {
        let mut state = self.lock();
        state.failures = 0;
        state.probe_at.take().is_some()
    }

    /// A call failed; true if that opened a closed breaker.
    pub fn failure(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        let was_open = state.probe_at.is_some();
        if state.failures >= THRESHOLD {
            state.probe_at = Some(now + pause(state.failures));
        }
        !was_open && state.probe_at.is_some()
    }

    /// Whether it refuses calls, except for a probe.
    pub fn is_open(&self) -> bool {
        self.lock().probe_at.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(THRESHOLD))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        for failure in 1..=THRESHOLD {
            assert!(breaker.allows(now));
            assert_eq!(breaker.failure(now), failure == THRESHOLD);
        }
        breaker
    }

    #[test]
    fn a_success_in_between_keeps_it_closed() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            for _ in 1..THRESHOLD {
                breaker.failure(now);
            }
            assert!(!breaker.success());
        }
        assert!(breaker.allows(now));
    }

    #[test]
    fn open_it_lets_one_probe_through_after_the_pause() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(!breaker.allows(now) && breaker.is_open());
        assert!(breaker.allows(now + FIRST_PAUSE));
        assert!(!breaker.allows(now + FIRST_PAUSE), "the probe is under way");
        assert!(breaker.success());
        assert!(breaker.allows(now) && !breaker.is_open());
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_and_a_lost_one_does_not_block() {
        let now = Instant::now();
        let breaker = opened(now);
        let probe = now + FIRST_PAUSE;
        assert!(breaker.allows(probe));
        assert!(!breaker.failure(probe), "it was open before");
        assert!(!breaker.allows(probe + FIRST_PAUSE));
        assert!(breaker.allows(probe + FIRST_PAUSE * 2));
        assert!(breaker.allows(probe + LONGEST_PAUSE * 2), "that probe never told");
    }
}
