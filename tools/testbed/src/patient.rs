//! Request bodies of patients.

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
