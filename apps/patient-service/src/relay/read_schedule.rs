use std::time::{Duration, Instant};

use super::waker::HandedOver;
use crate::outbox::OutboxRow;

/// Poll interval for events written by other replicas, which wake nobody here.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The poll interval for as long as this instance has published something within [`RECENT`]: others may be at work too.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The poll interval for as long as another replica has written something within [`RECENT`], or something keeps events in
/// the outbox.
const SHARED_POLL_INTERVAL: Duration = Duration::from_millis(20);
const RECENT: Duration = Duration::from_secs(1);

/// When the relay reads the outbox, and which of the events that it is handed over it may send without reading.
///
/// A read is a statement for each step, so it is made only for what nobody hands over: events of other replicas, of updates
/// and deletions, and those that a step has left in the outbox.
#[derive(Debug)]
pub(super) struct ReadSchedule {
    last_read: Option<Instant>,
    last_published: Instant,
    /// Whether the last read returned all pending events, and all of them are published.
    is_complete: bool,
    /// The largest id of any read. An event with a larger one has not been read.
    largest_id: i64,
    /// Events that the last poll returned, and that no request here has handed over since.
    not_handed_over: usize,
    /// When another replica was last known to write.
    last_of_others: Option<Instant>,
}

/// What the relay does next.
#[derive(Debug)]
pub(super) enum Work {
    /// Read the outbox. Whether it is a poll, and how many events were handed over, which the read returns too.
    Read { is_poll: bool, handed_over: usize },
    /// Send these events, which nobody has read.
    Send(Vec<OutboxRow>),
}

impl ReadSchedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_read: None,
            last_published: now,
            is_complete: false,
            largest_id: 0,
            not_handed_over: 0,
            last_of_others: None,
        }
    }

    /// What to do now with what was handed over, under a lease that is held without interruption since `held_since`.
    pub(super) fn next_work(&mut self, handed_over: HandedOver, held_since: Option<Instant>, now: Instant) -> Work {
        let HandedOver { events, has_unread } = handed_over;
        let count = events.len();
        let largest_id = self.largest_id;
        let unread: Vec<_> = events.into_iter().filter(|event| event.id > largest_id).collect();
        let read_before = count - unread.len();
        self.not_handed_over = self.not_handed_over.saturating_sub(read_before);
        let is_poll = self.next_poll() <= now;
        if is_poll && self.not_handed_over > 0 {
            // A request of this instance would have handed them over within a poll interval, so another replica wrote them.
            self.not_handed_over = 0;
            self.last_of_others = Some(now);
        }
        // Events from before the lease was taken may have been published by its last holder.
        let is_complete = self.is_complete && held_since.zip(self.last_read).is_some_and(|(since, read)| read > since);
        // An id that is not above those that were read may have become visible after the read, or have been published.
        if is_poll || has_unread || read_before > 0 || !is_complete {
            Work::Read { is_poll: is_poll && !has_unread, handed_over: unread.len() }
        } else {
            Work::Send(unread)
        }
    }

    /// A step begins, and whether it publishes everything is not known yet.
    pub(super) fn begin(&mut self) {
        self.is_complete = false;
    }

    /// A step has ended, and whether it has left nothing in the outbox that a read could have returned.
    pub(super) fn set_complete(&mut self, is_complete: bool) {
        self.is_complete = is_complete;
    }

    /// The outbox was read.
    pub(super) fn has_read(&mut self, events: &[OutboxRow], now: Instant) {
        self.last_read = Some(now);
        self.largest_id = events.last().map_or(0, |event| event.id).max(self.largest_id);
    }

    /// A poll has returned this many events that were not handed over before.
    pub(super) fn has_polled(&mut self, not_handed_over: usize) {
        self.not_handed_over = not_handed_over;
    }

    /// Ids begin anew, as after a restore.
    pub(super) fn reset_ids(&mut self) {
        self.largest_id = 0;
    }

    /// Something was published.
    pub(super) fn has_published(&mut self, now: Instant) {
        self.last_published = now;
    }

    /// Whether the last step has left something in the outbox.
    pub(super) fn has_more(&self) -> bool {
        !self.is_complete
    }

    /// Time until the next read, unless something is handed over before.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        if self.is_complete {
            return self.next_poll().saturating_duration_since(now);
        }
        if is_recent(self.last_published, now) { SHARED_POLL_INTERVAL } else { POLL_INTERVAL }
    }

    fn next_poll(&self) -> Instant {
        let Some(last_read) = self.last_read else { return self.last_published };
        let interval = match self.last_of_others {
            Some(others) if is_recent(others, last_read) => SHARED_POLL_INTERVAL,
            _ if is_recent(self.last_published, last_read) => BUSY_POLL_INTERVAL,
            _ => POLL_INTERVAL,
        };
        last_read + interval
    }
}

