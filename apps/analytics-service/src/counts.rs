//! Counts of events. Pure: no I/O, no clock.
//!
//! Versions of a patient are dense: 1 at the registration, one more with each change and with the deletion. So what a patient
//! adds to the counts follows from the highest version and from whether its event was a deletion: one registration, perhaps one
//! deletion, and a change for each other version. An event adds the difference to what was known before, so events that are
//! missing count too: compaction has removed them from the topic, or they come late and count nothing then. A count of the
//! compacted topic has the same result as one of all events ([decision 60](../../../docs/decisions/0060-count-from-versions.md)).
//!
//! Events without a version, as the original services publish them, count one by one.

use std::{collections::BTreeMap, ops::AddAssign};

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use codec::event::{EventKind, ReceivedEvent};

mod patient_state;

pub use patient_state::{Outcome, PatientState};
pub(crate) use patient_state::{valid_date, valid_year};

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

impl Counts {
    /// Counts an event and updates the state of its patient.
    #[cfg(test)]
    pub(crate) fn apply(&mut self, patient: &mut PatientState, event: &ReceivedEvent) -> Outcome {
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
mod tests;
