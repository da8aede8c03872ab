use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::outbox::IdSource;

/// A longer silence between two answers of the database does not count as time in which it answered.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// How often everything is read from the first id on, in case a commit was later than that after all.
const FULL_READ_INTERVAL: Duration = Duration::from_secs(30);

/// Low watermark of the outbox: everything up to this id is published, and no open transaction can add to it. Reading
/// begins after it.
///
/// It holds for one source of ids. After a restore or a failover smaller ids are given again, to events that would be
/// passed over; so it begins anew whenever the source is another one or its ids went back.
#[derive(Debug)]
pub(super) struct LowWatermark {
    /// No insert can still be under way that took its id longer ago than this, as long as the database answers.
    late_commit: Duration,
    /// For how long the database has been answering.
    alive: Duration,
    last_answer: Option<Instant>,
    /// Ids up to which everything visible was published, with the time of `alive` then, oldest first.
    published: VecDeque<(Duration, i64)>,
    id: i64,
    last_full_read: Option<Instant>,
    source: Option<IdSource>,
}

/// What the source of the ids tells about those that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// They go on as before.
    Continue,
    /// The server was started anew, or is another one.
    OtherSource,
    /// Ids that were given before will be given again.
    WentBack,
}

impl LowWatermark {
    /// Nothing is known; see [`Settings::late_commit`](super::Settings::late_commit).
    pub(super) fn new(late_commit: Duration) -> Self {
        Self {
            late_commit,
            alive: Duration::ZERO,
            last_answer: None,
            published: VecDeque::new(),
            id: 0,
            last_full_read: None,
            source: None,
        }
    }

    /// The smallest id that may still come.
    pub(super) fn next_id(&self) -> i64 {
        self.id + 1
    }

    /// The id to read from.
    pub(super) fn from(&mut self, now: Instant) -> i64 {
        while let Some(&(_, id)) =
            self.published.front().filter(|(then, _)| self.alive.saturating_sub(*then) > self.late_commit)
        {
            self.id = id;
            self.published.pop_front();
        }
        if self.last_full_read.is_none_or(|last| now.duration_since(last) > FULL_READ_INTERVAL) {
            self.last_full_read = Some(now);
            return 0;
        }
        self.next_id()
    }

    /// Notes where the ids of an answer come from. Unless they go on as before, nothing that was known holds any more, and
    /// the answer is of no use: what has to be sent before it may be missing.
    pub(super) fn check(&mut self, source: IdSource) -> Ids {
        let ids = match &self.source {
            None => Ids::Continue,
            Some(known) if source.last_id < known.last_id => Ids::WentBack,
            Some(known) if source.identity != known.identity => Ids::OtherSource,
            Some(_) => Ids::Continue,
        };
        self.source = Some(source);
        if ids != Ids::Continue {
            self.id = 0;
            self.published.clear();
            self.last_full_read = None;
        }
        ids
    }

    /// The database has answered, and everything it showed up to `id` need not be read again.
    pub(super) fn published_up_to(&mut self, id: Option<i64>, now: Instant) {
        let silence = self.last_answer.map_or(Duration::ZERO, |last| now.duration_since(last));
        self.alive += silence.min(MAX_SILENCE);
        self.last_answer = Some(now);
        let newest = self.published.back();
        // One entry for each tenth of a second is fine enough, and bounds the list.
        let spaced = newest.is_none_or(|(then, _)| self.alive.saturating_sub(*then) >= Duration::from_millis(100));
        let grown = id.filter(|&id| id > newest.map_or(self.id, |&(_, newest)| newest));
        if let Some(id) = grown.filter(|_| spaced) {
            self.published.push_back((self.alive, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE_COMMIT: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(200);

    /// Lets the database answer for a while, with nothing new.
    fn answer(watermark: &mut LowWatermark, from: Instant, period: Duration) -> Instant {
        let mut now = from;
        while now < from + period {
            now += STEP;
            watermark.published_up_to(None, now);
        }
        now
    }

    /// A watermark at 100.
    fn at_100() -> (LowWatermark, Instant) {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        watermark.from(start);
        assert_eq!(watermark.check(source("a", 100)), Ids::Continue);
        watermark.published_up_to(Some(100), start);
        let now = answer(&mut watermark, start, LATE_COMMIT + STEP);
        assert_eq!(watermark.from(now), 101);
        (watermark, now)
    }

    fn source(identity: &str, last_id: i64) -> IdSource {
        IdSource { identity: identity.to_owned(), last_id }
    }

    #[test]
    fn reading_begins_after_what_is_published() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        assert_eq!(watermark.from(start), 0, "at first, everything");
        watermark.published_up_to(Some(100), start);
        assert_eq!(watermark.from(start), 1, "an insert with a smaller id may be under way");
        let now = answer(&mut watermark, start, LATE_COMMIT + STEP);
        assert_eq!(watermark.from(now), 101);
    }

    #[test]
    fn everything_is_read_now_and_then() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        watermark.from(start);
        watermark.published_up_to(Some(100), start);
        let now = answer(&mut watermark, start, FULL_READ_INTERVAL + STEP);
        assert_eq!(watermark.from(now), 0);
        assert_eq!(watermark.from(now), 101);
    }

    #[test]
    fn a_database_that_was_frozen_gets_its_time_afterwards() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        watermark.from(start);
        watermark.published_up_to(Some(100), start);
        let thawed = start + LATE_COMMIT * 2;
        watermark.published_up_to(None, thawed);
        assert_eq!(watermark.from(thawed), 1);
    }

    #[test]
    fn ids_that_go_back_or_come_from_elsewhere_are_read_from_the_first_on() {
        for (after, ids) in [(source("a", 99), Ids::WentBack), (source("b", 132), Ids::OtherSource)] {
            let (mut watermark, now) = at_100();
            // What was published a moment ago counts as little.
            watermark.published_up_to(Some(110), now);
            assert_eq!(watermark.check(after), ids);
            assert_eq!(watermark.from(now), 0);
            let now = answer(&mut watermark, now, LATE_COMMIT + STEP);
            assert_eq!(watermark.from(now), 1);
        }
        let (mut watermark, now) = at_100();
        assert_eq!(watermark.check(source("a", 100)), Ids::Continue);
        assert_eq!(watermark.from(now), 101);
    }
}