fn is_recent(then: Instant, now: Instant) -> bool {
    now.saturating_duration_since(then) < RECENT
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use codec::event::EventKind;
    use uuid::Uuid;

    use super::*;

    fn event(id: i64) -> OutboxRow {
        OutboxRow {
            id,
            patient_id: Uuid::nil(),
            key_hash: 0,
            event_id: Uuid::nil(),
            event_type: EventKind::Created.name().to_owned(),
            value: Vec::new(),
            traceparent: None,
            created_at: Utc::now(),
        }
    }

    fn handed_over(ids: &[i64]) -> HandedOver {
        HandedOver { events: ids.iter().map(|id| event(*id)).collect(), has_unread: false }
    }

    /// A schedule after a read up to id 10 that left nothing, and the time of that read.
    fn up_to_date() -> (ReadSchedule, Option<Instant>, Instant) {
        let start = Instant::now();
        let mut schedule = ReadSchedule::new(start);
        assert!(is_read(&schedule.next_work(handed_over(&[10]), Some(start), start)), "everything at first");
        let now = start + Duration::from_millis(1);
        finish_read(&mut schedule, &[10], now);
        (schedule, Some(start), now)
    }

    fn finish_read(schedule: &mut ReadSchedule, ids: &[i64], now: Instant) {
        schedule.begin();
        schedule.has_read(&handed_over(ids).events, now);
        schedule.set_complete(true);
    }

    fn is_read(work: &Work) -> bool {
        matches!(work, Work::Read { .. })
    }

    fn sent(work: Work) -> Vec<i64> {
        match work {
            Work::Send(events) => events.iter().map(|event| event.id).collect(),
            Work::Read { .. } => panic!("a read was not expected"),
        }
    }

    #[test]
    fn what_nobody_can_have_read_is_sent_without_reading() {
        let (mut schedule, since, now) = up_to_date();
        assert_eq!(sent(schedule.next_work(handed_over(&[12, 11]), since, now)), [12, 11]);
        schedule.begin();
        schedule.set_complete(true);
        assert_eq!(sent(schedule.next_work(handed_over(&[13]), since, now)), [13]);
    }

    #[test]
    fn whatever_may_be_in_the_outbox_besides_is_read() {
        let (mut schedule, since, now) = up_to_date();
        assert!(is_read(&schedule.next_work(handed_over(&[11, 10]), since, now)), "10 may have been published");

        let (mut schedule, since, now) = up_to_date();
        let unread = HandedOver { has_unread: true, ..handed_over(&[11]) };
        assert!(is_read(&schedule.next_work(unread, since, now)), "another event was announced");

        let (mut schedule, since, now) = up_to_date();
        schedule.begin();
        assert!(is_read(&schedule.next_work(handed_over(&[11]), since, now)), "the last step failed");

        let (mut schedule, since, now) = up_to_date();
        schedule.begin();
        schedule.set_complete(false);
        assert!(is_read(&schedule.next_work(handed_over(&[11]), since, now)), "the last step left something");

        let (mut schedule, _, now) = up_to_date();
        assert!(is_read(&schedule.next_work(handed_over(&[11]), Some(now), now)), "another relay had the lease");
        assert!(is_read(&schedule.next_work(handed_over(&[11]), None, now)), "the lease is not held");
    }

    #[test]
    fn the_outbox_is_polled_more_often_while_other_replicas_write() {
        let poll = |handed_over: usize, now: Instant, schedule: &mut ReadSchedule, since| {
            let pause = schedule.pause(now);
            let before = now + pause - Duration::from_millis(1);
            sent(schedule.next_work(HandedOver::default(), since, before));
            let now = now + pause;
            assert!(matches!(
                schedule.next_work(HandedOver::default(), since, now),
                Work::Read { is_poll: true, handed_over: 0 }
            ));
            finish_read(schedule, &[], now);
            schedule.has_polled(handed_over);
            (pause, now)
        };
        let (mut schedule, since, now) = up_to_date();
        let (pause, now) = poll(0, now, &mut schedule, since);
        assert_eq!(pause, BUSY_POLL_INTERVAL, "just after its start");
        let now = now + RECENT;
        finish_read(&mut schedule, &[], now);
        let (pause, now) = poll(0, now, &mut schedule, since);
        assert_eq!(pause, POLL_INTERVAL);

        // Two events are found, of which a request hands one over.
        let (_, now) = poll(2, now, &mut schedule, since);
        finish_read(&mut schedule, &[20], now);
        assert!(is_read(&schedule.next_work(handed_over(&[20]), since, now)));
        let (_, now) = poll(0, now, &mut schedule, since);
        let (pause, now) = poll(1, now, &mut schedule, since);
        assert_eq!(pause, SHARED_POLL_INTERVAL, "the other event was another replica's");

        let now = now + RECENT;
        finish_read(&mut schedule, &[], now);
        // This time the request hands it over.
        finish_read(&mut schedule, &[21], now);
        assert!(is_read(&schedule.next_work(handed_over(&[21]), since, now)));
        let (_, now) = poll(0, now, &mut schedule, since);
        assert_eq!(schedule.pause(now), POLL_INTERVAL);
    }
}
