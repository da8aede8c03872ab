//! The value of a record: it is decoded or rejected, and a decoded event can be counted.

use analytics_service::counts::{Counts, Interval, PatientState};
use chrono::NaiveDate;
use codec::event::{DecodeError, Event, EventKind, ReceivedEvent};
use uuid::Uuid;

/// Decodes the bytes as an event and counts it.
pub fn check(bytes: &[u8]) {
    let received = match ReceivedEvent::decode(bytes) {
        Ok(received) => received,
        Err(error) => return assert_eq!(error == DecodeError::Empty, bytes.is_empty(), "{error}"),
    };
    assert!(received.version.is_none_or(|version| version > 0) && received.birth_year != Some(0), "{received:?}");
    if let Some(bytes) = reencode(&received) {
        assert_eq!(ReceivedEvent::decode(&bytes).as_ref(), Ok(&received));
    }

    // Again as a duplicate, then a deletion, then a duplicate after it.
    let (mut counts, mut patient) = (Counts::default(), PatientState::default());
    let next = received.version.map(|version| version.saturating_add(1));
    let deletion =
        ReceivedEvent { kind: Some(EventKind::Deleted), version: next, birth_year: None, ..received.clone() };
    for event in [&received, &received, &deletion, &received] {
        if patient.repeated(event).is_none() {
            counts.count(&mut patient, event);
        }
    }
    assert_eq!(counts.active, counts.births.values().sum::<i64>());
    assert_eq!(counts.active, counts.age_bands(2026).iter().map(|(_, patients)| patients).sum::<i64>());
    assert_eq!(counts.active, i64::from(patient.active));
    for interval in [Interval::Day, Interval::Month, Interval::Year] {
        counts.registrations(interval, None, None);
    }
}

/// The event encoded again, if it has every field that we publish.
fn reencode(received: &ReceivedEvent) -> Option<Vec<u8>> {
    // A deletion is published without the year of birth.
    let kind = received.kind.filter(|kind| *kind != EventKind::Deleted)?;
    let event = Event {
        id: Uuid::nil(),
        patient_id: received.patient_id,
        kind,
        version: received.version?,
        time: received.time?,
        name: "",
        email: "",
        registered_date: received.registered_date?,
        date_of_birth: NaiveDate::from_ymd_opt(received.birth_year?, 1, 1)?,
    };
    Some(event.encode())
}
