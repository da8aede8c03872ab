//! What events add up to. Pure: no I/O, no clock.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, RangeInclusive},
};

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use codec::event::{Kind, Received};

/// Years that a patient's dates can have. Others in an event count as not known: there would be no end of them in memory.
const YEARS: RangeInclusive<i32> = 1..=9999;

/// Counts. The counts of a sequence of events is the sum of the tallies of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Patients registered and not deleted.
    pub active: i64,
    /// Events applied that told of a registration.
    pub created: i64,
    /// Events applied that told of a change.
    pub updated: i64,
    /// Events applied that told of a deletion.
    pub deleted: i64,
    /// Events applied that told of something that we do not know.
    pub unknown: i64,
    /// Active patients by year of birth.
    pub births: BTreeMap<Option<i32>, i64>,
    /// Registrations by date, those of patients deleted since included.
    pub registrations: BTreeMap<Option<NaiveDate>, i64>,
    /// When the latest of the events happened, by its publisher's clock.
    pub last_event: Option<DateTime<Utc>>,
}

/// What is remembered of a patient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatientState {
    /// The latest version that an event told of; 0 if none told one.
    pub version: i64,
    /// Whether the patient is registered.
    pub active: bool,
    /// The patient's year of birth, while active and if it is known.
    pub birth_year: Option<i32>,
    /// When the patient was registered, if that is known.
    pub registered: Option<NaiveDate>,
    /// When that version was made, by its publisher's clock, in milliseconds after 1970; none if no event told.
    pub changed: Option<i64>,
}

impl PatientState {
    /// Whether an event of a version that has been seen tells of another change than the one that made it: of the same
    /// version at another time, or of an earlier one at a later time. Versions were given twice then, as after a restore
    /// of the publisher's database; or, of an earlier version, the clocks of two publishers differ.
    fn contradicts(&self, version: i64, event: &Received) -> bool {
        let times = event.time.map(|time| time.timestamp_millis()).zip(self.changed);
        times.is_some_and(|(time, known)| if version == self.version { time != known } else { time > known })
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It counts.
    Applied,
    /// It tells of a version that has been seen: a repetition, or late.
    Duplicate,
    /// It tells of a version that has been seen, and of another change than before: a version that was given twice.
    Conflict,
}

impl Counts {
    /// Counts an event, knowing what is known of its patient, which it updates.
    pub fn apply(&mut self, known: &mut PatientState, event: &Received) -> Outcome {
        if let Some(version) = event.version.filter(|version| *version <= known.version) {
            return if known.contradicts(version, event) { Outcome::Conflict } else { Outcome::Duplicate };
        }
        let before = *known;
        if let Some(version) = event.version {
            (known.version, known.changed) = (version, event.time.map(|time| time.timestamp_millis()));
        }
        match event.kind {
            Some(Kind::Created) => self.created += 1,
            Some(Kind::Updated) => self.updated += 1,
            Some(Kind::Deleted) => self.deleted += 1,
            None => self.unknown += 1,
        }
        match event.kind {
            Some(Kind::Created | Kind::Updated) => {
                let birth_year = event.birth_year.filter(|year| YEARS.contains(year));
                let registered = event.registered_date.filter(|date| YEARS.contains(&date.year()));
                known.active = true;
                known.birth_year = birth_year.or(before.birth_year);
                known.registered = registered.or(before.registered);
            }
            Some(Kind::Deleted) => known.active = false,
            None => {}
        }
        self.count_active(&before, -1);
        self.count_active(known, 1);
        self.count_registration(event.kind, &before, known);
        self.last_event = self.last_event.max(event.time);
        Outcome::Applied
    }

    fn count_active(&mut self, known: &PatientState, sign: i64) {
        if known.active {
            self.active += sign;
            add(&mut self.births, known.birth_year, sign);
        }
    }

    fn count_registration(&mut self, kind: Option<Kind>, before: &PatientState, now: &PatientState) {
        match kind {
            Some(Kind::Created) => add(&mut self.registrations, now.registered, 1),
            // A change of the date moves the registration, wherever it was counted.
            Some(Kind::Updated) if before.active && before.registered != now.registered => {
                add(&mut self.registrations, before.registered, -1);
                add(&mut self.registrations, now.registered, 1);
            }
            _ => {}
        }
    }

