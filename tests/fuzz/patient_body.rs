//! The JSON body of a patient: taken as it is, if all that the registry asks of it holds; else refused with 400.

use chrono::{Datelike as _, NaiveDate};
use patient_service::http::PatientInput;
use serde::Deserialize;
use serde_json::json;

/// The fields of a body, read another way.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    name: String,
    email: String,
    address: String,
    date_of_birth: String,
    registered_date: Option<String>,
}

/// Reads the bytes as a patient.
pub fn check(bytes: &[u8]) {
    let today = NaiveDate::from_ymd_opt(2026, 7, 1).expect("a date");
    let Ok(input) = serde_json::from_slice::<PatientInput>(bytes) else { return };
    let details = match input.parse(today) {
        Ok(details) => details,
        Err(problem) => return assert_eq!(problem.status(), 400),
    };

    let given: Given = serde_json::from_slice(bytes).expect("what is taken consists of strings");
    assert_eq!((&details.name, &details.email, &details.address), (&given.name, &given.email, &given.address));
    let dates = (details.date_of_birth.to_string(), details.registered_date.map(|date| date.to_string()));
    assert_eq!(dates, (given.date_of_birth, given.registered_date));

    for (text, most) in [(&details.name, 100), (&details.email, 64 + 1 + 254), (&details.address, 255)] {
        // PostgreSQL takes no NUL.
        assert!(!text.trim().is_empty() && !text.contains('\0') && text.chars().count() <= most, "{text:?}");
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
