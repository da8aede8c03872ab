//! Helpers of several tests.

use std::time::Duration;

use serde_json::Value as Json;
use testbed::http::Client;

/// Timeout of a condition.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a patient with a unique email.
pub(crate) fn patient(name: &str) -> Json {
    testbed::patient::unique_body(name)
}

/// A unique number.
pub(crate) fn unique() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Registers a patient; returns the body of the response.
pub(crate) async fn register(client: &Client, name: &str) -> Json {
    let response = client.post("/patients", &patient(name)).await.unwrap();
    assert_eq!(response.status, 201, "{}", response.text());
    response.json()
}

/// The path of a patient in a response.
pub(crate) fn path(patient: &Json) -> String {
    format!("/patients/{}", patient["id"].as_str().unwrap())
}