    /// Active patients by age in a year, as whole bands; the last is for those whose age is not known.
    pub fn age_bands(&self, year: i32) -> Vec<(&'static str, i64)> {
        /// The bands' names and the first age above each.
        const BANDS: [(&str, i32); 6] =
            [("0-17", 18), ("18-29", 30), ("30-44", 45), ("45-59", 60), ("60-74", 75), ("75+", i32::MAX)];
        let mut bands: Vec<_> = BANDS.iter().map(|(name, _)| (*name, 0)).collect();
        let mut unknown = 0;
        for (birth_year, patients) in &self.births {
            match birth_year.map(|birth_year| year.saturating_sub(birth_year)) {
                Some(age) => {
                    let band = BANDS.iter().position(|(_, above)| age < *above).unwrap_or(BANDS.len() - 1);
                    bands[band].1 += patients;
                }
                None => unknown += patients,
            }
        }
        bands.push(("unknown", unknown));
        bands
    }

    /// Registrations from one date to another, both included, by the period that each date belongs to.
    pub fn registrations(
        &self,
        interval: Interval,
        from: Option<NaiveDate>,
        to: Option<NaiveDate>,
    ) -> BTreeMap<String, i64> {
        let mut series = BTreeMap::new();
        for (date, patients) in &self.registrations {
            let Some(date) = date else { continue };
            if from.is_none_or(|from| *date >= from) && to.is_none_or(|to| *date <= to) {
                *series.entry(interval.period(*date)).or_default() += patients;
            }
        }
        series.retain(|_, patients| *patients != 0);
        series
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        self.active += other.active;
        self.created += other.created;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.unknown += other.unknown;
        for (year, patients) in &other.births {
            add(&mut self.births, *year, *patients);
        }
        for (date, patients) in &other.registrations {
            add(&mut self.registrations, *date, *patients);
        }
        self.last_event = self.last_event.max(other.last_event);
    }
}

fn add<K: Ord>(counts: &mut BTreeMap<K, i64>, key: K, amount: i64) {
    *counts.entry(key).or_default() += amount;
}

/// The period of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// A day.
    Day,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Interval {
    /// The name of the period that a date belongs to; names sort as periods do.
    fn period(self, date: NaiveDate) -> String {
        let (year, month, day) = (date.year(), date.month(), date.day());
        match self {
            Self::Day => format!("{year:04}-{month:02}-{day:02}"),
            Self::Month => format!("{year:04}-{month:02}"),
            Self::Year => format!("{year:04}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn event(kind: Option<Kind>, version: Option<i64>) -> Received {
        Received {
            patient_id: Uuid::nil(),
            kind,
            version,
            time: DateTime::from_timestamp(version.unwrap_or_default(), 0),
            registered_date: Some(date("2024-02-29")),
            birth_year: Some(1990),
        }
    }

    fn fold(events: &[Received]) -> (Counts, PatientState, Vec<Outcome>) {
        let (mut counts, mut known) = (Counts::default(), PatientState::default());
        let outcomes = events.iter().map(|event| counts.apply(&mut known, event)).collect();
        (counts, known, outcomes)
    }

    #[test]
    fn a_life() {
        let life = [Kind::Created, Kind::Updated, Kind::Deleted];
        let events: Vec<_> = life.iter().zip(1..).map(|(kind, version)| event(Some(*kind), Some(version))).collect();
        let (counts, _, _) = fold(&events[..2]);
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (1, 1, 1, 0));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 1)]));
        let (counts, known, _) = fold(&events);
        assert_eq!((counts.active, counts.deleted), (0, 1));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 0)]));
        assert_eq!(counts.registrations, BTreeMap::from([(Some(date("2024-02-29")), 1)]), "it was a registration");
        assert_eq!(counts.last_event, DateTime::from_timestamp(3, 0));
        assert_eq!((known.version, known.active), (3, false));
    }

    #[test]
    fn repeated_and_late_versions_change_nothing() {
        let events = [
            event(Some(Kind::Created), Some(1)),
            event(Some(Kind::Created), Some(1)),
            event(Some(Kind::Deleted), Some(3)),
            event(Some(Kind::Updated), Some(2)),
            event(Some(Kind::Deleted), Some(3)),
        ];
        let (counts, _, outcomes) = fold(&events);
        use Outcome::{Applied, Duplicate};
        assert_eq!(outcomes, [Applied, Duplicate, Applied, Duplicate, Duplicate]);
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (0, 1, 0, 1));
    }

    #[test]
    fn a_version_that_was_given_twice_is_told_from_a_repetition() {
        let at = |version: i64, seconds: i64| Received {
            time: DateTime::from_timestamp(seconds, 0),
            ..event(Some(Kind::Updated), Some(version))
        };
        let untimed = Received { time: None, ..at(3, 0) };
        let events = [at(1, 10), at(3, 30), at(3, 30), at(3, 31), at(2, 20), at(2, 40), untimed, at(4, 5), at(4, 5)];
        let (counts, known, outcomes) = fold(&events);
        use Outcome::{Applied, Conflict, Duplicate};
        let expected = [Applied, Applied, Duplicate, Conflict, Duplicate, Conflict, Duplicate, Applied, Duplicate];
        assert_eq!(outcomes, expected);
        assert_eq!((counts.updated, known.version, known.changed), (3, 4, Some(5_000)));
    }

    #[test]
    fn events_without_a_version_always_count() {
        let original = |kind| Received { birth_year: None, registered_date: None, ..event(kind, None) };
        let events = [
            original(Some(Kind::Created)),
            original(Some(Kind::Created)),
            original(None),
            original(Some(Kind::Deleted)),
        ];
        let (counts, known, outcomes) = fold(&events);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Applied));
        assert_eq!((counts.active, counts.created, counts.unknown, counts.deleted), (0, 2, 1, 1));
        assert_eq!(known.version, 0);
        assert_eq!(counts.births, BTreeMap::from([(None, 0)]));
    }

    #[test]
    fn a_change_of_date_moves_the_registration() {
        let moved = Received {
            registered_date: Some(date("2025-01-01")),
            birth_year: Some(1991),
            ..event(Some(Kind::Updated), Some(2))
        };
        let (counts, _, _) = fold(&[event(Some(Kind::Created), Some(1)), moved]);
        assert_eq!(counts.registrations(Interval::Year, None, None), BTreeMap::from([("2025".to_owned(), 1)]));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 0), (Some(1991), 1)]));
    }

    #[test]
    fn dates_that_no_patient_can_have_are_not_known() {
        let strange = |year: i32, version| Received {
            birth_year: Some(year),
            registered_date: NaiveDate::from_ymd_opt(year, 1, 1),
            ..event(Some(Kind::Created), Some(version))
        };
        for year in [i32::MIN, -1, 0, 10_000, i32::MAX] {
            let (counts, ..) = fold(&[strange(year, 1)]);
            assert_eq!((counts.births, counts.registrations), ([(None, 1)].into(), [(None, 1)].into()), "{year}");
        }
        let (counts, ..) = fold(&[strange(1, 1), strange(9999, 2)]);
        assert_eq!(counts.births, [(Some(1), 0), (Some(9999), 1)].into());
    }

    #[test]
    fn the_tally_of_a_sequence_is_the_sum_of_its_parts() {
        let events: Vec<_> = [Kind::Created, Kind::Updated, Kind::Deleted]
            .iter()
            .zip(1..)
            .map(|(kind, version)| event(Some(*kind), Some(version)))
            .collect();
        let (whole, _, _) = fold(&events);
        for cut in 0..=events.len() {
            let (mut first, mut known, _) = fold(&events[..cut]);
            let mut second = Counts::default();
            for event in &events[cut..] {
                second.apply(&mut known, event);
            }
            first += &second;
            assert_eq!(first, whole);
        }
    }

    #[test]
    fn ages_fall_into_bands() {
        let births = [(2026, 1), (2009, 2), (2008, 4), (1952, 8), (1951, 16), (1900, 32), (2100, 64)];
        let mut counts =
            Counts { births: births.map(|(year, patients)| (Some(year), patients)).into(), ..Counts::default() };
        counts.births.insert(None, 128);
        let bands =
            [("0-17", 67), ("18-29", 4), ("30-44", 0), ("45-59", 0), ("60-74", 8), ("75+", 48), ("unknown", 128)];
        assert_eq!(counts.age_bands(2026), bands);
    }

    #[test]
    fn a_series_has_the_periods_in_which_something_happened() {
        let days = [("2023-12-31", 1), ("2024-01-01", 2), ("2024-01-31", 3), ("2024-02-01", 0)];
        let registrations = days.map(|(day, patients)| (Some(date(day)), patients)).into();
        let counts = Counts { registrations, ..Counts::default() };
        let series = |interval, from, to| counts.registrations(interval, from, to).into_iter().collect::<Vec<_>>();
        assert_eq!(series(Interval::Month, None, None), [("2023-12".to_owned(), 1), ("2024-01".to_owned(), 5)]);
        let from = Some(date("2024-01-01"));
        assert_eq!(series(Interval::Day, from, from), [("2024-01-01".to_owned(), 2)]);
        assert_eq!(series(Interval::Year, from, None), [("2024".to_owned(), 5)]);
    }
}
