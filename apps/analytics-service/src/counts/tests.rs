use uuid::Uuid;

use super::{patient_state::RESTORE_STEP, *};

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
    assert_eq!((counts.active, counts.created, counts.updated, counts.deleted), (0, 1, 1, 1), "version 2 is a change");
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
    let original = ReceivedEvent { birth_year: None, registered_date: None, ..event(Some(EventKind::Created), None) };
    let (counts, ..) = apply_all(&[original, event(Some(EventKind::Updated), Some(3))]);
    assert_eq!((counts.active, counts.created, counts.updated), (1, 1, 2));
    assert_eq!(counts.registrations, [(None, 0), (Some(date("2024-02-29")), 1)].into());
}

#[test]
fn versions_of_any_size_overflow_nothing() {
    let deleted = ReceivedEvent { birth_year: None, ..event(Some(EventKind::Deleted), Some(i64::MAX)) };
    let mut sum = Counts::default();
    for _ in 0..1000 {
        let (counts, patient, _) = apply_all(&[event(Some(EventKind::Updated), Some(i64::MAX - 1)), deleted.clone()]);
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
    for year in [i32::MIN, -1, 0, 1, 1899, 2101, i32::MAX] {
        let (counts, ..) = apply_all(&[with_year(year, 1)]);
        assert_eq!((counts.births, counts.registrations), ([(None, 1)].into(), [(None, 1)].into()), "{year}");
        if NaiveDate::from_ymd_opt(year, 1, 1).is_none() {
            continue;
        }
        // A new state reads this event alone from a compacted topic.
        let (mut counts, ..) = apply_all(&[with_year(1990, 1), with_year(year, 2)]);
        counts.births.retain(|_, patients| *patients != 0);
        counts.registrations.retain(|_, patients| *patients != 0);
        assert_eq!((counts.births, counts.registrations), ([(None, 1)].into(), [(None, 1)].into()), "{year}");
    }
    let (counts, ..) = apply_all(&[with_year(1900, 1), with_year(2100, 2)]);
    assert_eq!(counts.births, [(Some(1900), 0), (Some(2100), 1)].into());
}

#[test]
fn the_dates_of_any_events_are_bounded() {
    let (mut counts, mut patient) = (Counts::default(), PatientState::default());
    for (day, version) in (-800_000..4_000_000).step_by(3).zip(1..) {
        let registered_date = NaiveDate::from_epoch_days(day);
        let birth_year = registered_date.map(|date| date.year());
        let event = ReceivedEvent { registered_date, birth_year, ..event(Some(EventKind::Updated), Some(version)) };
        assert_eq!(counts.apply(&mut patient, &event), Outcome::Applied);
    }
    assert!(counts.registrations.len() <= 73_415 && counts.births.len() <= 202, "{}", counts.registrations.len());
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
    let bands = [("0-17", 67), ("18-29", 4), ("30-44", 0), ("45-59", 0), ("60-74", 8), ("75+", 48), ("unknown", 128)];
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
