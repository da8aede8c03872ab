//! The JSON body of a patient: accepted unchanged if it is valid, else rejected with 400.

use chrono::{Datelike as _, NaiveDate};
use patient_service::http::PatientInput;
use serde::Deserialize;
use serde_json::json;

/// The fields of a body, parsed independently.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    name: String,
    email: String,
    address: String,
    date_of_birth: String,
    registered_date: Option<String>,
}

/// Parses the bytes as a patient.
pub fn check(bytes: &[u8]) {
    let today = NaiveDate::from_ymd_opt(2026, 7, 1).expect("a date");
    let Ok(input) = serde_json::from_slice::<PatientInput>(bytes) else { return };
    let details = match input.parse(today) {
        Ok(details) => details,
        Err(problem) => return assert_eq!(problem.status(), 400),
    };

    let given: Given = serde_json::from_slice(bytes).expect("an accepted body consists of strings");
    assert_eq!((&details.name, &details.email, &details.address), (&given.name, &given.email, &given.address));
    let dates = (details.date_of_birth.to_string(), details.registered_date.map(|date| date.to_string()));
    assert_eq!(dates, (given.date_of_birth, given.registered_date));

    for (text, max) in [(&details.name, 100), (&details.email, 64 + 1 + 254), (&details.address, 255)] {
        // PostgreSQL rejects NUL.
        assert!(!text.trim().is_empty() && !text.contains('\0') && text.chars().count() <= max, "{text:?}");
    }
    let (local, domain) = details.email.rsplit_once('@').expect("an email has an @");
    assert!(!local.is_empty() && !domain.is_empty(), "{}", details.email);
    for date in [Some(details.date_of_birth), details.registered_date].into_iter().flatten() {
        assert!(date <= today && date.year() >= 1, "{date}");
    }

    let body = json!({
        "name": details.name, "email": details.email, "address": details.address,
        "dateOfBirth": details.date_of_birth, "registeredDate": details.registered_date,
    });
    let again: PatientInput = serde_json::from_value(body).expect("it is an object");
    assert_eq!(again.parse(today), Ok(details));
}
