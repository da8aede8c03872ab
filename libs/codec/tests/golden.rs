//! Golden files of the wire format. Another implementation of protobuf decodes them too (`tests/wire`).
//!
//! `BLESS=1 cargo test -p codec --test golden` rewrites the files after an intended change.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{env, fs, path::PathBuf};

use chrono::{DateTime, NaiveDate};
use codec::event::{Event, EventKind, ReceivedEvent};
use uuid::Uuid;

const PATIENT: &str = "0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f";

fn check(name: &str, bytes: &[u8]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("binpb");
    if env::var_os("BLESS").is_some() {
        fs::write(&file, bytes).unwrap();
    }
    assert_eq!(fs::read(&file).unwrap(), bytes, "{name}: the bytes on the wire have changed");
}

fn event(kind: EventKind, version: i64) -> Event<'static> {
    let (name, email) = if kind == EventKind::Deleted { ("", "") } else { ("Zoë Müller 🩺", "zoe@example.org") };
    Event {
        id: Uuid::parse_str("0190a4c8-9a3c-7000-8000-000000000001").unwrap(),
        patient_id: Uuid::parse_str(PATIENT).unwrap(),
        kind,
        version,
        time: DateTime::from_timestamp(1_720_000_000, 123_456_000).unwrap(),
        name,
        email,
        registered_date: NaiveDate::from_ymd_opt(2024, 2, 29).unwrap(),
        date_of_birth: NaiveDate::from_ymd_opt(1990, 12, 31).unwrap(),
    }
}

#[test]
fn events_keep_their_wire_format() {
    for (name, kind, version) in [
        ("patient_created", EventKind::Created, 1),
        ("patient_updated", EventKind::Updated, 300),
        ("patient_deleted", EventKind::Deleted, 301),
    ] {
        let bytes = event(kind, version).encode();
        check(name, &bytes);
        assert_eq!(ReceivedEvent::decode(&bytes).unwrap().version, Some(version));
    }
}

#[test]
fn an_event_of_the_original_service_is_decoded() {
    // As the original patient-service publishes it: fields 1 to 4 alone.
    let bytes = fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/original_event.binpb")).unwrap();
    let received = ReceivedEvent::decode(&bytes).unwrap();
    assert_eq!((received.patient_id.to_string().as_str(), received.kind), (PATIENT, Some(EventKind::Created)));
    assert_eq!((received.version, received.time, received.birth_year), (None, None, None));
}
