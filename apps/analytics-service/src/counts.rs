//! Counts of events. Pure: no I/O, no clock.
//!
//! Versions of a patient are dense: 1 at the registration, one more with each change and with the deletion. So what a patient
//! adds to the counts follows from the highest version and from whether its event was a deletion: one registration, perhaps one
//! deletion, and a change for each other version. An event adds the difference to what was known before, so events that are
//! missing count too: compaction has removed them from the topic, or they come late and count nothing then. A count of the
//! compacted topic has the same result as one of all events ([decision 60](../../../docs/decisions/0060-count-from-versions.md)).
//!
//! Events without a version, as the original services publish them, count one by one.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, RangeInclusive},
};

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use codec::event::{EventKind, ReceivedEvent};

/// Valid years of dates. Others count as unknown, which bounds the memory of the counts.
const YEARS: RangeInclusive<i32> = 1..=9999;
/// After a restore of the publisher's database, an operator adds this to all versions, so that none is assigned twice
/// (docs/failures.md). So the remainder is the number of versions. It also bounds what an event adds, whatever is published.
const RESTORE_STEP: i64 = 1_000_000;

/// Counts of events. The counts of a sequence are the sum of the counts of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Patients registered and not deleted.
    pub active: i64,
    /// Registrations.
    pub created: i64,
    /// Changes, also those whose events were not read because a later one was.
    pub updated: i64,
    /// Deletions.
    pub deleted: i64,
    /// Applied events of an unknown kind without a version. With a version they are changes.
    pub unknown: i64,
    /// Active patients by year of birth.
    pub births: BTreeMap<Option<i32>, i64>,
    /// Registrations by date, also of patients who were deleted later.
    pub registrations: BTreeMap<Option<NaiveDate>, i64>,
    /// The time of the latest event, by its publisher's clock.
    pub last_event: Option<DateTime<Utc>>,
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
    /// The partition whose counts have the patient; none in a state of before.
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
    fn contribution(&self) -> [i64; 3] {
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
    fn learn(&mut self, event: &ReceivedEvent) {
        let birth_year = event.birth_year.filter(|year| YEARS.contains(year)).or(self.birth_year);
        let registered = event.registered_date.filter(|date| YEARS.contains(&date.year())).or(self.registered);
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

impl Counts {
    /// Counts an event and updates the state of its patient.
    pub fn apply(&mut self, patient: &mut PatientState, event: &ReceivedEvent) -> Outcome {
        patient.repeated(event).unwrap_or_else(|| {
            self.count(patient, event);
            Outcome::Applied
        })
    }

    /// Counts an event that is not [repeated](PatientState::repeated), and updates the state of its patient.
    pub fn count(&mut self, patient: &mut PatientState, event: &ReceivedEvent) {
        let before = *patient;
        if let Some(version) = event.version {
            (patient.version, patient.changed) = (version, event.time.map(|time| time.timestamp_millis()));
        }
        patient.learn(event);
        self.count_active(&before, -1);
        self.count_active(patient, 1);
        if event.version.is_some() {
            self.count_versions(&before, patient);
        } else {
            self.count_one(event.kind, &before, patient);
        }
        self.last_event = self.last_event.max(event.time);
    }

    /// Adds what a patient adds to the counts, or subtracts it.
    pub fn add_patient(&mut self, patient: &PatientState, sign: i64) {
        self.count_active(patient, sign);
        self.add_versions(patient, sign);
    }

    /// Counts an event with a version: what the patient adds now, instead of what it added before.
    fn count_versions(&mut self, before: &PatientState, now: &PatientState) {
        self.add_versions(before, -1);
        self.add_versions(now, 1);
    }

    fn add_versions(&mut self, patient: &PatientState, sign: i64) {
        let [created, updated, deleted] = patient.contribution();
        self.created += sign * created;
        self.updated += sign * updated;
        self.deleted += sign * deleted;
        if created > 0 {
            add(&mut self.registrations, patient.registered, sign);
        }
    }

    /// Counts an event without a version.
    fn count_one(&mut self, kind: Option<EventKind>, before: &PatientState, now: &PatientState) {
        match kind {
            Some(EventKind::Created) => {
                self.created += 1;
                add(&mut self.registrations, now.registered, 1);
            }
            Some(EventKind::Updated) => {
                self.updated += 1;
                // A changed date moves the registration.
                if before.active && before.registered != now.registered {
                    add(&mut self.registrations, before.registered, -1);
                    add(&mut self.registrations, now.registered, 1);
                }
            }
            Some(EventKind::Deleted) => self.deleted += 1,
            None => self.unknown += 1,
        }
    }

    fn count_active(&mut self, patient: &PatientState, sign: i64) {
        if patient.active {
            self.active += sign;
            add(&mut self.births, patient.birth_year, sign);
        }
    }

    /// Active patients by age band in a year. The last band is for unknown ages.
    pub fn age_bands(&self, year: i32) -> Vec<(&'static str, i64)> {
        /// The name of each band, and the first age above it.
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

    /// Registrations by period, from one date to another, both included.
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

/// The length of the periods of a series.
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
    /// The name of the period of a date. Names sort like periods.
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

    fn event(kind: Option<EventKind>, version: Option<i64>) -> ReceivedEvent {
        ReceivedEvent {
            patient_id: Uuid::nil(),
            kind,
            version,
            time: DateTime::from_timestamp(version.unwrap_or_default(), 0),
            registered_date: Some(date("2024-02-29")),
            birth_year: Some(1990),
        }
    }

    fn apply_all(events: &[ReceivedEvent]) -> (Counts, PatientState, Vec<Outcome>) {
        let (mut counts, mut patient) = (Counts::default(), PatientState::default());
        let outcomes = events.iter().map(|event| counts.apply(&mut patient, event)).collect();
        (counts, patient, outcomes)
    }

    #[test]
    fn a_registration_an_update_and_a_deletion_are_counted() {
        let kinds = [EventKind::Created, EventKind::Updated, EventKind::Deleted];
        let events: Vec<_> = kinds.iter().zip(1..).map(|(kind, version)| event(Some(*kind), Some(version))).collect();
        let (counts, _, _) = apply_all(&events[..2]);
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (1, 1, 1, 0));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 1)]));
        let (counts, patient, _) = apply_all(&events);
        assert_eq!((counts.active, counts.deleted), (0, 1));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 0)]));
        assert_eq!(
            counts.registrations,
            BTreeMap::from([(Some(date("2024-02-29")), 1)]),
            "a deletion does not undo the registration"
        );
        assert_eq!(counts.last_event, DateTime::from_timestamp(3, 0));
        assert_eq!((patient.version, patient.active), (3, false));
    }

    #[test]
    fn duplicates_and_stale_versions_are_not_applied() {
        let events = [
            event(Some(EventKind::Created), Some(1)),
            event(Some(EventKind::Created), Some(1)),
            event(Some(EventKind::Deleted), Some(3)),
            event(Some(EventKind::Updated), Some(2)),
            event(Some(EventKind::Deleted), Some(3)),
        ];
        let (counts, _, outcomes) = apply_all(&events);
        use Outcome::{Applied, Duplicate};
        assert_eq!(outcomes, [Applied, Duplicate, Applied, Duplicate, Duplicate]);
        assert_eq!(
            (counts.active, counts.created, counts.updated, counts.deleted),
            (0, 1, 1, 1),
            "version 2 is a change"
        );
    }

    /// Every order of these events.
    fn orders(events: &[ReceivedEvent]) -> Vec<Vec<ReceivedEvent>> {
        let Some((last, others)) = events.split_last() else { return vec![Vec::new()] };
        let insert = |order: Vec<ReceivedEvent>| {
            (0..=order.len()).map(move |at| {
                let mut order = order.clone();
                order.insert(at, last.clone());
                order
            })
        };
        orders(others).into_iter().flat_map(insert).collect()
    }

    #[test]
    fn counts_follow_from_the_last_version_in_any_order_and_with_any_gaps() {
        for last in [EventKind::Updated, EventKind::Deleted] {
            let mut history: Vec<_> = (1..=5).map(|version| event(Some(EventKind::Updated), Some(version))).collect();
            history[0].kind = Some(EventKind::Created);
            history[1].birth_year = Some(1980);
            // The registration is moved, and the birth year is corrected, before events that are not read.
            for moved in &mut history[2..] {
                (moved.registered_date, moved.birth_year) = (Some(date("2025-01-01")), Some(1991));
            }
            history[3].kind = None;
            history[4].kind = Some(last);
            if last == EventKind::Deleted {
                history[4].birth_year = None;
            }
            let (mut whole, patient, _) = apply_all(&history);
            let deleted = i64::from(last == EventKind::Deleted);
            assert_eq!((whole.active, whole.created, whole.updated), (1 - deleted, 1, 4 - deleted), "{last}");
            assert_eq!((whole.deleted, whole.unknown), (deleted, 0));
            whole.births.retain(|_, patients| *patients != 0);
            whole.registrations.retain(|_, patients| *patients != 0);
            assert_eq!(whole.registrations, [(Some(date("2025-01-01")), 1)].into());
            for gaps in 0..1 << 4 {
                let kept = (0..5).filter(|number| *number == 4 || gaps & (1 << number) == 0);
                let kept: Vec<_> = kept.map(|number| history[number].clone()).collect();
                for mut order in orders(&kept) {
                    // Read again, as after a restart.
                    order.extend(order.clone());
                    let (mut counts, state, _) = apply_all(&order);
                    counts.births.retain(|_, patients| *patients != 0);
                    counts.registrations.retain(|_, patients| *patients != 0);
                    assert_eq!((counts, state), (whole.clone(), patient), "{order:?}");
                }
            }
        }
    }

    #[test]
    fn a_patient_who_is_registered_again_after_a_restore_is_counted_as_the_registry_has_it() {
        let history = [(EventKind::Created, 1), (EventKind::Deleted, 2), (EventKind::Updated, 4)];
        let (counts, ..) = apply_all(&history.map(|(kind, version)| event(Some(kind), Some(version))));
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (1, 1, 3, 0));
        assert_eq!(counts.registrations, [(Some(date("2024-02-29")), 1)].into());
    }

    #[test]
    fn versions_that_an_operator_has_raised_after_a_restore_are_no_changes() {
        // Version 3 was lost with the restore to version 2.
        let versions = [1, 2, 3, 2 + RESTORE_STEP + 1, 2 + RESTORE_STEP + 2];
        let events = versions.map(|version| event(Some(EventKind::Updated), Some(version)));
        for kept in [&events[..], &events[4..]] {
            let (counts, ..) = apply_all(kept);
            assert_eq!((counts.active, counts.created, counts.updated), (1, 1, 3));
        }
        let deleted = event(Some(EventKind::Deleted), Some(2 * RESTORE_STEP));
        let (counts, ..) = apply_all(&[deleted]);
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (0, 1, 0, 1));
    }

    #[test]
    fn a_patient_of_the_original_services_counts_its_registration_once() {
        let original =
            ReceivedEvent { birth_year: None, registered_date: None, ..event(Some(EventKind::Created), None) };
        let (counts, ..) = apply_all(&[original, event(Some(EventKind::Updated), Some(3))]);
        assert_eq!((counts.active, counts.created, counts.updated), (1, 1, 2));
        assert_eq!(counts.registrations, [(None, 0), (Some(date("2024-02-29")), 1)].into());
    }

    #[test]
    fn versions_of_any_size_overflow_nothing() {
        let deleted = ReceivedEvent { birth_year: None, ..event(Some(EventKind::Deleted), Some(i64::MAX)) };
        let mut sum = Counts::default();
        for _ in 0..1000 {
            let (counts, patient, _) =
                apply_all(&[event(Some(EventKind::Updated), Some(i64::MAX - 1)), deleted.clone()]);
            assert_eq!((counts.active, counts.created, counts.deleted, patient.version), (0, 1, 1, i64::MAX));
            sum += &counts;
        }
        assert_eq!(sum.updated, 1000 * (i64::MAX % RESTORE_STEP - 2));
        let (counts, ..) = apply_all(&[event(Some(EventKind::Deleted), Some(1))]);
        assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (0, 1, 0, 1));
    }

    #[test]
    fn a_version_that_was_assigned_twice_is_a_conflict_and_no_duplicate() {
        let at = |version: i64, seconds: i64| ReceivedEvent {
            time: DateTime::from_timestamp(seconds, 0),
            ..event(Some(EventKind::Updated), Some(version))
        };
        let untimed = ReceivedEvent { time: None, ..at(3, 0) };
        let events = [at(1, 10), at(3, 30), at(3, 30), at(3, 31), at(2, 20), at(2, 40), untimed, at(4, 5), at(4, 5)];
        let (counts, patient, outcomes) = apply_all(&events);
        use Outcome::{Applied, Conflict, Duplicate};
        let expected = [Applied, Applied, Duplicate, Conflict, Duplicate, Conflict, Duplicate, Applied, Duplicate];
        assert_eq!(outcomes, expected);
        assert_eq!((counts.updated, patient.version, patient.changed), (3, 4, Some(5_000)));
    }

    #[test]
    fn events_without_a_version_always_count() {
        let original = |kind| ReceivedEvent { birth_year: None, registered_date: None, ..event(kind, None) };
        let events = [
            original(Some(EventKind::Created)),
            original(Some(EventKind::Created)),
            original(None),
            original(Some(EventKind::Deleted)),
        ];
        let (counts, patient, outcomes) = apply_all(&events);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Applied));
        assert_eq!((counts.active, counts.created, counts.unknown, counts.deleted), (0, 2, 1, 1));
        assert_eq!(patient.version, 0);
        assert_eq!(counts.births, BTreeMap::from([(None, 0)]));
    }

    #[test]
    fn a_changed_date_moves_the_registration() {
        let moved = ReceivedEvent {
            registered_date: Some(date("2025-01-01")),
            birth_year: Some(1991),
            ..event(Some(EventKind::Updated), Some(2))
        };
        let (counts, _, _) = apply_all(&[event(Some(EventKind::Created), Some(1)), moved]);
        assert_eq!(counts.registrations(Interval::Year, None, None), BTreeMap::from([("2025".to_owned(), 1)]));
        assert_eq!(counts.births, BTreeMap::from([(Some(1990), 0), (Some(1991), 1)]));
    }

    #[test]
    fn dates_out_of_range_count_as_unknown() {
        let with_year = |year: i32, version| ReceivedEvent {
            birth_year: Some(year),
            registered_date: NaiveDate::from_ymd_opt(year, 1, 1),
            ..event(Some(EventKind::Created), Some(version))
        };
        for year in [i32::MIN, -1, 0, 10_000, i32::MAX] {
            let (counts, ..) = apply_all(&[with_year(year, 1)]);
            assert_eq!((counts.births, counts.registrations), ([(None, 1)].into(), [(None, 1)].into()), "{year}");
        }
        let (counts, ..) = apply_all(&[with_year(1, 1), with_year(9999, 2)]);
        assert_eq!(counts.births, [(Some(1), 0), (Some(9999), 1)].into());
    }

    #[test]
    fn counts_of_a_sequence_are_the_sum_of_its_parts() {
        let events: Vec<_> = [EventKind::Created, EventKind::Updated, EventKind::Deleted]
            .iter()
            .zip(1..)
            .map(|(kind, version)| event(Some(*kind), Some(version)))
            .collect();
        let (whole, _, _) = apply_all(&events);
        for cut in 0..=events.len() {
            let (mut first, mut patient, _) = apply_all(&events[..cut]);
            let mut second = Counts::default();
            for event in &events[cut..] {
                second.apply(&mut patient, event);
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
    fn a_series_has_the_periods_with_registrations() {
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
