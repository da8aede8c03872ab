use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A longer silence between two answers of the database does not count as time in which it answered.
const SILENCE: Duration = Duration::from_secs(1);
/// How often everything is read from the first id on, in case a commit was later than that after all.
const READ_ALL: Duration = Duration::from_secs(30);

/// Up to which id nothing is left and nothing is still to come, so that reading can begin there.
#[derive(Debug)]
pub(super) struct Seen {
    /// No insert can still be under way that took its id longer ago than this, as long as the database answers.
    late_commit: Duration,
    /// For how long the database has been answering.
    alive: Duration,
    last_answer: Option<Instant>,
    /// Ids up to which everything visible was handled, with the time of `alive` then, oldest first.
    handled: VecDeque<(Duration, i64)>,
    /// Up to which id nothing is left and nothing is to come.
    pub(super) settled: i64,
    last_read_all: Option<Instant>,
}

impl Seen {
    /// Nothing is settled; see [`Settings::late_commit`](super::Settings::late_commit).
    pub(super) fn new(late_commit: Duration) -> Self {
        Self {
            late_commit,
            alive: Duration::ZERO,
            last_answer: None,
            handled: VecDeque::new(),
            settled: 0,
            last_read_all: None,
        }
    }

    /// The id to read from.
    pub(super) fn from(&mut self, now: Instant) -> i64 {
        while let Some(&(_, id)) =
            self.handled.front().filter(|(then, _)| self.alive.saturating_sub(*then) > self.late_commit)
        {
            self.settled = id;
            self.handled.pop_front();
        }
        if self.last_read_all.is_none_or(|last| now.duration_since(last) > READ_ALL) {
            self.last_read_all = Some(now);
            return 0;
        }
        self.settled + 1
    }

    /// The database has answered, and everything it showed up to `id` need not be read again.
    pub(super) fn handled_up_to(&mut self, id: Option<i64>, now: Instant) {
        let silence = self.last_answer.map_or(Duration::ZERO, |last| now.duration_since(last));
        self.alive += silence.min(SILENCE);
        self.last_answer = Some(now);
        let newest = self.handled.back();
        // One entry for each tenth of a second is fine enough, and bounds the list.
        let spaced = newest.is_none_or(|(then, _)| self.alive.saturating_sub(*then) >= Duration::from_millis(100));
        let grown = id.filter(|&id| id > newest.map_or(self.settled, |&(_, newest)| newest));
        if let Some(id) = grown.filter(|_| spaced) {
            self.handled.push_back((self.alive, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE_COMMIT: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(200);

    /// Lets the database answer for a while, with nothing new.
    fn answer(seen: &mut Seen, from: Instant, period: Duration) -> Instant {
        let mut now = from;
        while now < from + period {
            now += STEP;
            seen.handled_up_to(None, now);
        }
        now
    }

    #[test]
    fn reading_begins_after_what_is_settled() {
        let (mut seen, start) = (Seen::new(LATE_COMMIT), Instant::now());
        assert_eq!(seen.from(start), 0, "at first, everything");
        seen.handled_up_to(Some(100), start);
        assert_eq!(seen.from(start), 1, "an insert with a smaller id may be under way");
        let now = answer(&mut seen, start, LATE_COMMIT + STEP);
        assert_eq!(seen.from(now), 101);
    }

    #[test]
    fn everything_is_read_now_and_then() {
        let (mut seen, start) = (Seen::new(LATE_COMMIT), Instant::now());
        seen.from(start);
        seen.handled_up_to(Some(100), start);
        let now = answer(&mut seen, start, READ_ALL + STEP);
        assert_eq!(seen.from(now), 0);
        assert_eq!(seen.from(now), 101);
    }

    #[test]
    fn a_database_that_was_frozen_gets_its_time_afterwards() {
        let (mut seen, start) = (Seen::new(LATE_COMMIT), Instant::now());
        seen.from(start);
        seen.handled_up_to(Some(100), start);
        let thawed = start + LATE_COMMIT * 2;
        seen.handled_up_to(None, thawed);
        assert_eq!(seen.from(thawed), 1);
    }
}
