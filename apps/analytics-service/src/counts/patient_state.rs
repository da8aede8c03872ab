//! What is known of one patient, and what the patient adds to the counts.

use std::ops::RangeInclusive;

use chrono::{Datelike as _, NaiveDate};
use codec::event::{EventKind, ReceivedEvent};

/// Valid years of dates. Others count as unknown, which bounds the memory of the counts: a partition has 73,414 dates at most.
const YEARS: RangeInclusive<i32> = 1900..=2100;
/// After a restore of the publisher's database, an operator adds this to all versions, so that none is assigned twice
/// (docs/failures.md). So the remainder is the number of versions. It also bounds what an event adds, whatever is published.
pub(super) const RESTORE_STEP: i64 = 1_000_000;

/// The year, unless it is out of range.
pub(crate) fn valid_year(year: i32) -> Option<i32> {
    YEARS.contains(&year).then_some(year)
}

/// The date, unless its year is out of range.
pub(crate) fn valid_date(date: NaiveDate) -> Option<NaiveDate> {
    valid_year(date.year()).map(|_| date)
}

/// The state of a patient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatientState {
    /// The highest version of an applied event; 0 if none had one.
    pub version: i64,
    /// Whether the patient is registered.
    pub active: bool,
    /// The patient's year of birth, if it is known.
    pub birth_year: Option<i32>,
    /// The date of registration, if it is known.
    pub registered: Option<NaiveDate>,
    /// The time of the event with that version, by its publisher's clock, in milliseconds since 1970; none if it had none.
    pub changed: Option<i64>,
    /// The partition whose counts have the patient; none in the state of an older version.
    pub partition: Option<i32>,
}

impl PatientState {
    /// The outcome of an event with a version that was applied before, or after which another was.
    pub fn repeated(&self, event: &ReceivedEvent) -> Option<Outcome> {
        let version = event.version.filter(|version| *version <= self.version)?;
        Some(if self.conflicts_with(version, event) { Outcome::Conflict } else { Outcome::Duplicate })
    }

    /// Whether the counts have the patient, apart from its events without a version.
    pub fn is_counted(&self) -> bool {
        self.active || self.version > 0
    }

    /// Whether an event with a version that was applied before is another change: it has the same version and another time,
    /// or a lower version and a later time. Then versions were assigned twice, as after a restore of the publisher's database,
    /// or, for a lower version, the clocks of two publishers differ.
    fn conflicts_with(&self, version: i64, event: &ReceivedEvent) -> bool {
        let times = event.time.map(|time| time.timestamp_millis()).zip(self.changed);
        times.is_some_and(|(time, applied)| if version == self.version { time != applied } else { time > applied })
    }

    /// Registrations, changes and deletions that the highest version stands for. A patient that is registered and has no
    /// version was registered by an event without one, which was counted by itself: then the next versions are changes.
    pub(super) fn contribution(&self) -> [i64; 3] {
        let versions = self.version % RESTORE_STEP;
        if self.active {
            [1, (versions - 1).max(0), 0]
        } else if self.version > 0 {
            [1, (versions - 2).max(0), 1]
        } else {
            [0, 0, 0]
        }
    }

    /// Takes what an event says of its patient.
    pub(super) fn learn(&mut self, event: &ReceivedEvent) {
        // A value that is out of range replaces the earlier one, as a new state that reads this event alone has it.
        let birth_year = event.birth_year.map_or(self.birth_year, valid_year);
        let registered = event.registered_date.map_or(self.registered, valid_date);
        match (event.kind, event.version) {
            (Some(EventKind::Created | EventKind::Updated), _) | (None, Some(_)) => {
                (self.active, self.birth_year, self.registered) = (true, birth_year, registered);
            }
            // It may be the first event that is read of the patient, so it counts the registration too.
            (Some(EventKind::Deleted), Some(_)) => {
                (self.active, self.birth_year, self.registered) = (false, None, registered);
            }
            (Some(EventKind::Deleted), None) => self.active = false,
            (None, None) => {}
        }
    }
}

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is counted.
    Applied,
    /// Its version is not above the highest applied one: a duplicate, or out of order.
    Duplicate,
    /// As a duplicate, but of another change: the version was assigned twice.
    Conflict,
}
