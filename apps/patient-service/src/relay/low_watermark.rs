use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::outbox::IdSource;

/// Longest time between two responses of the database that counts as time in which it responded.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// Interval between full reads, for commits that were later than [`Settings::late_commit`](super::Settings::late_commit).
const FULL_READ_INTERVAL: Duration = Duration::from_secs(30);

/// Low watermark of the outbox: everything up to this id is published, and no open transaction can add to it. Reading
/// begins after it.
///
/// It is valid for one source of ids. After a restore or a failover smaller ids are given again, to events that would be
/// skipped; so it is reset when the source changes or its ids go back.
#[derive(Debug)]
pub(super) struct LowWatermark {
    /// Longest time from an insert's id to its commit, while the database responds.
    late_commit: Duration,
    /// Time in which the database has responded.
    responsive: Duration,
    last_response: Option<Instant>,
    /// Ids up to which everything visible was published, each with `responsive` at that time, oldest first.
    published: VecDeque<(Duration, i64)>,
    id: i64,
    last_full_read: Option<Instant>,
    source: Option<IdSource>,
}

/// How the source of the ids has changed between two reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceChange {
    /// It is the same.
    Unchanged,
    /// The server was restarted or replaced.
    OtherServer,
    /// The sequence has gone back: ids will be given again.
    IdsWentBack,
}

impl LowWatermark {
    /// At 0. For `late_commit` see [`Settings::late_commit`](super::Settings::late_commit).
    pub(super) fn new(late_commit: Duration) -> Self {
        Self {
            late_commit,
            responsive: Duration::ZERO,
            last_response: None,
            published: VecDeque::new(),
            id: 0,
            last_full_read: None,
            source: None,
        }
    }

    /// The smallest id that is not known to be published.
    pub(super) fn next_id(&self) -> i64 {
        self.id + 1
    }

    /// The id to read from.
    pub(super) fn read_from(&mut self, now: Instant) -> i64 {
        while let Some(&(_, id)) =
            self.published.front().filter(|(then, _)| self.responsive.saturating_sub(*then) > self.late_commit)
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

    /// Compares the source of a read's ids with that of the read before. If it has changed, the watermark is reset and the read
    /// has to be dropped: events that have to be sent before it may be missing.
    pub(super) fn check(&mut self, source: IdSource) -> SourceChange {
        let change = match &self.source {
            None => SourceChange::Unchanged,
            Some(before) if source.last_id < before.last_id => SourceChange::IdsWentBack,
            Some(before) if source.identity != before.identity => SourceChange::OtherServer,
            Some(_) => SourceChange::Unchanged,
        };
        self.source = Some(source);
        if change != SourceChange::Unchanged {
            self.id = 0;
            self.published.clear();
            self.last_full_read = None;
        }
        change
    }

    /// The database has responded, and everything visible up to `id` is published.
    pub(super) fn published_up_to(&mut self, id: Option<i64>, now: Instant) {
        let silence = self.last_response.map_or(Duration::ZERO, |last| now.duration_since(last));
        self.responsive += silence.min(MAX_SILENCE);
        self.last_response = Some(now);
        let newest = self.published.back();
        // An entry for each 100 ms is precise enough, and bounds the list.
        let spaced = newest.is_none_or(|(then, _)| self.responsive.saturating_sub(*then) >= Duration::from_millis(100));
        let grown = id.filter(|&id| id > newest.map_or(self.id, |&(_, newest)| newest));
        if let Some(id) = grown.filter(|_| spaced) {
            self.published.push_back((self.responsive, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE_COMMIT: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(200);

    /// Lets the database respond for a while, with nothing new.
    fn respond(watermark: &mut LowWatermark, from: Instant, period: Duration) -> Instant {
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
        watermark.read_from(start);
        assert_eq!(watermark.check(source("a", 100)), SourceChange::Unchanged);
        watermark.published_up_to(Some(100), start);
        let now = respond(&mut watermark, start, LATE_COMMIT + STEP);
        assert_eq!(watermark.read_from(now), 101);
        (watermark, now)
    }

    fn source(identity: &str, last_id: i64) -> IdSource {
        IdSource { identity: identity.to_owned(), last_id }
    }

    #[test]
    fn reads_begin_after_published_ids() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        assert_eq!(watermark.read_from(start), 0, "everything at first");
        watermark.published_up_to(Some(100), start);
        assert_eq!(watermark.read_from(start), 1, "a transaction with a smaller id may be open");
        let now = respond(&mut watermark, start, LATE_COMMIT + STEP);
        assert_eq!(watermark.read_from(now), 101);
    }

    #[test]
    fn full_reads_are_made_periodically() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        watermark.read_from(start);
        watermark.published_up_to(Some(100), start);
        let now = respond(&mut watermark, start, FULL_READ_INTERVAL + STEP);
        assert_eq!(watermark.read_from(now), 0);
        assert_eq!(watermark.read_from(now), 101);
    }

    #[test]
    fn time_in_which_the_database_was_frozen_does_not_count() {
        let (mut watermark, start) = (LowWatermark::new(LATE_COMMIT), Instant::now());
        watermark.read_from(start);
        watermark.published_up_to(Some(100), start);
        let thawed = start + LATE_COMMIT * 2;
        watermark.published_up_to(None, thawed);
        assert_eq!(watermark.read_from(thawed), 1);
    }

    #[test]
    fn ids_that_go_back_or_have_another_source_reset_the_watermark() {
        for (after, change) in
            [(source("a", 99), SourceChange::IdsWentBack), (source("b", 132), SourceChange::OtherServer)]
        {
            let (mut watermark, now) = at_100();
            // Recently published ids are dropped too.
            watermark.published_up_to(Some(110), now);
            assert_eq!(watermark.check(after), change);
            assert_eq!(watermark.read_from(now), 0);
            let now = respond(&mut watermark, now, LATE_COMMIT + STEP);
            assert_eq!(watermark.read_from(now), 1);
        }
        let (mut watermark, now) = at_100();
        assert_eq!(watermark.check(source("a", 100)), SourceChange::Unchanged);
        assert_eq!(watermark.read_from(now), 101);
    }
}
