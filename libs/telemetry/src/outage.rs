use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Causes of one outage that are logged at most: an error text may hold something that is new every time.
const MAX_CAUSES: usize = 8;

/// Whether something that a service needs is unavailable, so that the beginning of an outage is logged once, and so is
/// its end. The caller logs, with its own message and fields, when a method returns that it should.
///
/// With keys, such as partitions, several parts fail and recover on their own: the outage begins when the first one
/// fails and ends when the last one has recovered.
///
/// ```
/// let outage = telemetry::Outage::new();
/// assert!(outage.failed("timeout"), "the beginning is logged");
/// assert!(!outage.failed("timeout"), "the same again is not");
/// assert!(outage.failed("connection refused"), "another cause is logged");
/// assert!(outage.recovered().is_some(), "the end is logged, with the time that it lasted");
/// assert!(outage.recovered().is_none());
/// ```
#[derive(Debug)]
pub struct Outage<K = ()> {
    /// As in `state`, so that a success outside of an outage takes no lock.
    is_ongoing: AtomicBool,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    /// What fails now, and why.
    failing: BTreeMap<K, String>,
    /// The causes that this outage had so far.
    causes: BTreeSet<String>,
    /// When the last outage began, and when it began or ended last.
    began: Option<Instant>,
    changed: Option<Instant>,
}

impl<K> Default for Outage<K> {
    fn default() -> Self {
        let state = State { failing: BTreeMap::new(), causes: BTreeSet::new(), began: None, changed: None };
        Self { is_ongoing: AtomicBool::new(false), state: Mutex::new(state) }
    }
}

impl<K: Ord> Outage<K> {
    /// There is no outage yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that `key` failed. `cause` distinguishes kinds of failure; with a constant cause, only the beginning is
    /// logged; `reason` is the text for [`reason`](Self::reason).
    ///
    /// Returns whether to log it: it begins the outage, or this outage has not had the cause yet.
    pub fn failed_for(&self, key: K, cause: &str, reason: impl Into<String>) -> bool {
        self.lock().fail(key, cause, reason.into(), &self.is_ongoing)
    }

    /// Records that `key` works. Returns how long the outage lasted if this ends it, which is to be logged.
    pub fn recovered_for(&self, key: &K) -> Option<Duration> {
        if !self.is_ongoing() {
            return None;
        }
        self.lock().recover(key, &self.is_ongoing)
    }

    /// Whether anything fails.
    pub fn is_ongoing(&self) -> bool {
        self.is_ongoing.load(Ordering::Acquire)
    }

    /// Why the first key that fails does so, if one does.
    pub fn reason(&self) -> Option<String> {
        self.lock().failing.values().next().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    /// Notes a failure of a thing without parts; see [`failed_for`](Self::failed_for).
    pub fn failed(&self, cause: &str) -> bool {
        self.failed_for((), cause, cause)
    }

    /// Notes that it works; see [`recovered_for`](Self::recovered_for).
    pub fn recovered(&self) -> Option<Duration> {
        self.recovered_for(&())
    }

    /// As [`failed`](Self::failed), shown by work that began at `started`. It counts for nothing if the outage has
    /// begun or ended since: the work may have met what was before.
    pub fn failed_since(&self, started: Instant, cause: &str) -> bool {
        let mut state = self.lock();
        state.is_news(started) && state.fail((), cause, cause.to_owned(), &self.is_ongoing)
    }

    /// As [`recovered`](Self::recovered), shown by work that began at `started`, with the same reservation.
    pub fn recovered_since(&self, started: Instant) -> Option<Duration> {
        if !self.is_ongoing() {
            return None;
        }
        let mut state = self.lock();
        if state.is_news(started) { state.recover(&(), &self.is_ongoing) } else { None }
    }
}

impl<K: Ord> State<K> {
    fn fail(&mut self, key: K, cause: &str, reason: String, is_ongoing: &AtomicBool) -> bool {
        if self.failing.is_empty() {
            let now = Instant::now();
            (self.began, self.changed) = (Some(now), Some(now));
            self.causes.clear();
            is_ongoing.store(true, Ordering::Release);
        }
        self.failing.insert(key, reason);
        self.causes.len() < MAX_CAUSES && self.causes.insert(cause.to_owned())
    }

    fn recover(&mut self, key: &K, is_ongoing: &AtomicBool) -> Option<Duration> {
        let ends = self.failing.remove(key).is_some() && self.failing.is_empty();
        if !ends {
            return None;
        }
        self.changed = Some(Instant::now());
        is_ongoing.store(false, Ordering::Release);
        self.began.map(|began| began.elapsed())
    }

    fn is_news(&self, started: Instant) -> bool {
        self.changed.is_none_or(|changed| started >= changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_the_end_and_each_cause_are_logged_once() {
        let outage = Outage::new();
        assert_eq!(outage.recovered(), None, "nothing was wrong");
        for _ in 0..2 {
            assert!(outage.failed("timeout") && outage.is_ongoing());
            assert!(!outage.failed("timeout"));
            assert!(outage.failed("refused") && !outage.failed("timeout"));
            assert_eq!(outage.reason().as_deref(), Some("timeout"));
            assert!(outage.recovered().is_some() && !outage.is_ongoing());
            assert_eq!((outage.recovered(), outage.reason()), (None, None));
        }
    }

    #[test]
    fn causes_that_never_repeat_are_logged_up_to_a_limit() {
        let outage = Outage::new();
        let logged = (0..100).filter(|number| outage.failed(&format!("cause {number}"))).count();
        assert_eq!(logged, MAX_CAUSES);
    }

    #[test]
    fn an_outage_of_several_parts_ends_with_the_last_of_them() {
        let outage = Outage::new();
        assert!(outage.failed_for(1, "timeout", "no answer of 1"));
        assert!(!outage.failed_for(2, "timeout", "no answer of 2"));
        assert_eq!(outage.recovered_for(&3), None, "it had not failed");
        assert_eq!(outage.recovered_for(&1), None);
        assert_eq!(outage.reason().as_deref(), Some("no answer of 2"));
        assert!(outage.recovered_for(&2).is_some());
    }

    #[test]
    fn work_that_began_before_the_last_change_shows_nothing() {
        let outage = Outage::new();
        let before = Instant::now();
        assert!(outage.failed_since(before, "timeout"));
        assert_eq!(outage.recovered_since(before), None, "it was done before the outage");
        assert!(outage.is_ongoing());
        let lasted = outage.recovered_since(Instant::now()).unwrap();
        assert!(lasted <= before.elapsed());
        assert!(!outage.failed_since(before, "timeout"), "it met the outage that is over");
        assert!(!outage.is_ongoing() && outage.failed_since(Instant::now(), "timeout"));
    }
}
