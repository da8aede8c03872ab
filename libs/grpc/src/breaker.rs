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
    /// Failures in a row while it is closed.
    failures: u32,
    open: Option<Open>,
    /// Grows whenever it opens or closes: a failure of a call that was admitted before says nothing of now.
    period: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    pause: Duration,
    probe_at: Instant,
}

/// A call that the breaker has let through, to be given back with its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    period: u64,
}

impl Breaker {
    /// Lets a call through, or none while it is open. A call let through is followed by [`success`](Self::success) or
    /// [`failure`](Self::failure); if it is not, the next probe comes after the pause all the same.
    pub fn admit(&self, now: Instant) -> Option<Admission> {
        let mut state = self.lock();
        let period = state.period;
        if let Some(open) = &mut state.open {
            if now < open.probe_at {
                return None;
            }
            // This one is the probe. Others wait for its outcome, or for the pause if it never tells.
            open.probe_at = now + open.pause;
        }
        Some(Admission { period })
    }

    /// A call was answered; true if that closed an open breaker. Any answer will do, also to a call that was admitted
    /// before it opened.
    pub fn success(&self) -> bool {
        let mut state = self.lock();
        state.failures = 0;
        let was_open = state.open.take().is_some();
        state.period += u64::from(was_open);
        was_open
    }

    /// A call failed; true if that opened a closed breaker.
    ///
    /// Many calls are under way when a peer goes away, and all of them fail late: those that open it count once, and
    /// those that come after that neither prolong the pause nor open it again. Only a probe that fails does.
    pub fn failure(&self, admission: Admission, now: Instant) -> bool {
        let mut state = self.lock();
        if admission.period != state.period {
            return false;
        }
        if let Some(open) = &mut state.open {
            // While it is open, only probes are admitted.
            open.pause = (open.pause * 2).min(LONGEST_PAUSE);
            open.probe_at = now + open.pause;
            return false;
        }
        state.failures += 1;
        let opens = state.failures >= THRESHOLD;
        if opens {
            state.open = Some(Open { pause: FIRST_PAUSE, probe_at: now + FIRST_PAUSE });
            state.period += 1;
        }
        opens
    }

    /// Whether it refuses calls, except for a probe.
    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held.
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
        let step = FIRST_PAUSE / 100;
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
    fn open_it_lets_one_probe_through_after_the_pause() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(breaker.admit(now).is_none() && breaker.is_open());
        assert!(breaker.admit(now + FIRST_PAUSE).is_some());
        assert!(breaker.admit(now + FIRST_PAUSE).is_none(), "the probe is under way");
        assert!(breaker.success());
        assert!(breaker.admit(now).is_some() && !breaker.is_open());
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_and_a_lost_one_does_not_block() {
        let now = Instant::now();
        let breaker = opened(now);
        let probe = now + FIRST_PAUSE;
        assert!(!breaker.failure(admitted(&breaker, probe), probe), "it was open before");
        assert!(breaker.admit(probe + FIRST_PAUSE).is_none());
        assert!(breaker.admit(probe + FIRST_PAUSE * 2).is_some());
        assert!(breaker.admit(probe + LONGEST_PAUSE * 2).is_some(), "that probe never told");
        let mut now = probe + LONGEST_PAUSE * 4;
        for _ in 0..100 {
            breaker.failure(admitted(&breaker, now), now);
            now += LONGEST_PAUSE;
        }
        assert!(breaker.admit(now).is_some(), "a pause has a longest length");
    }

    #[test]
    fn calls_that_were_under_way_together_cost_one_pause_however_many_they_are() {
        for calls in [5, 6, 9, 200] {
            let (breaker, now) = (Breaker::default(), Instant::now());
            let admissions: Vec<_> = (0..calls).map(|_| admitted(&breaker, now)).collect();
            let late = now + Duration::from_secs(1);
            let opened = admissions.into_iter().filter(|admission| breaker.failure(*admission, late)).count();
            assert_eq!(opened, 1, "an outage is told once");
            assert_eq!(pause(&breaker, late), FIRST_PAUSE, "after {calls} calls");
        }
    }

    #[test]
    fn calls_from_before_an_outage_do_not_bring_it_back() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let before: Vec<_> = (0..THRESHOLD * 4).map(|_| admitted(&breaker, now)).collect();
        let (opening, late) = before.split_at(THRESHOLD as usize);
        for admission in opening {
            breaker.failure(*admission, now);
        }
        let probe = now + FIRST_PAUSE;
        let probing = admitted(&breaker, probe);
        for admission in late {
            assert!(!breaker.failure(*admission, probe));
        }
        assert!(breaker.success(), "the probe was answered");
        for admission in late.iter().chain([&probing]) {
            assert!(!breaker.failure(*admission, probe));
        }
        assert!(!breaker.is_open());
    }
}
