//! Request bodies and events of patients.

use chrono::Utc;
use codec::event::{Event, EventKind};
use serde_json::{Value as Json, json};
use uuid::Uuid;

/// The body of a patient with this name and email.
pub fn body(name: &str, email: &str) -> Json {
    json!({"name": name, "email": email, "address": "1 Main Street", "dateOfBirth": "1990-12-31"})
}

/// The body of a patient with this name and a unique email.
pub fn unique_body(name: &str) -> Json {
    body(name, &format!("{}@example.org", Uuid::now_v7()))
}

/// The event of a new patient, as it is on the topic.
pub fn created() -> Vec<u8> {
    let event = Event {
        id: Uuid::now_v7(),
        patient_id: Uuid::now_v7(),
        kind: EventKind::Created,
        version: 1,
        time: Utc::now(),
        name: "Jane Doe",
        email: "jane@example.org",
        registered_date: "2024-02-29".parse().expect("a date"),
        date_of_birth: "1990-12-31".parse().expect("a date"),
    };
    event.encode()
}
