use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row that open the breaker.
const THRESHOLD: u32 = 5;
/// Time from the opening to the first probe; it doubles with each probe that fails.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest time between probes, and therefore how late a recovery can be noticed.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A circuit breaker: after several failures in a row it opens and fails calls at once, so that no request waits for a
/// service that is down, and lets one call through from time to time as a probe.
///
/// Time is an argument, so that tests need no clock.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures in a row while it is closed.
    failures: u32,
    open: Option<Open>,
    /// Grows whenever it opens or closes. A failure of a call that was admitted in an earlier generation does not count.
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    pause: Duration,
    probe_at: Instant,
}

/// A call that the breaker has let through; [`Breaker::failure`] takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    generation: u64,
}

impl Breaker {
    /// Lets a call through; none while it is open. [`success`](Self::success) or [`failure`](Self::failure) follows; if
    /// neither does, the next probe is admitted after the pause.
    pub fn admit(&self, now: Instant) -> Option<Admission> {
        let mut state = self.lock();
        let generation = state.generation;
        if let Some(open) = &mut state.open {
            if now < open.probe_at {
                return None;
            }
            // This call is the probe. The next one is admitted after its outcome, or after the pause if there is none.
            open.probe_at = now + open.pause;
        }
        Some(Admission { generation })
    }

    /// A call was answered; true if that closed an open breaker. The response to a call that was admitted before the opening
    /// counts too.
    pub fn success(&self) -> bool {
        let mut state = self.lock();
        state.failures = 0;
        let was_open = state.open.take().is_some();
        state.generation += u64::from(was_open);
        was_open
    }

    /// A call failed; true if that opened a closed breaker.
    ///
    /// Many calls are in flight when a peer goes down, and all of them fail. Once they have opened it, the others neither
    /// prolong the pause nor open it again; only a probe that fails does.
    pub fn failure(&self, admission: Admission, now: Instant) -> bool {
        let mut state = self.lock();
        if admission.generation != state.generation {
            return false;
        }
        if let Some(open) = &mut state.open {
            // While it is open, only probes are admitted.
            open.pause = (open.pause * 2).min(MAX_PAUSE);
            open.probe_at = now + open.pause;
            return false;
        }
        state.failures += 1;
        let opens = state.failures >= THRESHOLD;
        if opens {
            state.open = Some(Open { pause: MIN_PAUSE, probe_at: now + MIN_PAUSE });
            state.generation += 1;
        }
        opens
    }

    /// Whether it is open: calls fail at once, except for probes.
    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    /// Shows whether it is open to `show`, and lets nobody open or close it meanwhile: what is shown last is the state, whichever
    /// thread has changed it.
    pub(crate) fn show<T>(&self, show: impl FnOnce(bool) -> T) -> T {
        let state = self.lock();
        show(state.open.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(breaker: &Breaker, now: Instant) -> Admission {
        breaker.admit(now).expect("a call is let through")
    }

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        for failure in 1..=THRESHOLD {
            let admission = admitted(&breaker, now);
            assert_eq!(breaker.failure(admission, now), failure == THRESHOLD);
        }
        breaker
    }

    /// How long after `now` the next probe is let through, found in steps of a hundredth of the first pause.
    fn pause(breaker: &Breaker, now: Instant) -> Duration {
        let step = MIN_PAUSE / 100;
        let times = (0..).map(|n| step * n);
        times.take(10_000).find(|after| breaker.admit(now + *after).is_some()).expect("it ends")
    }

    #[test]
    fn a_success_in_between_keeps_it_closed() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            for _ in 1..THRESHOLD {
                breaker.failure(admitted(&breaker, now), now);
            }
            assert!(!breaker.success());
        }
        assert!(breaker.admit(now).is_some());
    }

    #[test]
    fn an_open_breaker_admits_one_probe_after_the_pause() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(breaker.admit(now).is_none() && breaker.is_open());
        assert!(breaker.admit(now + MIN_PAUSE).is_some());
        assert!(breaker.admit(now + MIN_PAUSE).is_none(), "the probe is in flight");
        assert!(breaker.success());
        assert!(breaker.admit(now).is_some() && !breaker.is_open());
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_and_an_unreported_one_does_not_block() {
        let now = Instant::now();
        let breaker = opened(now);
        let probe = now + MIN_PAUSE;
        assert!(!breaker.failure(admitted(&breaker, probe), probe), "it was open before");
        assert!(breaker.admit(probe + MIN_PAUSE).is_none());
        assert!(breaker.admit(probe + MIN_PAUSE * 2).is_some());
        assert!(breaker.admit(probe + MAX_PAUSE * 2).is_some(), "the outcome of that probe was never reported");
        let mut now = probe + MAX_PAUSE * 4;
        for _ in 0..100 {
            breaker.failure(admitted(&breaker, now), now);
            now += MAX_PAUSE;
        }
        assert!(breaker.admit(now).is_some(), "the pause is bounded");
    }

    #[test]
    fn concurrent_failures_cost_one_pause() {
        for calls in [5, 6, 9, 200] {
            let (breaker, now) = (Breaker::default(), Instant::now());
            let admissions: Vec<_> = (0..calls).map(|_| admitted(&breaker, now)).collect();
            let late = now + Duration::from_secs(1);
            let opened = admissions.into_iter().filter(|admission| breaker.failure(*admission, late)).count();
            assert_eq!(opened, 1, "it opens once");
            assert_eq!(pause(&breaker, late), MIN_PAUSE, "after {calls} calls");
        }
    }

    #[test]
    fn calls_from_before_an_outage_do_not_reopen_the_breaker() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let before: Vec<_> = (0..THRESHOLD * 4).map(|_| admitted(&breaker, now)).collect();
        let (opening, remaining) = before.split_at(THRESHOLD as usize);
        for admission in opening {
            breaker.failure(*admission, now);
        }
        let probe = now + MIN_PAUSE;
        let probing = admitted(&breaker, probe);
        for admission in remaining {
            assert!(!breaker.failure(*admission, probe));
        }
        assert!(breaker.success(), "the probe was answered");
        for admission in remaining.iter().chain([&probing]) {
            assert!(!breaker.failure(*admission, probe));
        }
        assert!(!breaker.is_open());
    }
}
